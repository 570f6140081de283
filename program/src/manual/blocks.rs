//! The text behind the options of `--help`, in the parts that a man page shows in different ways.

/// A part of a help text.
#[derive(Debug, PartialEq, Eq)]
pub enum Block {
    /// A paragraph, which is filled.
    Paragraph(String),
    /// Indented lines, which stay as they are, but for the indentation that all have.
    Literal(Vec<String>),
}

/// The parts of a help text by the section of the page that they belong to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// Text in front of the headings below.
    pub description: Vec<Block>,
    /// Text behind `Exit codes:`.
    pub exit_status: Vec<Block>,
    /// Text behind `Examples:`.
    pub examples: Vec<Block>,
}

impl Blocks {
    /// Divides a help text: a section ends where the next one begins, a paragraph with an empty or
    /// an indented line, and indented lines with one that is not.
    pub fn new(text: &str) -> Self {
        let mut blocks = Self::default();
        let mut section = &mut blocks.description;
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            match line {
                "" => {}
                "Examples:" => section = &mut blocks.examples,
                "Exit codes:" => section = &mut blocks.exit_status,
                _ => {
                    let literal = is_indented(line);
                    let mut part = vec![line];
                    while let Some(next) = lines.next_if(|next| goes_on(literal, next)) {
                        part.push(next);
                    }
                    // An empty line goes on a literal part, but does not end one.
                    while part.last().is_some_and(|line| line.is_empty()) {
                        part.pop();
                    }
                    section.push(if literal {
                        Block::Literal(without_common_indentation(&part))
                    } else {
                        Block::Paragraph(part.join(" "))
                    });
                }
            }
        }
        blocks
    }
}

fn is_indented(line: &str) -> bool {
    line.starts_with(' ')
}

fn goes_on(literal: bool, line: &str) -> bool {
    if literal {
        is_indented(line) || line.is_empty()
    } else {
        !is_indented(line) && !line.is_empty()
    }
}

fn without_common_indentation(lines: &[&str]) -> Vec<String> {
    let indentation = |line: &&str| line.len() - line.trim_start_matches(' ').len();
    let common = lines.iter().filter(|line| !line.is_empty()).map(indentation).min();
    lines.iter().map(|line| line.get(common.unwrap_or(0)..).unwrap_or("").to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paragraph(text: &str) -> Block {
        Block::Paragraph(text.to_owned())
    }

    fn literal(lines: &[&str]) -> Block {
        Block::Literal(lines.iter().map(|&line| line.to_owned()).collect())
    }

    #[test]
    fn help_text_is_divided_into_sections_paragraphs_and_literal_lines() {
        let text = "\
First words
go on.

RING is one of:
  PATH   a file

  unix:  a socket
Words behind.

Examples:
  first \\
      goes on

  second

Exit codes:
  0  normal end
Words.";
        let expected = Blocks {
            description: vec![
                paragraph("First words go on."),
                paragraph("RING is one of:"),
                literal(&["PATH   a file", "", "unix:  a socket"]),
                paragraph("Words behind."),
            ],
            exit_status: vec![literal(&["0  normal end"]), paragraph("Words.")],
            examples: vec![literal(&["first \\", "    goes on", "", "second"])],
        };
        assert_eq!(Blocks::new(text), expected);
        assert_eq!(Blocks::new(""), Blocks::default());
    }
}

//! Subjects: the template that names one for each ring, and the filters of a stream.

/// What a template has in the place of the ring's name.
const RING: &str = "{ring}";

/// Template of the subjects of rings, such as `vm.{ring}.log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(String);

/// Why a text cannot be a template, or a ring's name no part of a subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    #[error(
        "the subject '{0}' does not say where a ring's name goes: write {{ring}} for it, as in \
         'vm.{{ring}}.log', so that each ring has a subject of its own"
    )]
    NoRing(String),
    #[error(
        "'{0}' cannot be a subject: it consists of words with dots between them, none of them \
         empty, without spaces, '*' and '>'"
    )]
    Invalid(String),
    #[error(
        "the ring's name '{0}' cannot be a part of a subject: give the ring a name without {1}"
    )]
    Name(String, &'static str),
}

impl Template {
    /// Takes a template that names a subject for each ring.
    pub fn new(text: &str) -> Result<Self, SubjectError> {
        if !text.contains(RING) {
            return Err(SubjectError::NoRing(text.to_owned()));
        }
        let is_word = |word: &str| !word.is_empty() && !word.contains(is_reserved);
        let is_subject = text.replace(RING, "ring").split('.').all(is_word);
        // Subjects that begin so are the server's own.
        if !is_subject || text.starts_with('$') {
            return Err(SubjectError::Invalid(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the subject of a ring.
    pub fn subject(&self, ring: &str) -> Result<String, SubjectError> {
        let refuse = |what| Err(SubjectError::Name(ring.to_owned(), what));
        match ring {
            _ if ring.contains('.') => refuse("dots"),
            _ if ring.contains(is_reserved) => refuse("spaces, '*' and '>'"),
            _ => Ok(self.0.replace(RING, ring)),
        }
    }

    /// Returns the filter that the subjects of all rings match.
    pub fn filter(&self) -> String {
        let words = self.0.split('.').map(|word| if word.contains(RING) { "*" } else { word });
        words.collect::<Vec<_>>().join(".")
    }
}

fn is_reserved(char: char) -> bool {
    char.is_whitespace() || char.is_control() || matches!(char, '*' | '>')
}

/// Returns whether a filter of a stream, with its wildcards `*` and `>`, matches a subject.
pub fn matches(filter: &str, subject: &str) -> bool {
    let (mut filter, mut subject) = (filter.split('.'), subject.split('.'));
    loop {
        match (filter.next(), subject.next()) {
            (None, None) | (Some(">"), Some(_)) => return true,
            (Some(expected), Some(word)) if expected == "*" || expected == word => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn template_gives_each_ring_its_subject() {
        let template = Template::new("vm.{ring}.log").unwrap();
        assert_eq!(template.subject("vm1").unwrap(), "vm.vm1.log");
        assert_eq!(template.filter(), "vm.*.log");
        let template = Template::new("logs.host-{ring}").unwrap();
        assert_eq!(template.subject("a").unwrap(), "logs.host-a");
        assert_eq!(template.filter(), "logs.*");
    }

    #[test]
    fn template_without_a_place_for_the_ring_is_refused() {
        let error = Template::new("vm.log").unwrap_err();
        assert!(error.to_string().contains("write {ring} for it"), "{error}");
    }

    #[test]
    fn template_that_is_no_subject_is_refused() {
        for text in ["vm..{ring}", ".{ring}", "{ring}.", "vm.*.{ring}", "a b.{ring}", "$JS.{ring}"]
        {
            assert_eq!(Template::new(text), Err(SubjectError::Invalid(text.to_owned())));
        }
    }

    #[test]
    fn ring_whose_name_would_change_the_subject_is_refused() {
        let template = Template::new("vm.{ring}.log").unwrap();
        for (name, words) in [("a.b", "dots"), ("a b", "spaces"), ("*", "'*'"), (">", "'>'")] {
            let error = template.subject(name).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(name), "{error}");
        }
    }

    #[test]
    fn filter_matches_as_the_server_matches() {
        for (filter, subject, expected) in [
            ("vm.*.log", "vm.a.log", true),
            ("vm.*.log", "vm.a.b.log", false),
            ("vm.>", "vm.a.log", true),
            ("vm.>", "vm", false),
            (">", "vm.a", true),
            ("vm.a.log", "vm.a.log", true),
            ("vm.a.log", "vm.a", false),
            ("vm.a", "vm.a.log", false),
        ] {
            assert_eq!(matches(filter, subject), expected, "{filter} {subject}");
        }
    }
}

//! Output as the documents show it.

/// Whether output is what the documents show, where numbers and UUIDs may be others, and `…` stands
/// for anything.
pub fn is_as_shown(said: &str, shown: &str) -> bool {
    let (said, shown) = (without_numbers(said), without_numbers(shown));
    let mut rest = said.trim_end();
    let parts: Vec<_> = shown.trim_end().split('…').collect();
    for (index, part) in parts.iter().enumerate() {
        match rest.find(part) {
            Some(at) if index > 0 || at == 0 => rest = &rest[at + part.len()..],
            _ => return false,
        }
    }
    rest.is_empty() || parts.last().is_some_and(|last| last.is_empty())
}

fn without_numbers(text: &str) -> String {
    let is_uuid = |word: &str| word.len() == 36 && word.split('-').count() == 5;
    let mut short = String::new();
    for word in text.split_inclusive(|c: char| !c.is_alphanumeric() && c != '-') {
        let core = word.trim_end_matches(|c: char| !c.is_alphanumeric());
        let (core, rest) = if is_uuid(core) { ("0", &word[core.len()..]) } else { (word, "") };
        for c in core.chars().chain(rest.chars()) {
            let c = if c.is_ascii_digit() { '0' } else { c };
            if c != '0' || !short.ends_with('0') {
                short.push(c);
            }
        }
    }
    short
}

#[test]
fn output_is_compared_without_numbers() {
    let shown = "ring 068517b3-83d8-447f-9a84-1bc105372255\n12.5 % used, …\nend 7";
    let said = "ring 764e070e-fb02-4d8d-a3c9-84a6d3528496\n3.25 % used, 4 items\nend 123\n";
    assert!(is_as_shown(said, shown));
    assert!(!is_as_shown(&said.replace("used", "free"), shown));
    assert!(!is_as_shown(&format!("{said}more"), shown));
    assert!(!is_as_shown(&format!("more{said}"), shown));
}

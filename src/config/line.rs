//! Lines of the configuration's text, and the parser's messages as a person would put them.

use toml::de::{DeArray, DeTable, DeValue};

/// The line, counted from 1, on which byte `offset` lies.
pub(super) fn of_offset(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&b| b == b'\n').count() + 1
}

/// The line of the setting at `key`, or of the nearest table around it. Numbers in `key` count array entries.
pub(super) fn of_key(text: &str, key: &[String]) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    let mut line = None;
    let mut here: Option<&DeTable<'_>> = Some(table.get_ref());
    let mut list: Option<&DeArray<'_>> = None;
    for part in key {
        let value = match (here, list) {
            (Some(table), _) => {
                let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else { break };
                // A table made by its header alone has the span of that header.
                line = Some(of_offset(text, name.span().start));
                value
            }
            (None, Some(list)) => {
                let Some(value) = part.parse::<usize>().ok().and_then(|i| list.get(i)) else { break };
                line = Some(of_offset(text, value.span().start));
                value
            }
            (None, None) => break,
        };
        (here, list) = match value.get_ref() {
            DeValue::Table(t) => (Some(t), None),
            DeValue::Array(a) => (None, Some(a)),
            _ => (None, None),
        };
    }
    line
}

/// `mounts`, `0`, `target` as `mounts.target`: the entry is told by its line.
pub(super) fn dotted(key: &[String]) -> String {
    key.iter().filter(|k| k.parse::<usize>().is_err()).map(String::as_str).collect::<Vec<_>>().join(".")
}

/// Message of the parser in one line; for an unknown setting with the nearest known one.
pub(super) fn say(message: &str) -> String {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let Some(rest) = message.strip_prefix("unknown field `") else {
        // Rust's names of numbers mean nothing to the person at the keyboard.
        return ["u16", "u32", "u64", "i64"]
            .iter()
            .fold(message, |m, t| m.replace(&format!("expected {t}"), "expected a whole number"))
            .replace("expected a boolean", "expected `true` or `false`");
    };
    let Some((unknown, rest)) = rest.split_once('`') else { return message };
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let nearest = known.iter().map(|k| (distance(unknown, k), *k)).min().filter(|(d, k)| *d <= 1 + k.len() / 3);
    match nearest {
        Some((_, near)) => format!("`{unknown}` is not a setting; did you mean `{near}`?"),
        None => format!("`{unknown}` is not a setting; there are: {}", known.join(", ")),
    }
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let cost = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, d) in [("", "", 0), ("nmae", "name", 2), ("gpu", "gpus", 1), ("abc", "", 3)] {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }
}

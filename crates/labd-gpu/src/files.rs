//! Small files of the kernel. A file that is missing, unreadable or not what it should be says nothing: a GPU that is
//! broken answers with errors from any of them.

use std::{collections::BTreeMap, fs, path::Path};

/// Text of a file without white space around it; `None` when there is none.
pub(crate) fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Number in a file: decimal, or hexadecimal after `0x`.
pub(crate) fn number(path: &Path) -> Option<u64> {
    let text = text(path)?;
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Numbers in a file with `name value` or `name: value` on each line, as in KFD's `properties`. Other lines are left
/// out.
pub(crate) fn numbers(path: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.trim().split_once(char::is_whitespace)?;
            Some((name.trim_end_matches(':').to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

//! Text for lines and tables. Pure.

/// At most `most` characters, with an ellipsis where some were cut.
pub(crate) fn clip(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// One line of at most `most` characters: every stretch of white space becomes one space.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    clip(&text.split_whitespace().collect::<Vec<_>>().join(" "), most)
}

/// A segment of a URL's path: everything but unreserved characters is percent-encoded (RFC 3986, section 2.3).
pub(crate) fn path_segment(text: &str) -> String {
    use std::fmt::Write as _;
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            segment.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(segment, "%{byte:02X}");
        }
    }
    segment
}

/// Text without the logins of the addresses in it: what may be shown to anybody.
pub(crate) fn without_logins(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\'' | '`');
        let end = after.find(ends).unwrap_or(after.len());
        // The last `@` before the path: a password may hold one that nobody has encoded.
        rest = &after[after[..end].rfind('@').map_or(0, |at| at + 1)..];
    }
    shown.push_str(rest);
    shown
}

/// Characters that no screen shows, or that turn the text around them: an id with them looks like another one.
pub(crate) fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        assert_eq!(one_line(" a\n\tb ", 3), "a b");
        assert_eq!(one_line("äöüß", 3), "äö…");
        assert_eq!((clip("", 0), clip("ab", 0)), (String::new(), "…".to_owned()));
    }

    #[test]
    fn a_segment_of_a_path_is_encoded() {
        assert_eq!(path_segment("torch-2.9.0+cpu.whl"), "torch-2.9.0%2Bcpu.whl");
        assert_eq!(path_segment("lr 0.01/ä%"), "lr%200.01%2F%C3%A4%25");
    }
}
    #[test]
    fn an_address_is_shown_without_its_login() {
        for (text, shown) in [
            ("https://user:p@ss@pypi.lab/simple", "https://pypi.lab/simple"),
            ("curl http://token@proxy:3128 'https://a:b@c/d'", "curl http://proxy:3128 'https://c/d'"),
            ("https://pypi.org/simple/a@b", "https://pypi.org/simple/a@b"),
            ("none", "none"),
        ] {
            assert_eq!(without_logins(text), shown);
        }
    }


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

/// Text of others that cannot steer the terminal, nor turn the text around it.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_invisible(c) { ' ' } else { c }).collect()
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

/// Field of a line of CSV (RFC 4180). What a spreadsheet would take for a formula begins with an apostrophe, and what some
/// take for the end of a field is quoted.
pub(crate) fn csv_field(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', ';', '\t', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

/// Word as a shell reads it.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Text without the logins of the addresses in it: what may be shown to anybody.
pub(crate) fn without_logins(text: &str) -> String {
    with_logins_as("", text)
}

/// Text with this in place of each login, and of the `@` behind it, in the addresses in it.
pub(crate) fn with_logins_as(mark: &str, text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        // Not at `?` or `#`, which a password may hold that nobody has encoded.
        let ends = |c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'');
        let end = after.find(ends).unwrap_or(after.len());
        // The last `@` before the path: a password may hold one of those, too.
        rest = match after[..end].rfind('@') {
            Some(at) => {
                shown.push_str(mark);
                &after[at + 1..]
            }
            None => after,
        };
    }
    shown.push_str(rest);
    shown
}

/// Characters that no screen shows, or that turn the text around them: an id with them looks like another one.
pub(crate) fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A filter between text that others wrote and a screen. What is left can colour and nothing else: no escape sequence that
/// moves the cursor, writes the clipboard or renames the window, no carriage return over what was read before, nothing
/// invisible. Takes text in pieces, which may end anywhere.
#[derive(Debug, Default)]
pub(crate) struct Screen(Vec<u8>);

/// Longest colour sequence that is waited for.
const COLOUR: usize = 32;

impl Screen {
    /// Part of a piece that may be shown; its unfinished end is kept for the next one.
    pub(crate) fn feed(&mut self, piece: &[u8]) -> String {
        self.0.extend_from_slice(piece);
        let (shown, used) = shown(&self.0, false);
        self.0.drain(..used);
        shown
    }

    /// Rest at the end.
    pub(crate) fn end(&mut self) -> String {
        let (shown, _) = shown(&std::mem::take(&mut self.0), true);
        shown
    }

    /// Text that is there as a whole, filtered.
    pub(crate) fn whole(text: &str) -> String {
        shown(text.as_bytes(), true).0
    }
}

/// Text of these bytes that may be shown, and the number of bytes that were decided on.
fn shown(bytes: &[u8], last: bool) -> (String, usize) {
    let mut out = String::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        match rest[0] {
            b'\n' | b'\t' => out.push(char::from(rest[0])),
            b'\r' if rest.len() == 1 && !last => break,
            // Of a progress bar every state is a line of its own.
            b'\r' if rest.get(1) == Some(&b'\n') => {}
            b'\r' => out.push('\n'),
            0x1b => match colour(rest) {
                Some(0) if !last => break,
                Some(length) if length > 0 => {
                    out.push_str(&String::from_utf8_lossy(&rest[..length]));
                    at += length;
                    continue;
                }
                _ => out.push('\u{241b}'),
            },
            // Unicode has a picture of each.
            c @ ..0x20 => out.push(char::from_u32(0x2400 + u32::from(c)).unwrap_or(' ')),
            0x7f => out.push('\u{2421}'),
            _ => {
                let (c, length) = match character(rest) {
                    None if !last => break,
                    found => found.unwrap_or((char::REPLACEMENT_CHARACTER, 1)),
                };
                out.push(if c.is_control() || is_invisible(c) { char::REPLACEMENT_CHARACTER } else { c });
                at += length;
                continue;
            }
        }
        at += 1;
    }
    (out, at)
}

/// Length of the colour sequence (`ESC [ numbers m`) that these bytes begin with; 0 while it may still become one.
fn colour(bytes: &[u8]) -> Option<usize> {
    let inside = bytes.iter().skip(2).take_while(|b| b.is_ascii_digit() || **b == b';').count();
    match (bytes.get(1), bytes.get(2 + inside)) {
        (Some(b'['), Some(b'm')) if inside < COLOUR => Some(2 + inside + 1),
        (None, _) | (Some(b'['), None) if inside < COLOUR => Some(0),
        _ => None,
    }
}

/// Character that these bytes begin with, and its length; a wrong byte stands for itself. `None` while it is
/// unfinished.
fn character(bytes: &[u8]) -> Option<(char, usize)> {
    let head = &bytes[..bytes.len().min(4)];
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) if e.valid_up_to() > 0 => std::str::from_utf8(&head[..e.valid_up_to()]).unwrap_or_default(),
        Err(e) => return e.error_len().map(|n| (char::REPLACEMENT_CHARACTER, n)),
    };
    text.chars().next().map(|c| (c, c.len_utf8()))
}

/// Entry of a log as one line, whatever is in it: an id with a line break must not look like an entry of its own.
pub(crate) fn log_line(entry: &str) -> String {
    let mut line = Screen::whole(entry.trim_end_matches(['\n', '\r'])).replace('\n', "\u{240a}");
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_gets_colours_and_text_and_nothing_else() {
        for (text, want) in [
            ("\x1b[1;31mred\x1b[0m\tß✓\r\n", "\x1b[1;31mred\x1b[0m\tß✓\n"),
            ("\x1b]52;c;Y2F0\x07", "␛]52;c;Y2F0␇"),
            ("\x1b[2J\x1b[Hgone", "␛[2J␛[Hgone"),
            ("50 %\r60 %\n", "50 %\n60 %\n"),
            ("a\u{202e}b\u{200b}c\u{9b}2Jd\x08\x7f", "a\u{fffd}b\u{fffd}c\u{fffd}2Jd␈␡"),
            ("\x1b", "␛"),
            ("\x1b[3", "␛[3"),
        ] {
            assert_eq!(Screen::whole(text), want);
            // In pieces of every size it is the same.
            for size in 1..6 {
                let mut screen = Screen::default();
                let mut all: String = text.as_bytes().chunks(size).map(|piece| screen.feed(piece)).collect();
                all.push_str(&screen.end());
                assert_eq!(all, want, "{size}");
            }
        }
        let mut screen = Screen::default();
        assert_eq!(screen.feed(b"\xff\xfe ok"), "\u{fffd}\u{fffd} ok");
        assert_eq!(Screen::whole(&format!("\x1b[{}m", "1;".repeat(40))).chars().next(), Some('␛'), "not waited for");
    }

    #[test]
    fn an_id_with_a_line_break_is_no_line_of_its_own() {
        let forged = "INFO job x\n2026-11-28T00:00:00Z ERROR the disk is full\n";
        assert_eq!(log_line(forged), "INFO job x␊2026-11-28T00:00:00Z ERROR the disk is full\n");
        assert_eq!(log_line("a\rb\x1b[2J\n"), "a␊b␛[2J\n");
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        assert_eq!(one_line(" a\n\tb ", 3), "a b");
        assert_eq!(one_line("äöüß", 3), "äö…");
        assert_eq!((clip("", 0), clip("ab", 0)), (String::new(), "…".to_owned()));
    }

    #[test]
    fn a_field_of_csv_is_neither_a_formula_nor_more_than_one_field() {
        for (text, field) in [
            ("loss", "loss"),
            ("a, \"b\"", "\"a, \"\"b\"\"\""),
            ("=HYPERLINK(\"x\")", "\"'=HYPERLINK(\"\"x\"\")\""),
            ("-1+2", "'-1+2"),
            ("@x", "'@x"),
            ("a;=1", "\"a;=1\""),
            ("a\t=1", "\"a\t=1\""),
            ("\n=1", "\"'\n=1\""),
            ("", ""),
        ] {
            assert_eq!(csv_field(text), field);
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

    #[test]
    fn a_segment_of_a_path_is_encoded() {
        assert_eq!(path_segment("torch-2.9.0+cpu.whl"), "torch-2.9.0%2Bcpu.whl");
        assert_eq!(path_segment("lr 0.01/ä%"), "lr%200.01%2F%C3%A4%25");
    }
}

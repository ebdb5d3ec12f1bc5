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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        assert_eq!(one_line(" a\n\tb ", 3), "a b");
        assert_eq!(one_line("äöüß", 3), "äö…");
        assert_eq!((clip("", 0), clip("ab", 0)), (String::new(), "…".to_owned()));
    }
}

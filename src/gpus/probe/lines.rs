//! Lines, put together from the pieces in which a pipe delivers them. Pure; holds one line at most.

/// Longest line, in bytes: 1000 GPUs with 8 processes each fit.
pub(super) const LONGEST: usize = 1 << 20;

/// Assembler of lines; holds the line that has not ended yet.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<u8>);

/// Error: a line grew beyond [`LONGEST`] bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    /// Takes a piece; passes on every line that it completes, without its end. Empty lines are left out.
    pub(super) fn push(&mut self, mut piece: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), TooLong> {
        while let Some(end) = piece.iter().position(|&b| b == b'\n') {
            let (head, rest) = piece.split_at(end);
            piece = &rest[1..];
            if self.0.len() + head.len() > LONGEST {
                return Err(TooLong);
            }
            if self.0.is_empty() {
                if !head.is_empty() {
                    each(head);
                }
            } else {
                let mut line = std::mem::take(&mut self.0);
                line.extend_from_slice(head);
                each(&line);
            }
        }
        if self.0.len() + piece.len() > LONGEST {
            return Err(TooLong);
        }
        self.0.extend_from_slice(piece);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_never_ends_is_not_kept() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; LONGEST / 2];
        assert_eq!(lines.push(&piece, |_| panic!("no line")), Ok(()));
        assert_eq!(lines.push(&piece, |_| panic!("no line")), Ok(()));
        assert_eq!(lines.push(b"y", |_| panic!("no line")), Err(TooLong));
        assert!(lines.0.capacity() <= 2 * LONGEST);
        assert_eq!(lines.push(b"y\n", |_| panic!("no line")), Err(TooLong));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[ab\n]{0,60}", cuts in prop::collection::vec(0_usize..60, 0..6)) {
            let (mut cuts, mut from) = (cuts, 0);
            cuts.sort_unstable();
            let (mut lines, mut got) = (Lines::default(), Vec::new());
            for cut in cuts.into_iter().map(|c| c.min(text.len())).chain([text.len()]) {
                let piece = &text.as_bytes()[from..cut];
                prop_assert_eq!(lines.push(piece, |l| got.push(String::from_utf8_lossy(l).into_owned())), Ok(()));
                from = cut;
            }
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            prop_assert_eq!(got, whole.split('\n').filter(|l| !l.is_empty()).collect::<Vec<_>>());
        }
    }
}

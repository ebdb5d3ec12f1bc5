//! Pages of long lists: the newest first, and from each page on to the next.

use std::{cmp::Reverse, fmt};

use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{ApiError, extract::within};
use crate::time::Timestamp;

/// Number on one page unless another is asked for: what the snapshot shows of jobs.
const LIMIT: u32 = 50;
/// Largest number on one page. Chosen: some 100 kB of jobs.
const LIMIT_MAX: u32 = 200;
/// Most digits of a time in a cursor, in milliseconds: until the year 33658.
const DIGITS: usize = 15;

/// Query for a page.
#[derive(Debug, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Paged {
    /// Largest number on the page; 50 when absent.
    #[schemars(range(min = 1, max = LIMIT_MAX))]
    limit: Option<u32>,
    /// What `next` of the page before says, as it is; the first page when absent.
    #[schemars(regex(pattern = "^[0-9]{1,15}-"))]
    before: Option<String>,
}

impl Paged {
    /// Place after which the page begins, and how many are wanted.
    pub(super) fn read(self) -> Result<(Option<Cursor>, usize), ApiError> {
        let limit = within("limit", self.limit.unwrap_or(LIMIT), 1, LIMIT_MAX)?;
        let wrong = || ApiError::new(StatusCode::BAD_REQUEST, "`before` must be what `next` of another page says");
        let before = self.before.map(|text| Cursor::parse(&text).ok_or_else(wrong)).transpose()?;
        Ok((before, usize::try_from(limit).unwrap_or(usize::MAX)))
    }
}

/// Place in a list: the time of an entry, and what tells it from others of that time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cursor {
    /// Time of the entry.
    pub(super) at: Timestamp,
    /// Its id.
    pub(super) id: String,
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let (at, id) = text.split_once('-')?;
        let is_time = (1..=DIGITS).contains(&at.len()) && at.bytes().all(|byte| byte.is_ascii_digit());
        Some(Self { at: Timestamp::from_millis(is_time.then(|| at.parse().ok())??), id: id.to_owned() })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.at.as_millis(), self.id)
    }
}

/// Page of a list, newest first, and where the next one begins. `all` has at least one more than `limit` of what comes after
/// `before`, where there is one.
pub(super) fn of<T>(
    mut all: Vec<T>,
    place: impl Fn(&T) -> Cursor,
    before: Option<&Cursor>,
    limit: usize,
) -> (Vec<T>, Option<String>) {
    all.retain(|entry| before.is_none_or(|before| place(entry) < *before));
    all.sort_by_cached_key(|entry| Reverse(place(entry)));
    let is_last = all.len() <= limit;
    all.truncate(limit);
    let next = all.last().filter(|_| !is_last).map(|entry| place(entry).to_string());
    (all, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(at: i64, id: &str) -> Cursor {
        Cursor { at: Timestamp::from_millis(at), id: id.into() }
    }

    #[test]
    fn pages_have_everything_once_and_in_order() {
        let all: Vec<(i64, &str)> = vec![(1, "a"), (3, "c"), (3, "b"), (2, "x-y"), (3, "d")];
        for limit in 1..7 {
            let (mut seen, mut before) = (Vec::new(), None);
            loop {
                let (page, next) = of(all.clone(), |(at, id)| cursor(*at, id), before.as_ref(), limit);
                assert!(page.len() <= limit);
                seen.extend(page);
                let Some(next) = next else { break };
                before = Cursor::parse(&next);
                assert!(before.is_some(), "{next}");
            }
            assert_eq!(seen, [(3, "d"), (3, "c"), (3, "b"), (2, "x-y"), (1, "a")], "{limit}");
        }
    }

    #[test]
    fn only_places_of_ours_are_read() {
        assert_eq!(Cursor::parse("17-a-b"), Some(cursor(17, "a-b")));
        assert_eq!(Cursor::parse("17-"), Some(cursor(17, "")));
        for text in ["", "17", "x-a", "-a", "-1-a", "+1-a", "1234567890123456-a"] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }
}

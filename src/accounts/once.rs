//! Tokens that are good for once, such as links that log a person in: in memory only, so that a restart ends them. Pure: the
//! moment is passed in.

use std::{collections::HashMap, time::Duration};

use super::session::{Digest, token};
use crate::{secret::Secret, time::Moment};

/// Time for which a link can be used: long enough to carry it to a browser on another machine.
pub const LINK_VALID: Duration = Duration::from_mins(10);
/// Most tokens of one kind at once. The oldest makes room, since whoever asks for that many wants the newest.
const MOST: usize = 100;

/// Tokens of one kind that were not used yet, by their digest, with whom each is of.
#[derive(Debug)]
pub(super) struct Once<T> {
    valid: Duration,
    all: HashMap<Digest, (T, Moment)>,
}

impl<T> Once<T> {
    /// Tokens that can be used for this time.
    pub(super) fn new(valid: Duration) -> Self {
        Self { valid, all: HashMap::new() }
    }

    /// Makes a token.
    pub(super) fn make(&mut self, of: T, now: Moment) -> Secret {
        self.all.retain(|_, (_, made)| now.since(*made) < self.valid);
        while self.all.len() >= MOST {
            let Some(oldest) = self.all.iter().min_by_key(|(_, (_, made))| *made).map(|(key, _)| *key) else { break };
            self.all.remove(&oldest);
        }
        let token = token();
        self.all.insert(Digest::of(token.expose()), (of, now));
        token
    }

    /// Uses a token up, and returns whom it is of.
    pub(super) fn take(&mut self, token: &Secret, now: Moment) -> Option<T> {
        let (of, made) = self.all.remove(&Digest::of(token.expose()))?;
        (now.since(made) < self.valid).then_some(of)
    }

    /// Ends those whose owner is not to have one any more.
    pub(super) fn retain(&mut self, stays: impl Fn(&T) -> bool) {
        self.all.retain(|_, (of, _)| stays(of));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::{Person, Role};

    fn at(secs: u64) -> Moment {
        Moment::default().plus(Duration::from_secs(secs))
    }

    fn root() -> Person {
        Person { name: "root".into(), role: Role::Admin }
    }

    #[test]
    fn a_link_is_used_once_within_ten_minutes() {
        let mut links = Once::new(LINK_VALID);
        let token = links.make(root(), at(0));
        assert!(links.take(&Secret::new("guessed"), at(1)).is_none());
        assert_eq!(links.take(&token, at(599)), Some(root()));
        assert!(links.take(&token, at(599)).is_none());
        let token = links.make(root(), at(0));
        assert!(links.take(&token, at(600)).is_none());
        assert!(!format!("{links:?} {token:?}").contains(token.expose()));
    }

    #[test]
    fn a_hundred_links_wait_at_once_and_the_oldest_makes_room() {
        let mut links = Once::new(LINK_VALID);
        let tokens: Vec<_> = (0..101).map(|n| links.make(root(), at(n))).collect();
        assert_eq!(links.all.len(), 100);
        assert!(links.take(&tokens[0], at(101)).is_none());
        assert!(links.take(&tokens[1], at(101)).is_some());
        links.retain(|person: &Person| person.name != "root");
        assert!(links.take(&tokens[2], at(101)).is_none());
    }
}

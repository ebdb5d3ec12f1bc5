//! Links that log a person in once: in memory only, so that a restart ends them. Pure: the moment is passed in.

use std::{collections::HashMap, time::Duration};

use super::{
    Person,
    session::{Digest, token},
};
use crate::{secret::Secret, time::Moment};

/// Time for which a link can be used: long enough to carry it to a browser on another machine.
pub const LINK_VALID: Duration = Duration::from_mins(10);
/// Most links at once. The oldest makes room, since whoever asks for that many wants the newest.
const MOST: usize = 100;

/// Links that were not used yet, by the digest of their token.
#[derive(Debug, Default)]
pub(super) struct Links(HashMap<Digest, (Person, Moment)>);

impl Links {
    /// Makes a link's token.
    pub(super) fn make(&mut self, person: Person, now: Moment) -> Secret {
        self.0.retain(|_, (_, made)| is_valid(*made, now));
        while self.0.len() >= MOST {
            let Some(oldest) = self.0.iter().min_by_key(|(_, (_, made))| *made).map(|(key, _)| *key) else { break };
            self.0.remove(&oldest);
        }
        let token = token();
        self.0.insert(Digest::of(token.expose()), (person, now));
        token
    }

    /// Uses a link up, and returns whom it is of.
    pub(super) fn take(&mut self, token: &Secret, now: Moment) -> Option<Person> {
        let (person, made) = self.0.remove(&Digest::of(token.expose()))?;
        is_valid(made, now).then_some(person)
    }

    /// Ends all links of a person.
    pub(super) fn end_of(&mut self, name: &str) {
        self.0.retain(|_, (person, _)| person.name != name);
    }
}

fn is_valid(made: Moment, now: Moment) -> bool {
    now.since(made) < LINK_VALID
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::Role;

    fn at(secs: u64) -> Moment {
        Moment::default().plus(Duration::from_secs(secs))
    }

    fn root() -> Person {
        Person { name: "root".into(), role: Role::Admin }
    }

    #[test]
    fn a_link_is_used_once_within_ten_minutes() {
        let mut links = Links::default();
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
        let mut links = Links::default();
        let tokens: Vec<_> = (0..101).map(|n| links.make(root(), at(n))).collect();
        assert_eq!(links.0.len(), 100);
        assert!(links.take(&tokens[0], at(101)).is_none());
        assert!(links.take(&tokens[1], at(101)).is_some());
        links.end_of("root");
        assert!(links.take(&tokens[2], at(101)).is_none());
    }
}

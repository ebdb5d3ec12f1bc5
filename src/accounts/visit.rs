//! Visits of the page's second origin, and the tickets that begin them: in memory only, so that a restart ends them. Each
//! belongs to a session and is worth nothing without it. Pure: the moment is passed in.

use std::{collections::HashMap, time::Duration};

use super::{
    once::Once,
    session::{Digest, cookie},
};
use crate::{secret::Secret, time::Moment};

/// Time for which a ticket can be used: the browser that asked for it goes on at once.
pub const TICKET_VALID: Duration = Duration::from_secs(30);
/// Most visits at once of one session, whose browser keeps the newest. The oldest makes room.
const MOST_OF_ONE: usize = 5;
/// Most visits at once, each of about 100 bytes. The oldest makes room.
const MOST: usize = 1_000;

/// Visit of a session, since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Visit {
    session: Digest,
    began: Moment,
}

/// Tickets, and visits by the digest of their token.
#[derive(Debug)]
pub(super) struct Visits {
    tickets: Once<Digest>,
    visits: HashMap<Digest, Visit>,
}

impl Default for Visits {
    fn default() -> Self {
        Self { tickets: Once::new(TICKET_VALID), visits: HashMap::new() }
    }
}

impl Visits {
    /// Makes a ticket of a session.
    pub(super) fn ticket(&mut self, session: Digest, now: Moment) -> Secret {
        self.tickets.make(session, now)
    }

    /// Uses a ticket up, and returns the session that it is of.
    pub(super) fn take(&mut self, ticket: &Secret, now: Moment) -> Option<Digest> {
        self.tickets.take(ticket, now)
    }

    /// Begins a visit of a session, and returns its cookie. Forgets those whose session is over.
    pub(super) fn begin(
        &mut self,
        session: Digest,
        over_tls: bool,
        now: Moment,
        goes_on: impl Fn(&Digest) -> bool,
    ) -> Secret {
        self.visits.retain(|_, visit| goes_on(&visit.session));
        make_room(&mut self.visits, MOST_OF_ONE - 1, |visit| visit.session == session);
        make_room(&mut self.visits, MOST - 1, |_| true);
        let cookie = cookie(over_tls);
        self.visits.insert(Digest::of(cookie.expose()), Visit { session, began: now });
        cookie
    }

    /// Lets the visits of a session be those of another.
    pub(super) fn hand_over(&mut self, from: Digest, to: Digest) {
        self.visits.values_mut().filter(|visit| visit.session == from).for_each(|visit| visit.session = to);
    }

    /// Session to which the visit of a cookie belongs. Whether that goes on, only the sessions know.
    pub(super) fn session(&self, cookie: &str) -> Option<Digest> {
        self.visits.get(&Digest::of(cookie)).map(|visit| visit.session)
    }
}

/// Ends the oldest of these until so many are left.
fn make_room(visits: &mut HashMap<Digest, Visit>, left: usize, of: impl Fn(&Visit) -> bool) {
    let mut all: Vec<(Moment, Digest)> =
        visits.iter().filter(|(_, visit)| of(visit)).map(|(key, visit)| (visit.began, *key)).collect();
    all.sort_unstable();
    for (_, key) in all.iter().take(all.len().saturating_sub(left)) {
        visits.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Moment {
        Moment::default().plus(Duration::from_secs(secs))
    }

    fn session(name: &str) -> Digest {
        Digest::of(name)
    }

    #[test]
    fn a_ticket_is_used_once_within_half_a_minute_and_is_its_sessions() {
        let mut visits = Visits::default();
        let ticket = visits.ticket(session("a"), at(0));
        let other = visits.ticket(session("b"), at(0));
        assert_eq!(visits.take(&Secret::new("guessed"), at(1)), None);
        assert_eq!(visits.take(&ticket, at(29)), Some(session("a")));
        assert_eq!(visits.take(&ticket, at(29)), None);
        assert_eq!(visits.take(&other, at(30)), None);
        assert!(!format!("{visits:?} {ticket:?}").contains(ticket.expose()));
    }

    #[test]
    fn a_ticket_is_no_cookie_and_a_cookie_is_no_ticket() {
        let mut visits = Visits::default();
        let ticket = visits.ticket(session("a"), at(0));
        let cookie = visits.begin(session("a"), false, at(0), |_| true);
        assert_eq!(visits.session(ticket.expose()), None);
        assert_eq!(visits.take(&cookie, at(0)), None);
        assert_eq!(visits.session(cookie.expose()), Some(session("a")));
    }

    #[test]
    fn all_of_it_is_bounded_and_the_oldest_makes_room() {
        let mut visits = Visits::default();
        let tickets: Vec<_> = (0..101).map(|n| visits.ticket(session("a"), at(n / 10))).collect();
        assert!(visits.take(&tickets[100], at(11)).is_some());
        assert_eq!(tickets.iter().filter(|ticket| visits.take(ticket, at(11)).is_some()).count(), 99);

        let cookies: Vec<_> = (0..6).map(|n| visits.begin(session("a"), false, at(n), |_| true)).collect();
        assert_eq!(visits.session(cookies[0].expose()), None);
        assert!(cookies[1..].iter().all(|cookie| visits.session(cookie.expose()).is_some()));
        for n in 0..2_000 {
            visits.begin(session(&n.to_string()), false, at(10 + n), |_| true);
        }
        assert_eq!(visits.visits.len(), MOST);
        assert_eq!(visits.session(cookies[5].expose()), None);
        visits.begin(session("z"), false, at(9_999), |session| *session == Digest::of("z"));
        assert_eq!(visits.visits.len(), 1, "what is over is forgotten");
    }
}

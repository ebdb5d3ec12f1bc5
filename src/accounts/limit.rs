//! Limit on failed logins. Pure: the moment is passed in.
//!
//! Each attempt is charged as a failure before its password is looked at, and what was charged is given back if it was right:
//! so many attempts at the same moment are no way around the limit, nor is one whose caller hangs up early.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use crate::time::Moment;

/// Failures without a wait: people mistype.
const FREE: u32 = 5;
/// First wait; each failure doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait: a person who caused it sits it out, and a guesser gets 300 guesses a day.
const LONGEST_WAIT: Duration = Duration::from_mins(5);
/// Time without a failure after which all of them are forgotten.
const FORGOTTEN: Duration = Duration::from_mins(15);

/// Failures of one account over all addresses before each attempt has to wait: far above [`FREE`], since whoever guesses from
/// many addresses would otherwise lock the account's owner out.
const PER_ACCOUNT: u32 = 100;
/// Wait for an account that has that many.
const ACCOUNT_WAIT: Duration = Duration::from_secs(5);
/// Time in which one failure of an account leaves its count, so that it holds about those of [`FORGOTTEN`].
const ACCOUNT_DRAIN: Duration = Duration::from_secs(FORGOTTEN.as_secs() / PER_ACCOUNT as u64);

/// Share of a second that one failed attempt uses up: 20 a second in all.
const GLOBAL_COST: Duration = Duration::from_millis(50);
/// What may be used up at once.
const GLOBAL_BURST: Duration = Duration::from_secs(1);

/// Time between two words about failed logins: whoever guesses must not fill the journal with that.
const TOLD_EVERY: Duration = Duration::from_mins(10);

/// Most counts at once, each of about 150 bytes. The one that failed longest ago makes room.
const MOST: usize = 10_000;

/// Counts of failed logins.
#[derive(Debug, Default)]
pub(super) struct Limit {
    counts: BTreeMap<Key, Count>,
    /// Moment at which nothing is used up of [`GLOBAL_BURST`].
    global_free_at: Moment,
    /// Failures that nobody was told of.
    untold: Option<Failures>,
    /// Moment at which somebody was told of some.
    told_at: Option<Moment>,
}

/// Failed logins with names, since somebody was told of some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failures {
    pub(super) number: u32,
    /// Name that the last was with.
    pub(super) name: String,
    /// Address that it came from.
    pub(super) from: IpAddr,
    /// Moment of it.
    at: Moment,
}

/// What failures are counted for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// An account's name from one address.
    Pair(String, IpAddr),
    /// An address, whatever the name.
    Address(IpAddr),
    /// An account's name, whatever the address.
    Account(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    failures: u32,
    last: Moment,
}

/// Attempt that was let through and is charged until it is known to be right.
#[derive(Debug)]
#[must_use]
pub(super) struct Attempt {
    /// What it counts for, with the counts before and after.
    charged: Vec<(Key, Option<Count>, Count)>,
}

impl Limit {
    /// Lets an attempt to log in through, or says how long to wait. Links have no account's name.
    pub(super) fn begin(&mut self, name: Option<&str>, from: IpAddr, now: Moment) -> Result<Attempt, Duration> {
        let from = network(from);
        // Everybody comes from here, by `ssh -L` or as another user of the machine: one must not shut out the others.
        let mut keys = if from.is_loopback() { Vec::new() } else { vec![Key::Address(from)] };
        if let Some(name) = name {
            keys.extend([Key::Pair(name.to_owned(), from), Key::Account(name.to_owned())]);
        }
        let used_up = self.global_free_at.since(now);
        let global = (used_up + GLOBAL_COST).saturating_sub(GLOBAL_BURST);
        let wait = keys.iter().map(|key| self.wait(key, now)).fold(global, Duration::max);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.global_free_at = self.global_free_at.max(now).plus(GLOBAL_COST);
        let charged = keys.into_iter().map(|key| self.charge(key, now)).collect();
        Ok(Attempt { charged })
    }

    /// Gives back what an attempt was charged that was right. Its account starts afresh, from that address only.
    pub(super) fn succeeded(&mut self, attempt: Attempt) {
        for (key, ..) in &attempt.charged {
            if matches!(key, Key::Pair(..)) {
                self.counts.remove(key);
            }
        }
        self.withdraw(attempt);
    }

    /// Counts a failure with a name among those that somebody is told of.
    pub(super) fn failed(&mut self, name: String, from: IpAddr, now: Moment) {
        // Few that are long ago were people who mistyped; many are told, whenever that is.
        let counts = |untold: &Failures| untold.number >= FREE || now.since(untold.at) < FORGOTTEN;
        let before = self.untold.take().filter(counts).map_or(0, |untold| untold.number);
        self.untold = Some(Failures { number: before.saturating_add(1), name, from, at: now });
    }

    /// What somebody should be told now, which counts as told. Whoever is let in after failures is a reason to tell of them at
    /// once.
    pub(super) fn tell(&mut self, is_in: bool, now: Moment) -> Option<Failures> {
        let is_soon = self.told_at.is_some_and(|told| now.since(told) < TOLD_EVERY);
        let told = self.untold.take_if(|untold| untold.number >= FREE && (is_in || !is_soon))?;
        self.told_at = Some(now);
        Some(told)
    }

    /// Gives back what an attempt was charged whose password nobody looked at.
    pub(super) fn withdraw(&mut self, attempt: Attempt) {
        self.global_free_at = self.global_free_at.minus(GLOBAL_COST);
        for (key, before, after) in attempt.charged {
            let Some(count) = self.counts.get_mut(&key) else { continue };
            if *count != after {
                // Others came in between.
                count.failures = count.failures.saturating_sub(1);
            } else if let Some(before) = before {
                *count = before;
            } else {
                self.counts.remove(&key);
            }
        }
    }

    fn wait(&self, key: &Key, now: Moment) -> Duration {
        let Some(count) = self.counts.get(key) else { return Duration::ZERO };
        let wait = if matches!(key, Key::Account(_)) {
            if drained(*count, now) < PER_ACCOUNT { Duration::ZERO } else { ACCOUNT_WAIT }
        } else {
            wait_after(count.failures)
        };
        // All that is forgotten is older than any wait.
        wait.saturating_sub(now.since(count.last))
    }

    fn charge(&mut self, key: Key, now: Moment) -> (Key, Option<Count>, Count) {
        let before = self.counts.get(&key).copied().filter(|count| !count.is_forgotten(now));
        let failures = match (&key, before) {
            (_, None) => 1,
            (Key::Account(_), Some(count)) => (drained(count, now) + 1).min(PER_ACCOUNT),
            (_, Some(count)) => count.failures.saturating_add(1),
        };
        let after = Count { failures, last: now };
        if !self.counts.contains_key(&key) {
            self.make_room(now);
        }
        self.counts.insert(key.clone(), after);
        (key, before, after)
    }

    fn make_room(&mut self, now: Moment) {
        if self.counts.len() < MOST {
            return;
        }
        self.counts.retain(|_, count| !count.is_forgotten(now));
        if self.counts.len() >= MOST
            && let Some(oldest) = self.counts.iter().min_by_key(|(_, count)| count.last).map(|(key, _)| key.clone())
        {
            self.counts.remove(&oldest);
        }
    }
}

impl Count {
    fn is_forgotten(self, now: Moment) -> bool {
        now.since(self.last) >= FORGOTTEN
    }
}

/// Failures that an account's count still holds.
fn drained(count: Count, now: Moment) -> u32 {
    let gone = now.since(count.last).as_millis() / ACCOUNT_DRAIN.as_millis();
    count.failures.saturating_sub(u32::try_from(gone).unwrap_or(u32::MAX))
}

/// Wait after the last of so many failures.
fn wait_after(failures: u32) -> Duration {
    match failures.saturating_sub(FREE) {
        0 => Duration::ZERO,
        n => FIRST_WAIT.saturating_mul(1 << (n - 1).min(16)).min(LONGEST_WAIT),
    }
}

/// What one client has for itself: its IPv4 address, or the /64 within which it may choose its IPv6 address as it likes.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn at(secs: u64) -> Moment {
        Moment::from_millis(1_000_000).plus(Duration::from_secs(secs))
    }

    #[test]
    fn failures_are_told_once_in_a_while_and_a_mistyped_password_never() {
        let mut limit = Limit::default();
        let mut tell = |n: u64, name: &str, from, is_right: bool| {
            let attempt = limit.begin(Some(name), from, at(n)).expect("let through");
            if is_right {
                limit.succeeded(attempt);
            } else {
                limit.failed(name.to_owned(), from, at(n));
            }
            limit.tell(is_right, at(n)).map(|told| (told.number, told.name))
        };
        let wrong = false;
        for n in 0..4 {
            assert_eq!(tell(n, "ada", HERE, wrong), None);
        }
        assert_eq!(tell(4, "ada", HERE, true), None, "a person who mistyped");
        assert_eq!(tell(4_000, "ada", HERE, wrong), None, "that was long ago");
        for n in 4_001..4_004 {
            assert_eq!(tell(n, "bob", THERE, wrong), None);
        }
        assert_eq!(tell(4_004, "bob", THERE, wrong), Some((5, "bob".to_owned())));
        let loopback = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        for n in 50_000..50_010 {
            let told = tell(n, &format!("guess {n}"), loopback, wrong);
            assert_eq!(told.map(|told| told.0), (n == 50_004).then_some(5), "{n}");
        }
        assert_eq!(tell(50_010, "bob", loopback, true), Some((5, "guess 50009".to_owned())), "somebody is in");
    }

    /// Address number `n` of many.
    fn other(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into()
    }

    /// One failure; the wait where it was not let through.
    fn fail(limit: &mut Limit, name: &str, from: IpAddr, now: Moment) -> Duration {
        limit.begin(Some(name), from, now).err().unwrap_or_default()
    }

    #[test]
    fn five_failures_are_free_and_then_waits_double_up_to_five_minutes() {
        let (mut limit, mut now, mut waits) = (Limit::default(), at(0), Vec::new());
        for _ in 0..17 {
            let wait = fail(&mut limit, "ada", HERE, now);
            if !wait.is_zero() {
                waits.push(wait.as_secs());
                now = now.plus(wait);
                assert_eq!(fail(&mut limit, "ada", HERE, now), Duration::ZERO, "after its wait");
            }
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        let later = now.plus(FORGOTTEN);
        for _ in 0..6 {
            assert_eq!(fail(&mut limit, "ada", HERE, later), Duration::ZERO, "forgotten");
        }
        assert_eq!(fail(&mut limit, "ada", HERE, later).as_secs(), 1);
    }

    #[test]
    fn many_attempts_at_one_moment_are_no_way_around_it() {
        let mut limit = Limit::default();
        let through: Vec<_> = (0..50).filter_map(|_| limit.begin(Some("ada"), HERE, at(0)).ok()).collect();
        assert_eq!(through.len(), 6);
    }

    #[test]
    fn an_address_that_tries_many_names_waits_too() {
        let mut limit = Limit::default();
        for n in 0..6 {
            assert_eq!(fail(&mut limit, &format!("name{n}"), HERE, at(0)), Duration::ZERO);
        }
        assert_ne!(fail(&mut limit, "another", HERE, at(0)), Duration::ZERO);
        assert!(limit.begin(None, HERE, at(0)).is_err(), "nor by a link");
    }

    #[test]
    fn who_fails_elsewhere_does_not_lock_the_owner_out() {
        let mut limit = Limit::default();
        for n in 0..12 {
            fail(&mut limit, "ada", THERE, at(n * 10));
        }
        assert_ne!(fail(&mut limit, "ada", THERE, at(120)), Duration::ZERO);
        assert_eq!(fail(&mut limit, "ada", HERE, at(120)), Duration::ZERO);
        // From a hundred addresses the owner has to wait a moment, whatever they do.
        let mut limit = Limit::default();
        for n in 0..100 {
            assert_eq!(fail(&mut limit, "ada", other(n), at(n.into())), Duration::ZERO, "{n}");
        }
        let now = at(99);
        for n in 100..110 {
            fail(&mut limit, "ada", other(n), now);
        }
        let wait = fail(&mut limit, "ada", HERE, now);
        assert!(!wait.is_zero() && wait <= ACCOUNT_WAIT, "{wait:?}");
        assert_eq!(fail(&mut limit, "ada", HERE, now.plus(ACCOUNT_WAIT)), Duration::ZERO);
        assert_eq!(fail(&mut limit, "bob", other(200), now.plus(ACCOUNT_WAIT)), Duration::ZERO, "others do not");
    }

    #[test]
    fn a_success_clears_the_account_from_that_address_only_and_costs_nothing() {
        let mut limit = Limit::default();
        for from in [HERE, THERE] {
            for _ in 0..6 {
                fail(&mut limit, "ada", from, at(0));
            }
        }
        let attempt = limit.begin(Some("ada"), HERE, at(2)).expect("after its wait");
        limit.succeeded(attempt);
        assert_eq!(limit.wait(&Key::Pair("ada".into(), HERE), at(2)), Duration::ZERO);
        assert_eq!(limit.counts[&Key::Address(HERE)], Count { failures: 6, last: at(0) });
        assert_eq!(limit.counts[&Key::Pair("ada".into(), THERE)].failures, 6);
        // A lab behind one address logs in, one after the other, as often as it likes.
        for n in 0..100 {
            let attempt = limit.begin(Some(&format!("person{n}")), other(1), at(3)).expect("let through");
            limit.succeeded(attempt);
        }
        let attempt = limit.begin(Some("ada"), other(2), at(3)).expect("let through");
        limit.withdraw(attempt);
        assert!(!limit.counts.contains_key(&Key::Pair("ada".into(), other(2))));
    }

    #[test]
    fn one_user_of_the_machine_shuts_no_other_out() {
        let here = IpAddr::from([127, 0, 0, 1]);
        let mut limit = Limit::default();
        for _ in 0..12 {
            fail(&mut limit, "ada", here, at(0));
        }
        assert!(limit.begin(Some("ada"), here, at(0)).is_err());
        assert!(limit.begin(Some("bob"), here, at(0)).is_ok(), "all come from there");
    }

    #[test]
    fn all_together_get_twenty_failures_a_second() {
        let mut limit = Limit::default();
        let mut failed = |now| {
            let failures = (0..1_000).filter(|n| fail(&mut limit, &format!("name{n}"), other(*n), now).is_zero());
            failures.count()
        };
        assert_eq!([at(0), at(0), at(1), at(100)].map(&mut failed), [20, 0, 20, 20]);
    }

    #[test]
    fn its_memory_is_bounded() {
        let mut limit = Limit::default();
        let mut now = at(0);
        for n in 0..3_400 {
            now = now.plus(GLOBAL_COST);
            assert_eq!(fail(&mut limit, &format!("name{n}"), other(n), now), Duration::ZERO);
            assert!(limit.counts.len() <= MOST);
        }
        assert_eq!(limit.counts.len(), MOST);
        assert!(limit.counts.contains_key(&Key::Address(other(3_399))));
        fail(&mut limit, "ada", HERE, now.plus(FORGOTTEN));
        assert_eq!(limit.counts.len(), 3, "what is forgotten went first");
    }

    #[test]
    fn a_client_with_many_ipv6_addresses_is_one() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(network(address("2001:db8:1:2:3:4:5:6")), network(address("2001:db8:1:2::1")));
        assert_ne!(network(address("2001:db8:1:3::1")), network(address("2001:db8:1:2::1")));
        assert_eq!(network(address("::ffff:192.0.2.1")), HERE);
    }
}

//! Sessions, in memory. Pure: the time is passed in. What of them is not on disk yet is known here, and written by the store.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    time::Duration,
};

use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{Person, Role};
use crate::{
    secret::{Secret, hex},
    time::Timestamp,
};

/// Time for which a session lasts, however much it is used.
pub const SESSION_LIFETIME: Duration = Duration::from_hours(7 * 24);
/// Time without a request after which a session ends.
const UNUSED: Duration = Duration::from_hours(12);
/// Most sessions at once, each of about 300 bytes. The one that was not used for longest makes room.
const MOST: usize = 1_000;
/// Most sessions of one person, so that nobody logs everybody else out by logging in. Their own make room.
const MOST_OF_ONE: usize = 50;

/// SHA-256 of a token. What is stored of a token of 256 random bits: it opens nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Digest([u8; 32]);

impl Digest {
    pub(super) fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Eight hex digits, to tell one from another in a table.
    fn id(self) -> String {
        hex(&self.0[..4])
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({}…)", self.id())
    }
}

/// Token of 256 random bits in hexadecimal, from a cryptographic generator that the kernel seeds.
pub(super) fn token() -> Secret {
    Secret::new(hex(&rand::random::<[u8; 32]>()))
}

/// Beginning of the cookies that were made over TLS.
const OVER_TLS: &str = "s-";

/// Value of a cookie, of which can be told how it was made.
pub(super) fn cookie(over_tls: bool) -> Secret {
    let token = token();
    if over_tls { Secret::new(format!("{OVER_TLS}{}", token.expose())) } else { token }
}

/// Whether a cookie is good for this way: one that went over a network in the clear, where others may have read it, opens
/// nothing over TLS.
pub fn is_for(cookie: &str, over_tls: bool) -> bool {
    cookie.starts_with(OVER_TLS) == over_tls
}

/// Way on which somebody logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Address that they come from.
    pub from: IpAddr,
    /// Whether that is over labd's own TLS.
    pub over_tls: bool,
}

#[cfg(test)]
impl From<IpAddr> for Way {
    fn from(from: IpAddr) -> Self {
        Self { from, over_tls: false }
    }
}

/// Session that has just begun, with what its browser must keep: labd keeps no more than hashes.
#[derive(Debug)]
pub struct NewSession {
    /// Cookie that each request brings along; see [`is_for`].
    pub cookie: Secret,
    /// Token that each request which changes something brings along in a header, where no other site can put it.
    pub csrf: Secret,
    /// Who it is of.
    pub person: Person,
    /// Time at which it ends, however much it is used.
    pub expires_at: Timestamp,
}

/// Session that a request belongs to.
#[derive(Debug, Clone)]
pub struct Session {
    /// Who it is of.
    pub person: Person,
    /// Time at which it ends, however much it is used.
    pub expires_at: Timestamp,
    /// Name of the session in [`SessionView`].
    pub id: String,
    csrf: Digest,
}

impl Session {
    /// Whether a request that changes something brought the token along that this session's browser was given. Digests are
    /// compared, so that the time it takes tells nothing of the token.
    pub fn admits(&self, csrf: &str) -> bool {
        self.csrf == Digest::of(csrf)
    }
}

/// Session as it is shown to people.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct SessionView {
    /// Name of the session: eight hex digits of its cookie's hash, which open nothing.
    pub id: String,
    /// Name of the person.
    pub name: String,
    /// Role of the person.
    pub role: Role,
    /// Address that it began from.
    pub from: IpAddr,
    /// Time of the login.
    pub since: Timestamp,
    /// Time of the last request.
    pub last_used: Timestamp,
}

/// Session as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) person: Person,
    /// Whether it began with a link. Then its person need not have an account, and none that there is rules over it.
    pub(super) by_link: bool,
    pub(super) csrf: Digest,
    pub(super) from: IpAddr,
    pub(super) began: Timestamp,
    pub(super) used: Timestamp,
}

impl Stored {
    /// Takes a time in the future for the present one: the clock was set back since, and the session would last for longer
    /// than it may.
    fn set_right(&mut self, now: Timestamp) -> bool {
        let was = (self.began, self.used);
        self.began = self.began.min(now);
        self.used = self.used.min(now);
        was != (self.began, self.used)
    }

    fn is_over(&self, now: Timestamp) -> bool {
        now.since(self.began) >= SESSION_LIFETIME || now.since(self.used) >= UNUSED
    }
}

/// All sessions, by the digest of their cookie.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: HashMap<Digest, Stored>,
    /// Those that are not on disk as they are here.
    changed: BTreeSet<Digest>,
    /// Those that ended, and may be on disk still.
    ended: BTreeSet<Digest>,
}

/// Difference between the sessions in memory and those on disk.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    pub(super) put: Vec<(Digest, Stored)>,
    pub(super) ended: Vec<Digest>,
}

impl Sessions {
    /// Adds what was on disk. What began since stays.
    pub(super) fn read(&mut self, found: Vec<(Digest, Stored)>, now: Timestamp) {
        for (cookie, stored) in found {
            if !self.ended.contains(&cookie) {
                self.all.entry(cookie).or_insert(stored);
            }
        }
        self.expire(now);
        self.make_room(MOST, |_| true);
    }

    /// Begins a session, and returns what its browser must keep.
    pub(super) fn begin(&mut self, person: Person, by_link: bool, way: Way, now: Timestamp) -> NewSession {
        self.expire(now);
        self.make_room(MOST_OF_ONE - 1, |stored| stored.person.name == person.name);
        self.make_room(MOST - 1, |_| true);
        let (cookie, csrf) = (cookie(way.over_tls), token());
        let key = Digest::of(cookie.expose());
        let csrf_digest = Digest::of(csrf.expose());
        let from = way.from.to_canonical();
        let stored = Stored { person: person.clone(), by_link, csrf: csrf_digest, from, began: now, used: now };
        self.all.insert(key, stored);
        self.changed.insert(key);
        NewSession { cookie, csrf, person, expires_at: now.plus(SESSION_LIFETIME) }
    }

    /// Session of a cookie, which is used now.
    pub(super) fn used(&mut self, cookie: Digest, now: Timestamp) -> Option<Session> {
        let stored = self.all.get_mut(&cookie)?;
        stored.set_right(now);
        if stored.is_over(now) {
            self.end(|key, _| *key == cookie);
            return None;
        }
        stored.used = now;
        self.changed.insert(cookie);
        Some(Session {
            person: stored.person.clone(),
            expires_at: stored.began.plus(SESSION_LIFETIME),
            id: cookie.id(),
            csrf: stored.csrf,
        })
    }

    /// Whether the session of a cookie goes on. To look is no use of it.
    pub(super) fn goes_on(&self, cookie: &Digest, now: Timestamp) -> bool {
        self.person(cookie, now).is_some()
    }

    /// Person of a session that goes on.
    pub(super) fn person(&self, cookie: &Digest, now: Timestamp) -> Option<&Person> {
        self.all.get(cookie).filter(|stored| !stored.is_over(now)).map(|stored| &stored.person)
    }

    /// Ends the session of a cookie.
    pub(super) fn end_cookie(&mut self, cookie: &str) {
        let cookie = Digest::of(cookie);
        self.end(|key, _| *key == cookie);
    }

    /// Ends the session that is shown under this id; whether there was one.
    pub(super) fn end_id(&mut self, id: &str) -> bool {
        self.end(|key, _| key.id() == id) > 0
    }

    /// Ends each session of a person that `which` names, and returns how many.
    pub(super) fn end_of(&mut self, name: &str, which: Which) -> usize {
        self.end(|_, stored| stored.person.name == name && (which == Which::All || !stored.by_link))
    }

    /// Every session, those that began last first.
    pub(super) fn view(&mut self, now: Timestamp) -> Vec<SessionView> {
        self.expire(now);
        let view = |(cookie, stored): (&Digest, &Stored)| SessionView {
            id: cookie.id(),
            name: stored.person.name.clone(),
            role: stored.person.role,
            from: stored.from,
            since: stored.began,
            last_used: stored.used,
        };
        let mut views: Vec<_> = self.all.iter().map(view).collect();
        views.sort_by(|a, b| b.since.cmp(&a.since).then_with(|| a.id.cmp(&b.id)));
        views
    }

    /// Whether something is not on disk.
    pub(super) fn is_unwritten(&self) -> bool {
        !self.changed.is_empty() || !self.ended.is_empty()
    }

    /// What is not on disk.
    pub(super) fn unwritten(&self) -> Unwritten {
        let put = self.changed.iter().filter_map(|key| Some((*key, self.all.get(key)?.clone()))).collect();
        Unwritten { put, ended: self.ended.iter().copied().collect() }
    }

    /// Takes note of what is on disk now.
    pub(super) fn written(&mut self, written: &Unwritten) {
        for (cookie, stored) in &written.put {
            // One that was used meanwhile is written next time.
            if self.all.get(cookie) == Some(stored) {
                self.changed.remove(cookie);
            }
        }
        for cookie in &written.ended {
            self.ended.remove(cookie);
        }
    }

    fn end(&mut self, which: impl Fn(&Digest, &Stored) -> bool) -> usize {
        let ended: Vec<Digest> = self.all.iter().filter(|(key, s)| which(key, s)).map(|(key, _)| *key).collect();
        for cookie in &ended {
            self.all.remove(cookie);
            self.changed.remove(cookie);
            self.ended.insert(*cookie);
        }
        ended.len()
    }

    fn expire(&mut self, now: Timestamp) {
        for (cookie, stored) in &mut self.all {
            if stored.set_right(now) {
                self.changed.insert(*cookie);
            }
        }
        self.end(|_, stored| stored.is_over(now));
    }

    /// Ends sessions of these until so many are left, those unused for longest first.
    fn make_room(&mut self, left: usize, of: impl Fn(&Stored) -> bool) {
        let mut all: Vec<(Timestamp, Digest)> =
            self.all.iter().filter(|(_, stored)| of(stored)).map(|(key, stored)| (stored.used, *key)).collect();
        if all.len() <= left {
            return;
        }
        all.sort_unstable();
        let gone: BTreeSet<Digest> = all[..all.len() - left].iter().map(|(_, key)| *key).collect();
        self.end(|key, _| gone.contains(key));
    }
}

/// Which of a person's sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// All of them.
    All,
    /// Those that began with the account's password.
    ByPassword,
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const HOUR: Duration = Duration::from_hours(1);

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_millis(1_795_000_000_000 + hours * 3_600_000)
    }

    fn ada() -> Person {
        Person { name: "ada".into(), role: Role::Admin }
    }

    /// Sessions as after a restart that found everything on disk.
    fn restarted(sessions: &Sessions, now: Timestamp) -> Sessions {
        let mut read = Sessions::default();
        read.read(sessions.all.clone().into_iter().collect(), now);
        read
    }

    #[test]
    fn a_session_ends_after_seven_days_however_much_it_is_used() {
        let mut sessions = Sessions::default();
        let new = sessions.begin(ada(), false, FROM.into(), at(0));
        assert_eq!(new.expires_at, at(7 * 24));
        for hours in (0..7 * 24).step_by(11) {
            assert_eq!(
                sessions.used(Digest::of(new.cookie.expose()), at(hours)).expect("there").expires_at,
                new.expires_at
            );
        }
        assert!(sessions.used(Digest::of(new.cookie.expose()), at(7 * 24).minus(Duration::from_millis(1))).is_some());
        assert!(sessions.used(Digest::of(new.cookie.expose()), at(7 * 24)).is_none());
        assert!(sessions.used(Digest::of(new.cookie.expose()), at(0)).is_none(), "for good");
    }

    #[test]
    fn a_session_that_nobody_uses_ends_after_twelve_hours() {
        let mut sessions = Sessions::default();
        let new = sessions.begin(ada(), false, FROM.into(), at(0));
        assert_eq!(sessions.view(at(11)).len(), 1);
        assert!(restarted(&sessions, at(12)).view(at(12)).is_empty());
        assert!(
            sessions.used(Digest::of(new.cookie.expose()), at(11)).is_some(),
            "looking at the list is no use of it"
        );
        assert!(sessions.used(Digest::of(new.cookie.expose()), at(22)).is_some());
        assert!(sessions.view(at(34)).is_empty());
    }

    #[test]
    fn a_clock_set_back_neither_ends_a_session_nor_makes_it_last_longer() {
        let mut sessions = Sessions::default();
        let new = sessions.begin(ada(), false, FROM.into(), at(1_000));
        let mut read = restarted(&sessions, at(0));
        for sessions in [&mut sessions, &mut read] {
            assert!(sessions.used(Digest::of(new.cookie.expose()), at(0)).is_some());
            assert!(sessions.is_unwritten());
            for hours in (0..7 * 24).step_by(11) {
                assert!(sessions.used(Digest::of(new.cookie.expose()), at(hours)).is_some());
            }
            assert!(sessions.used(Digest::of(new.cookie.expose()), at(7 * 24)).is_none());
        }
    }

    #[test]
    fn a_thousand_are_kept_and_the_one_unused_for_longest_makes_room() {
        let mut sessions = Sessions::default();
        let begin = |sessions: &mut Sessions, ms: i64| {
            let person = Person { name: format!("person {ms}"), ..ada() };
            sessions.begin(person, false, FROM.into(), Timestamp::from_millis(ms))
        };
        let (first, second) = (begin(&mut sessions, 0), begin(&mut sessions, 1));
        for n in 2..1_000 {
            begin(&mut sessions, n);
        }
        let now = Timestamp::from_millis(1_000);
        assert!(sessions.used(Digest::of(first.cookie.expose()), now).is_some());
        begin(&mut sessions, 1_001);
        assert_eq!(sessions.view(now).len(), 1_000);
        assert!(sessions.used(Digest::of(second.cookie.expose()), now).is_none());
        assert!(sessions.used(Digest::of(first.cookie.expose()), now).is_some());
    }

    #[test]
    fn one_person_logs_nobody_else_out_by_logging_in() {
        let mut sessions = Sessions::default();
        let other = sessions.begin(Person { name: "other".into(), ..ada() }, false, FROM.into(), at(0));
        let first = sessions.begin(ada(), false, FROM.into(), at(0));
        let now = at(0).plus(HOUR / 60);
        for _ in 0..MOST {
            sessions.begin(ada(), false, FROM.into(), now);
        }
        assert_eq!(sessions.view(now).len(), MOST_OF_ONE + 1);
        assert!(sessions.used(Digest::of(other.cookie.expose()), now).is_some());
        assert!(sessions.used(Digest::of(first.cookie.expose()), now).is_none());
    }

    #[test]
    fn what_is_written_is_what_changed() {
        let mut sessions = Sessions::default();
        let new = sessions.begin(ada(), false, FROM.into(), at(0));
        let first = sessions.unwritten();
        assert_eq!((first.put.len(), first.ended.len()), (1, 0));
        sessions.used(Digest::of(new.cookie.expose()), at(0).plus(HOUR / 2));
        sessions.written(&first);
        let second = sessions.unwritten();
        assert_eq!(second.put[0].1.used, at(0).plus(HOUR / 2), "used while it was written");
        sessions.written(&second);
        assert!(!sessions.is_unwritten());
        sessions.end_cookie(new.cookie.expose());
        let third = sessions.unwritten();
        assert_eq!((third.put.len(), third.ended.len()), (0, 1));
        // A disk that can be read only now does not bring it back.
        sessions.read(second.put, at(1));
        assert!(sessions.used(Digest::of(new.cookie.expose()), at(1)).is_none());
        sessions.written(&third);
        assert!(!sessions.is_unwritten());
    }
}

//! Passwords' hashes: argon2id, few at once.

use std::sync::Arc;

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::{self, phc::PasswordHash},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::rules;
use crate::secret::Secret;

/// Cost of a hash, of OWASP's Password Storage Cheat Sheet: 19 MiB and 2 passes on one lane. 25 to 40 ms in a release on 2 busy
/// cores, half a second in a debug build.
const COST: Params = Params::DEFAULT;
const _: () = assert!(COST.m_cost() == 19 * 1024 && COST.t_cost() == 2 && COST.p_cost() == 1);

/// Most computations at once: each has 19 MiB and a core to itself, and the lab's training has the rest.
const AT_ONCE: usize = 2;
/// Most callers that wait for one; at 30 ms each the last of them waits half a second.
const WAITING: usize = 32;

/// Bytes of salt, as RFC 9106 recommends.
const SALT: usize = 16;

/// Maker and checker of passwords' hashes. Clones share their limit.
#[derive(Debug, Clone)]
pub(super) struct Hasher {
    argon2: Argon2<'static>,
    running: Arc<Semaphore>,
    /// Those that run and those that wait.
    inside: Arc<Semaphore>,
}

/// Leave to compute one hash after the other. Goes along to the thread that computes: a caller who hangs up ends no computation.
#[derive(Debug)]
pub(super) struct Turn {
    _running: OwnedSemaphorePermit,
    _inside: OwnedSemaphorePermit,
}

/// Too many callers wait already.
#[derive(Debug)]
pub(super) struct Busy;

/// Result of checking a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Another password, or nobody's.
    Wrong,
    /// The password.
    Right {
        /// Whether its hash has another cost than labd gives them now.
        is_outdated: bool,
    },
}

impl Hasher {
    /// Hasher at labd's cost.
    pub(super) fn new() -> Self {
        Self::with(COST)
    }

    pub(super) fn with(cost: Params) -> Self {
        Self {
            argon2: Argon2::new(Algorithm::Argon2id, Version::V0x13, cost),
            running: Arc::new(Semaphore::new(AT_ONCE)),
            inside: Arc::new(Semaphore::new(AT_ONCE + WAITING)),
        }
    }

    /// Waits for a turn to compute, in order of arrival.
    pub(super) async fn turn(&self) -> Result<Turn, Busy> {
        let inside = Arc::clone(&self.inside).try_acquire_owned().map_err(|_| Busy)?;
        // Neither is ever closed.
        let running = Arc::clone(&self.running).acquire_owned().await.map_err(|_| Busy)?;
        Ok(Turn { _running: running, _inside: inside })
    }

    /// Hash of a password with a new salt, as a PHC string. Computes for long.
    pub(super) fn hash(&self, password: &Secret, _: &Turn) -> Result<Secret, String> {
        let salt: [u8; SALT] = rand::random();
        let hash = self.argon2.hash_password_with_salt(password.expose().as_bytes(), &salt);
        hash.map(|hash| Secret::new(hash.to_string())).map_err(|e| in_words(&e))
    }

    /// Whether it is the password of this hash; nobody's takes as long to be wrong. Computes for long.
    pub(super) fn check(&self, password: &Secret, stored: Option<&Secret>, turn: &Turn) -> Result<Verdict, String> {
        if !rules::may_be_one(password.expose()) {
            return Ok(Verdict::Wrong);
        }
        let Some(stored) = stored.and_then(|hash| PasswordHash::new(hash.expose()).ok()) else {
            return self.hash(password, turn).map(|_| Verdict::Wrong);
        };
        match self.argon2.verify_password(password.expose().as_bytes(), &stored) {
            Ok(()) => Ok(Verdict::Right { is_outdated: !self.is_current(&stored) }),
            Err(password_hash::Error::OutOfMemory) => Err(in_words(&password_hash::Error::OutOfMemory)),
            Err(_) => Ok(Verdict::Wrong),
        }
    }

    fn is_current(&self, hash: &PasswordHash) -> bool {
        let ours = self.argon2.params();
        hash.algorithm == Algorithm::Argon2id.ident()
            && hash.version == Some(Version::V0x13.into())
            && Params::try_from(hash)
                .is_ok_and(|p| (p.m_cost(), p.t_cost(), p.p_cost()) == (ours.m_cost(), ours.t_cost(), ours.p_cost()))
    }
}

fn in_words(e: &password_hash::Error) -> String {
    match e {
        password_hash::Error::OutOfMemory => "there is not enough memory to check a password".into(),
        e => format!("a password's hash cannot be computed: {e}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::task::{Context, Waker};

    use super::*;

    /// Hasher at the least cost, for tests that are not about it.
    pub(crate) fn cheap() -> Hasher {
        Hasher::with(Params::new(8, 1, 1, None).expect("allowed"))
    }

    #[tokio::test]
    async fn a_hash_is_argon2id_at_the_recommended_cost_and_salted() {
        let hasher = Hasher::new();
        let turn = hasher.turn().await.expect("free");
        let password = Secret::new("correct horse");
        let hash = hasher.hash(&password, &turn).expect("made");
        assert!(hash.expose().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.expose());
        let verdict = |password, stored| hasher.check(&Secret::new(password), stored, &turn).expect("checked");
        assert_eq!(verdict("correct horse", Some(&hash)), Verdict::Right { is_outdated: false });
        assert_eq!(verdict("correct hors", Some(&hash)), Verdict::Wrong);
        let cheap = cheap();
        let hash = cheap.hash(&password, &turn).expect("made");
        assert_ne!(cheap.hash(&password, &turn).expect("made"), hash);
        assert_eq!(verdict("correct horse", Some(&hash)), Verdict::Right { is_outdated: true });
        assert_eq!(cheap.check(&password, None, &turn), Ok(Verdict::Wrong));
        assert_eq!(cheap.check(&password, Some(&Secret::new("damaged")), &turn), Ok(Verdict::Wrong));
    }

    #[tokio::test]
    async fn two_compute_at_once_thirty_two_wait_and_others_are_turned_away() {
        let hasher = cheap();
        let turns = [hasher.turn().await.expect("free"), hasher.turn().await.expect("free")];
        let mut waiting: Vec<_> = (0..32).map(|_| Box::pin(hasher.turn())).collect();
        for turn in &mut waiting {
            assert!(turn.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        assert!(hasher.turn().await.is_err());
        drop(turns);
        for turn in waiting {
            drop(turn.await.expect("its turn came"));
        }
    }
}

//! Turns: how many requests that take long are answered at once. What charts and accounts take is bounded by that, in memory
//! and in threads.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinError,
};

use super::{ApiError, Shared};

/// Largest number of them. Chosen: a page asks for two at once.
const AT_ONCE: usize = 8;

/// Turns that there are, for all listeners together.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

/// Turn of a request; it ends with this.
pub(super) struct Turn(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl FromRequestParts<Shared> for Turn {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, Shared(state): &Shared) -> Result<Self, ApiError> {
        let busy = |_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy: try again in a moment");
        Arc::clone(&state.turns.0).try_acquire_owned().map(Self).map_err(busy)
    }
}

/// Answer that takes the processor for a while, made in a thread of its own. The turn is held until it is made, also where nobody
/// waits for it any more.
pub(super) async fn worked_out<T: Send + 'static>(
    turn: Turn,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(move || {
        let made = work();
        drop(turn);
        made
    });
    done.await.map_err(lost)
}

/// Answer that others work out in their threads, waited for in a task of its own: the turn is held until it is there, also where
/// nobody waits for it any more.
pub(super) async fn waited_for<T: Send + 'static>(
    turn: Turn,
    answer: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::spawn(async move {
        let made = answer.await;
        drop(turn);
        made
    });
    done.await.map_err(lost)?
}

fn lost(_: JoinError) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be worked out; try again")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::http::{
        admin_router,
        testing::{Lab, ask, status_and_text},
    };

    #[tokio::test]
    async fn charts_and_accounts_share_so_many_turns() {
        let lab = Lab::new();
        let job = "/api/v1/jobs/raysubmit_1";
        let paths = [
            "/api/v1/events".to_owned(),
            "/api/v1/gpus/history".to_owned(),
            "/api/v1/usage".to_owned(),
            "/api/v1/usage.csv".to_owned(),
            format!("{job}/curve"),
            format!("{job}/curve.csv"),
        ];
        let taken = u32::try_from(AT_ONCE).expect("few");
        let taken = Arc::clone(&lab.state.turns.0).acquire_many_owned(taken).await.expect("open");
        for path in &paths {
            let (status, text) = status_and_text(ask(admin_router(lab.state.clone()), "GET", path).await).await;
            assert!(status == 503 && text.contains("busy"), "{path}: {status} {text}");
        }
        drop(taken);
        for path in paths.iter().cycle().take(3 * AT_ONCE) {
            let got = ask(admin_router(lab.state.clone()), "GET", path).await;
            assert_eq!(got.status(), 200, "{path}");
        }
        assert_eq!(lab.state.turns.0.available_permits(), AT_ONCE, "each was given back");
    }

    #[tokio::test]
    async fn whoever_goes_away_keeps_the_turn_until_the_answer_is_there() {
        let lab = Lab::new();
        for path in ["events", "gpus/history", "gpus/history?hours=2", "usage", "usage.csv"] {
            let path = format!("/api/v1/{path}");
            let asked = ask(admin_router(lab.state.clone()), "GET", &path);
            assert!(asked.now_or_never().is_none(), "{path}: gone before it is answered");
            assert_eq!(lab.state.turns.0.available_permits(), AT_ONCE - 1, "{path}");
            let all = u32::try_from(AT_ONCE).expect("few");
            drop(Arc::clone(&lab.state.turns.0).acquire_many_owned(all).await.expect("given back"));
        }
    }
}

//! `GET /api/v1/snapshot` and `GET /api/v1/stream`: the lab at present, and whenever it changes.

use std::{borrow::Cow, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::State as From,
    response::sse::{Event, Sse},
};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::Instant;

use super::{State, stopped, who::Who};
use crate::{snapshot::Snapshot, time::Timestamp};

/// Time between two snapshots on one stream: at most 4 a second.
const PACE: Duration = Duration::from_millis(250);
/// Time between two signs of life on a quiet stream; the page calls the connection lost after three.
const ALIVE: Duration = Duration::from_secs(5);

/// The snapshot itself.
pub(super) async fn get(From(state): From<State>, Extension(who): Extension<Who>) -> Json<Snapshot> {
    let snapshot = Arc::clone(&state.snapshot.borrow());
    Json(shown(&snapshot, &who).into_owned())
}

/// Snapshot as it is shown to whoever asks: what jobs run is not for everybody.
fn shown<'a>(snapshot: &'a Snapshot, who: &Who) -> Cow<'a, Snapshot> {
    if *who != Who::Nobody {
        return Cow::Borrowed(snapshot);
    }
    let mut snapshot = snapshot.clone();
    for job in &mut snapshot.jobs {
        "(shown after a login)".clone_into(&mut job.entrypoint);
        job.message.clear();
        job.note = None;
    }
    Cow::Owned(snapshot)
}

/// Stream of the lab: event `alive` carries labd's time, so that ages are right whatever the visitor's clock says;
/// event `snapshot` carries the snapshot: the current one at once, then each change, the newest only.
pub(super) async fn stream(
    From(state): From<State>,
    Extension(who): Extension<Who>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let mut snapshots = state.snapshot;
    snapshots.mark_changed();
    let changes = stream::unfold((snapshots, Instant::now(), who), |(mut snapshots, not_before, who)| async move {
        tokio::select! {
            biased;
            changed = async {
                tokio::time::sleep_until(not_before).await;
                snapshots.changed().await
            } => {
                changed.ok()?;
                let snapshot = Arc::clone(&snapshots.borrow_and_update());
                let event = Event::default().event("snapshot").json_data(shown(&snapshot, &who)).unwrap_or_default();
                Some((event, (snapshots, Instant::now() + PACE, who)))
            }
            () = tokio::time::sleep(ALIVE) => Some((alive(), (snapshots, not_before, who))),
        }
    });
    Sse::new(stream::once(async { alive() }).chain(changes).map(Ok).take_until(stopped(state.shutdown)))
}

fn alive() -> Event {
    Event::default().event("alive").data(Timestamp::now().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{
        admin_router, public_router,
        testing::{Lab, Sse as Lines, ask, json},
    };

    #[tokio::test]
    async fn it_is_what_the_lab_says() {
        let lab = Lab::new();
        for (router, for_nobody) in [(public_router(lab.state.clone()), true), (admin_router(lab.state.clone()), false)]
        {
            let answer = ask(router, "GET", "/api/v1/snapshot").await;
            assert_eq!(answer.headers()["cache-control"], "no-store");
            assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
            let mut got: Snapshot = serde_json::from_value(json(answer).await).expect("a snapshot");
            if for_nobody {
                assert!(!got.jobs[0].entrypoint.contains("train.py"), "{:?}", got.jobs[0]);
                got.jobs.clone_from(&lab.snapshot.borrow().jobs);
            }
            assert_eq!(got, **lab.snapshot.borrow());
        }
    }

    #[tokio::test]
    async fn changes_are_streamed_coalesced_and_end_at_shutdown() {
        let lab = Lab::new();
        let mut lines = Lines::new(ask(public_router(lab.state.clone()), "GET", "/api/v1/stream").await);
        assert_eq!(lines.next().await.expect("an event").0, "alive");
        let (name, data) = lines.next().await.expect("an event");
        assert_eq!(name, "snapshot");
        assert!(data.contains("\"lab\":\"test-lab\""));

        let begun = Instant::now();
        for restarts in 1..=100 {
            lab.snapshot.send_modify(|s| Arc::make_mut(s).services[0].restarts = restarts);
        }
        let (_, data) = lines.next().await.expect("an event");
        assert!(data.contains("\"restarts\":100"), "only the newest");
        assert!(begun.elapsed() >= Duration::from_millis(240), "not faster than 4 a second");
        assert_eq!(lines.next().await.expect("an event").0, "alive", "nothing else was left to say");

        lab.shutdown.send_replace(true);
        assert_eq!(lines.next().await, None);
    }
}

//! `GET /api/v1/snapshot` and `GET /api/v1/stream`: the lab at present, and whenever it changes.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::State as From,
    response::sse::{Event, Sse},
};
use futures_util::{Stream, StreamExt as _, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::{sync::watch, time::Instant};

use super::{
    ApiError, State, events,
    extract::{LastEventId, Query},
    feed::{Audience, Feed, Message, Seen, without_commands},
    stopped,
    who::{Who, log_in_first},
};
use crate::{snapshot::Snapshot, time::Timestamp};

/// Time between two snapshots on one stream: at most 4 a second.
const PACE: Duration = Duration::from_millis(250);
/// Time between two signs of life on a quiet stream; the page calls the connection lost after three.
const ALIVE: Duration = Duration::from_secs(5);

/// The snapshot itself.
pub(super) async fn get(From(state): From<State>, Extension(who): Extension<Who>) -> Json<Snapshot> {
    Json(Arc::unwrap_or_clone(shown(&state, &who)))
}

/// Snapshot as whoever asks is shown it.
pub(super) fn shown(state: &State, who: &Who) -> Arc<Snapshot> {
    let snapshot = Arc::clone(&state.snapshot.borrow());
    match audience(who) {
        Audience::People => snapshot,
        Audience::Nobody => Arc::new(without_commands(&snapshot)),
    }
}

fn audience(who: &Who) -> Audience {
    if *who == Who::Nobody { Audience::Nobody } else { Audience::People }
}

/// Query for the stream.
#[derive(Debug, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Whether changes are told as such.
    #[serde(default)]
    deltas: bool,
    /// Whether what happens is told, too, as `/events/stream` does: a browser has few connections. For the lab's people.
    #[serde(default)]
    events: bool,
}

/// Stream of the lab: event `alive` carries labd's time, so that ages are right whatever the visitor's clock says;
/// event `snapshot` carries the snapshot: the current one at once, then each change, the newest only. With
/// `deltas=true` a change is an event `delta` with the members that differ, null for one that is gone. A client that
/// comes back with `Last-Event-ID` hears what it missed. With `events=true` event `event` carries one of the journal.
pub(super) async fn stream(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    LastEventId(heard): LastEventId,
    Query(wanted): Query<Wanted>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let audience = audience(&who);
    if wanted.events && audience == Audience::Nobody {
        return Err(log_in_first());
    }
    let mut snapshots = state.snapshot;
    snapshots.mark_changed();
    // Where events are told, too, the number of the newest is behind a dot in each id.
    let (heard, told) = heard.as_deref().map(|id| id.split_once('.').unwrap_or((id, ""))).unzip();
    let told = told.and_then(|seq| seq.parse().ok()).filter(|&seq: &i64| seq >= 0);
    let client = Client {
        feed: state.feed,
        snapshots,
        audience,
        deltas: wanted.deltas,
        seen: heard.and_then(Seen::read),
        heard: heard.map(str::to_owned),
        place: heard.unwrap_or_default().to_owned(),
        journal: wanted.events.then(|| events::Feed::new(state.journal, told, None)),
    };
    let first = (client, Instant::now(), Instant::now() + ALIVE);
    let changes = stream::unfold(first, |(mut client, not_before, alive_at)| async move {
        tokio::select! {
            biased;
            // Readings may change each second: the time is told beside them, since a clock may be set meanwhile.
            () = tokio::time::sleep_until(alive_at) => Some((vec![alive()], (client, not_before, Instant::now() + ALIVE))),
            event = happened(&mut client.journal) => {
                Some((vec![events::told(&event, client.id())], (client, not_before, alive_at)))
            }
            changed = async {
                tokio::time::sleep_until(not_before).await;
                client.snapshots.changed().await
            } => {
                changed.ok()?;
                let events = client.news();
                Some((events, (client, Instant::now() + PACE, alive_at)))
            }
        }
    });
    let changes = changes.flat_map(stream::iter);
    Ok(Sse::new(stream::once(async { alive() }).chain(changes).map(Ok).take_until(stopped(state.shutdown))))
}

/// The next event of the journal; never for who does not hear them, and when there will be none.
async fn happened(journal: &mut Option<events::Feed>) -> crate::snapshot::Event {
    if let Some(journal) = journal
        && let Some(event) = journal.next().await
    {
        return event;
    }
    std::future::pending().await
}

/// One open stream.
struct Client {
    feed: Feed,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    audience: Audience,
    deltas: bool,
    seen: Option<Seen>,
    /// Id that it came back with.
    heard: Option<String>,
    /// Id of the snapshot or delta that it heard last.
    place: String,
    /// Events of the journal, for who wants them.
    journal: Option<events::Feed>,
}

impl Client {
    /// Events that this client has not heard.
    fn news(&mut self) -> Vec<Event> {
        let now = Arc::clone(&self.snapshots.borrow_and_update());
        if !self.deltas {
            let id = format!("at-{}", now.taken_at.as_millis());
            if self.heard.take().is_some_and(|heard| heard == id) {
                return Vec::new();
            }
            self.place = id;
            let whole = Event::default().event("snapshot").id(self.id());
            let whole = match self.audience {
                Audience::People => whole.json_data(&*now),
                Audience::Nobody => whole.json_data(without_commands(&now)),
            };
            return vec![whole.unwrap_or_default()];
        }
        let messages = self.feed.since(self.seen, &now, self.audience);
        if let Some(last) = messages.last() {
            self.seen = Some(last.id);
        }
        let event = |m: Message| {
            self.place = m.id.to_string();
            Event::default().id(self.id()).event(m.name).data(m.data)
        };
        messages.into_iter().map(event).collect()
    }

    /// Place that it has come to, by which it comes back.
    fn id(&self) -> String {
        match self.journal.as_ref().and_then(events::Feed::last) {
            Some(seq) => format!("{}.{seq}", self.place),
            None => self.place.clone(),
        }
    }
}

fn alive() -> Event {
    Event::default().event("alive").data(Timestamp::now().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::{
            admin_router, public_router,
            testing::{Lab, Sse as Lines, ask, ask_with, json},
        },
        journal::{Entry, Kind},
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
        // Before the first of them is made.
        let begun = Instant::now();
        assert_eq!(lines.next().await.expect("an event").0, "alive");
        let (name, data) = lines.next().await.expect("an event");
        assert_eq!(name, "snapshot");
        assert!(data.contains("\"lab\":\"test-lab\""));

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

    #[tokio::test]
    async fn a_client_that_comes_back_hears_what_it_missed() {
        let lab = Lab::new();
        let path = "/api/v1/stream?deltas=true";
        let mut lines = Lines::new(ask(public_router(lab.state.clone()), "GET", path).await);
        assert_eq!(lines.next().await.expect("an event").0, "alive");
        assert_eq!(lines.next().await.expect("an event").0, "snapshot");
        let id = lines.last_id().expect("an id");
        drop(lines);
        lab.snapshot.send_modify(|s| Arc::make_mut(s).services[0].restarts = 7);
        let answer = ask_with(public_router(lab.state.clone()), path, "last-event-id", &id).await;
        let mut lines = Lines::new(answer);
        assert_eq!(lines.next().await.expect("an event").0, "alive");
        let (name, data) = lines.next().await.expect("an event");
        assert!(name == "delta" && data.contains("\"restarts\":7") && !data.contains("\"labd\""), "{name} {data}");
    }

    #[tokio::test]
    async fn one_connection_tells_the_lab_and_what_happens() {
        let lab = Lab::new();
        let happens = |what: &str| {
            let (at, reason) = (Timestamp::now(), "a test".to_owned());
            lab.state.journal.record(Entry { at, service: None, kind: Kind::Daemon, what: what.to_owned(), reason });
        };
        happens("long ago");
        lab.state.journal.flush().await;
        let path = "/api/v1/stream?deltas=true&events=true";
        let mut lines = Lines::new(ask(admin_router(lab.state.clone()), "GET", path).await);
        assert_eq!(lines.next().await.expect("an event").0, "alive");
        assert_eq!(lines.next().await.expect("an event").0, "snapshot");
        let before = lines.last_id().expect("an id");
        happens("now");
        let (name, data) = lines.next().await.expect("an event");
        assert!(name == "event" && data.contains("\"what\":\"now\""), "{name} {data}");
        drop(lines);
        happens("meanwhile");
        lab.state.journal.flush().await;
        lab.snapshot.send_modify(|s| Arc::make_mut(s).services[0].restarts = 7);
        // Whoever saw neither hears both, and of the lab only what changed.
        let answer = ask_with(admin_router(lab.state.clone()), path, "last-event-id", &before).await;
        let mut lines = Lines::new(answer);
        let mut heard = Vec::new();
        for _ in 0..4 {
            let (name, data) = lines.next().await.expect("an event");
            heard.push(if name == "event" { data } else { name });
        }
        let told = |what: &str| heard.iter().filter(|h| h.contains(&format!("\"what\":\"{what}\""))).count();
        assert_eq!((told("long ago"), told("now"), told("meanwhile")), (0, 1, 1), "{heard:?}");
        assert!(heard.contains(&"delta".to_owned()), "{heard:?}");
        let answer = ask(public_router(lab.state.clone()), "GET", path).await;
        assert_eq!(answer.status(), 401, "what happens is for people");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_wants_the_whole_hears_it_again_only_when_it_is_another() {
        let lab = Lab::new();
        let path = "/api/v1/stream";
        let mut lines = Lines::new(ask(public_router(lab.state.clone()), "GET", path).await);
        assert_eq!(lines.next().await.expect("an event").0, "alive");
        assert_eq!(lines.next().await.expect("an event").0, "snapshot");
        let id = lines.last_id().expect("an id");
        drop(lines);
        let mut lines = Lines::new(ask_with(public_router(lab.state.clone()), path, "last-event-id", &id).await);
        for _ in 0..3 {
            assert_eq!(lines.next().await.expect("an event").0, "alive");
        }
        lab.snapshot.send_modify(|s| {
            let s = Arc::make_mut(s);
            s.taken_at = s.taken_at.plus(Duration::from_millis(1));
            s.services[0].restarts = 7;
        });
        let (name, data) = lines.next().await.expect("an event");
        assert!(name == "snapshot" && data.contains("\"restarts\":7") && data.contains("\"labd\""), "{name} {data}");
        assert_ne!(lines.last_id(), Some(id));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_is_told_beside_changes_too() {
        let lab = Lab::new();
        let mut lines = Lines::new(ask(public_router(lab.state.clone()), "GET", "/api/v1/stream").await);
        let mut told = Vec::new();
        for restarts in 0..12 {
            lab.snapshot.send_modify(|s| Arc::make_mut(s).services[0].restarts = restarts);
            while let Ok(event) = tokio::time::timeout(Duration::from_secs(1), lines.next()).await {
                told.push(event.expect("it goes on").0);
            }
        }
        assert_eq!(told.iter().filter(|name| *name == "alive").count(), 3, "{told:?}");
    }
}

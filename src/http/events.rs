//! `GET /api/v1/events` and `GET /api/v1/events/stream`: events of the past, and events as they happen.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    Json,
    extract::State as From,
    http::StatusCode,
    response::sse::{self, KeepAlive, Sse},
};
use futures_util::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{
    ApiError, State,
    extract::{LastEventId, Query, within},
    stopped,
    turn::{Turn, waited_for},
};
use crate::{
    journal::{EventQuery, Journal},
    snapshot::Event,
};

const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 1_000;
/// Number of events that a stream reads at once of what was missed.
const MISSED: usize = 200;

/// Query for events.
#[derive(Debug, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only events with a higher number, oldest first; without it, the newest.
    #[schemars(range(max = i64::MAX))]
    after: Option<u64>,
    /// Largest number of events; 100 when absent.
    #[schemars(range(max = LIMIT_MAX))]
    limit: Option<u32>,
    /// Only events of this service.
    service: Option<String>,
}

impl Wanted {
    fn query(self) -> Result<EventQuery, ApiError> {
        let limit = within("limit", self.limit.unwrap_or(LIMIT), 0, LIMIT_MAX)?;
        Ok(EventQuery {
            newest: self.after.is_none(),
            after_seq: self.after.map(number).transpose()?,
            service: self.service,
            kind: None,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
        })
    }
}

/// Number of an event.
fn number(after: u64) -> Result<i64, ApiError> {
    let wrong =
        |_| ApiError::new(StatusCode::BAD_REQUEST, format!("`after` must be a whole number from 0 to {}", i64::MAX));
    i64::try_from(after).map_err(wrong)
}

/// Query for the stream of events.
#[derive(Debug, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Followed {
    /// Only events with a higher number, those that happened already first; without it, what happens from now on.
    #[schemars(range(max = i64::MAX))]
    after: Option<u64>,
    /// Only events of this service.
    service: Option<String>,
}

/// Events in the order they happened.
pub(super) async fn get(
    From(state): From<State>,
    turn: Turn,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Vec<Event>>, ApiError> {
    let query = wanted.query()?;
    waited_for(turn, async move { Ok(Json(state.journal.events(query).await)) }).await
}

/// Stream of events: event `event` carries one, its number as id. Begins after `after` or `Last-Event-ID`, without
/// either with what happens from now on.
pub(super) async fn stream(
    From(state): From<State>,
    LastEventId(seen): LastEventId,
    Query(wanted): Query<Followed>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let wanted_after = wanted.after.map(number).transpose()?;
    let seen = seen.and_then(|id| id.parse().ok());
    let feed = Feed::new(state.journal, seen.or(wanted_after), wanted.service);
    let events = stream::unfold(feed, |mut feed| async move { Some((feed.next().await?, feed)) })
        .map(|e| Ok(told(&e, e.seq.to_string())))
        .take_until(stopped(state.shutdown));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(5))))
}

/// Event of a stream that carries one of the journal.
pub(super) fn told(event: &Event, id: String) -> sse::Event {
    sse::Event::default().event("event").id(id).json_data(event).unwrap_or_default()
}

/// Events of the journal for one client, in their order and each once.
pub(super) struct Feed {
    journal: Journal,
    live: broadcast::Receiver<Event>,
    pending: VecDeque<Event>,
    /// Number of the newest that the client was told, or that there was when it came.
    last: Option<i64>,
    /// Whether the journal has some that came neither live nor from `pending`.
    behind: bool,
    /// What is being read of those: whoever stops waiting for the next one has it read no second time.
    reading: Option<BoxFuture<'static, Vec<Event>>>,
    service: Option<String>,
}

impl Feed {
    /// Those after this number, or those from now on; of one service, or of all.
    pub(super) fn new(journal: Journal, after: Option<i64>, service: Option<String>) -> Self {
        // Subscribed first, read later: what happens in between comes twice and is told once.
        let live = journal.subscribe();
        let (last, behind) = (after.or_else(|| journal.newest()), after.is_some());
        Self { journal, live, pending: VecDeque::new(), last, behind, reading: None, service }
    }

    /// Number after which the client is told what happens.
    pub(super) const fn last(&self) -> Option<i64> {
        self.last
    }

    /// The next one; `None` when there will be none. Whoever stops waiting for it loses nothing.
    pub(super) async fn next(&mut self) -> Option<Event> {
        loop {
            let event = match self.pending.pop_front() {
                Some(event) => event,
                None if self.behind => {
                    self.pending = self.missed().await.into();
                    // What comes live is as new as the last page, or newer.
                    self.behind = self.pending.len() == MISSED;
                    continue;
                }
                None => match self.live.recv().await {
                    Ok(event) => event,
                    Err(RecvError::Lagged(_)) => {
                        self.behind = true;
                        continue;
                    }
                    Err(RecvError::Closed) => return None,
                },
            };
            if Some(event.seq) > self.last && self.service.as_ref().is_none_or(|s| event.service.as_ref() == Some(s)) {
                self.last = Some(event.seq);
                return Some(event);
            }
        }
    }

    /// The next page of the journal.
    async fn missed(&mut self) -> Vec<Event> {
        let (journal, service, after_seq) = (&self.journal, &self.service, self.last);
        let reading = self.reading.get_or_insert_with(|| {
            let query = EventQuery { after_seq, service: service.clone(), kind: None, limit: MISSED, newest: false };
            let journal = journal.clone();
            async move { journal.events(query).await }.boxed()
        });
        let page = reading.await;
        self.reading = None;
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::{
            admin_router,
            testing::{Lab, Sse as Lines, ask, json, status_and_text},
        },
        journal::{Entry, Kind},
        time::Timestamp,
    };

    fn record(lab: &Lab, service: &str, what: &str) {
        lab.state.journal.record(Entry {
            at: Timestamp::now(),
            service: Some(service.into()),
            kind: Kind::State,
            what: what.into(),
            reason: "a test".into(),
        });
    }

    #[tokio::test]
    async fn they_can_be_paged_and_filtered() {
        let lab = Lab::new();
        for (service, what) in [("minio", "starting"), ("ray-head", "starting"), ("minio", "ready")] {
            record(&lab, service, what);
        }
        lab.state.journal.flush().await;
        for (query, want) in [
            ("", vec![1, 2, 3]),
            ("?limit=2", vec![2, 3]),
            ("?after=0&limit=2", vec![1, 2]),
            ("?after=2", vec![3]),
            ("?service=minio", vec![1, 3]),
            ("?service=nobody", vec![]),
        ] {
            let answer = ask(admin_router(lab.state.clone()), "GET", &format!("/api/v1/events{query}")).await;
            let events: Vec<Event> = serde_json::from_value(json(answer).await).expect("events");
            assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), want, "{query}");
        }
        for query in ["?after=x", "?limit=-1", "?sevrice=minio"] {
            let answer = ask(admin_router(lab.state.clone()), "GET", &format!("/api/v1/events{query}")).await;
            let (status, text) = status_and_text(answer).await;
            assert!(status == 400 && text.starts_with("{\"detail\":"), "{query}: {status} {text}");
        }
    }

    #[tokio::test]
    async fn what_was_missed_is_told_whole_however_many_pages_it_has() {
        let lab = Lab::new();
        let many = 2 * MISSED + 50;
        for n in 1..=many {
            record(&lab, "minio", &n.to_string());
        }
        lab.state.journal.flush().await;
        let mut feed = Feed::new(lab.state.journal.clone(), Some(0), None);
        record(&lab, "minio", "live");
        for n in (1..=many).map(|n| n.to_string()).chain(["live".to_owned()]) {
            // Whoever stops waiting in between loses nothing.
            let event = match feed.next().now_or_never() {
                Some(at_once) => at_once,
                None => feed.next().await,
            };
            assert_eq!(event.expect("one").what, n);
        }
        assert!(feed.next().now_or_never().is_none(), "each once");
    }

    #[tokio::test]
    async fn the_stream_goes_on_where_the_list_ended() {
        let lab = Lab::new();
        for what in ["starting", "ready", "unhealthy"] {
            record(&lab, "minio", what);
        }
        lab.state.journal.flush().await;
        let router = admin_router(lab.state.clone());
        let mut lines = Lines::new(ask(router, "GET", "/api/v1/events/stream?after=1&service=minio").await);
        record(&lab, "ray-head", "ready");
        record(&lab, "minio", "backoff");
        for what in ["ready", "unhealthy", "backoff"] {
            let (name, data) = lines.next().await.expect("an event");
            assert!(name == "event" && data.contains(&format!("\"what\":\"{what}\"")), "{data}");
        }
        lab.shutdown.send_replace(true);
        assert_eq!(lines.next().await, None);
    }
}

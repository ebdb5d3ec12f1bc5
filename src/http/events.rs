//! `GET /api/v1/events` and `GET /api/v1/events/stream`: events of the past, and events as they happen.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use axum::{
    Json,
    extract::{Query, State as From, rejection::QueryRejection},
    http::HeaderMap,
    response::sse::{self, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt as _, stream};
use serde::Deserialize;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{ApiError, State, stopped};
use crate::{
    journal::{EventQuery, Journal},
    snapshot::Event,
};

const LIMIT: usize = 100;
const LIMIT_MAX: usize = 10_000;

/// Query for events.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only events with a higher number, oldest first; without it, the newest.
    after: Option<i64>,
    limit: Option<usize>,
    service: Option<String>,
}

impl Wanted {
    fn query(self) -> EventQuery {
        EventQuery {
            newest: self.after.is_none(),
            after_seq: self.after,
            service: self.service,
            kind: None,
            limit: self.limit.unwrap_or(LIMIT).min(LIMIT_MAX),
        }
    }
}

/// Events in the order they happened.
pub(super) async fn get(
    From(state): From<State>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<Vec<Event>>, ApiError> {
    let Query(wanted) = wanted?;
    Ok(Json(state.journal.events(wanted.query()).await))
}

/// Stream of events: event `event` carries one, its number as id. Begins after `after` or `Last-Event-ID`, without
/// either with what happens from now on.
pub(super) async fn stream(
    From(state): From<State>,
    headers: HeaderMap,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let Query(wanted) = wanted?;
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let service = wanted.service.clone();
    let live = state.journal.subscribe();
    // Subscribed first, read second: what happens in between comes twice and is told once.
    let (last, pending) = match seen.or(wanted.after) {
        Some(after) => (after, missed(&state.journal, after, service.clone()).await),
        None => (0, VecDeque::new()),
    };
    let feed = Feed { journal: state.journal, live, pending, last, service };
    let events = stream::unfold(feed, |mut feed| async move { Some((feed.next().await?, feed)) })
        .map(|e| Ok(sse::Event::default().event("event").id(e.seq.to_string()).json_data(e).unwrap_or_default()))
        .take_until(stopped(state.shutdown));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(5))))
}

struct Feed {
    journal: Journal,
    live: broadcast::Receiver<Event>,
    pending: VecDeque<Event>,
    last: i64,
    service: Option<String>,
}

impl Feed {
    async fn next(&mut self) -> Option<Event> {
        loop {
            let event = match self.pending.pop_front() {
                Some(event) => event,
                None => match self.live.recv().await {
                    Ok(event) => event,
                    Err(RecvError::Lagged(_)) => {
                        self.pending = missed(&self.journal, self.last, self.service.clone()).await;
                        continue;
                    }
                    Err(RecvError::Closed) => return None,
                },
            };
            if event.seq > self.last && self.service.as_ref().is_none_or(|s| event.service.as_ref() == Some(s)) {
                self.last = event.seq;
                return Some(event);
            }
        }
    }
}

async fn missed(journal: &Journal, after: i64, service: Option<String>) -> VecDeque<Event> {
    journal
        .events(EventQuery { after_seq: Some(after), service, kind: None, limit: LIMIT_MAX, newest: true })
        .await
        .into()
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
            assert!(status == 400 && text.starts_with("{\"error\":"), "{query}: {status} {text}");
        }
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

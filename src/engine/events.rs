//! Engine events, and whether the engine answers. One task; it owns the connection that events come through, and
//! publishes two things: the engine's view (`watch`) and the events (`mpsc`).

use std::{collections::VecDeque, future::Future, time::Duration};

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream::BoxStream};
use tokio::sync::{mpsc, watch};

use super::{EngineError, EngineEvent, EngineEventKind};
use crate::{snapshot::EngineView, time::Timestamp};

/// Time between two tries to reach an engine that is away.
const ENGINE_RETRY: Duration = Duration::from_secs(1);
/// Longest pause between the engine's old events before they count as told.
const QUIET: Duration = Duration::from_millis(50);
/// Time in which an engine has to show that it lives on after a container was stopped.
const ENGINE_VERDICT: Duration = Duration::from_secs(5);

/// Source of events: what listening needs of a container engine.
pub trait Source: Send + Sync + 'static {
    /// Connects again and asks what the engine is.
    fn view(&self) -> impl Future<Output = Result<EngineView, EngineError>> + Send;
    /// Events of the engine from `since` on, or from now. Ends when the connection drops.
    fn events(
        &self,
        since: Option<Timestamp>,
    ) -> impl Future<Output = Result<BoxStream<'static, EngineEvent>, EngineError>> + Send;
}

/// Publishes whether the engine answers, and its events from `since` on, for as long as it does. What happened while
/// nobody listened is told before the engine is said to answer, so that nothing is done in ignorance of it.
pub fn spawn<E: Source>(
    engine: E,
    since: Option<Timestamp>,
) -> (watch::Receiver<EngineView>, mpsc::Receiver<EngineEvent>) {
    let (tell, view) = watch::channel(EngineView::Connecting);
    let (nudge, nudges) = mpsc::channel(256);
    tokio::spawn(watch(engine, since, tell, nudge));
    (view, nudges)
}

/// Task of [`spawn`]; ends when nobody hears the events any more.
pub(crate) async fn watch<E: Source>(
    engine: E,
    mut since: Option<Timestamp>,
    tell: watch::Sender<EngineView>,
    nudge: mpsc::Sender<EngineEvent>,
) {
    while !nudge.is_closed() {
        let reason = match listen(&engine, &tell, &nudge, &mut since).await {
            Ok(()) => {
                // The stream ended, with the engine or without: until it answers again nothing is known for sure.
                tell.send_replace(EngineView::Connecting);
                since = since.or(Some(Timestamp::now()));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            Err(reason) => reason,
        };
        tell.send_if_modified(|view| match view {
            EngineView::Unreachable { reason: old, .. } if *old == reason => false,
            _ => {
                tracing::error!("{reason}");
                *view = EngineView::Unreachable { since: Timestamp::now(), reason };
                true
            }
        });
        tokio::time::sleep(ENGINE_RETRY).await;
    }
}

/// Listens on one connection to the engine: says that it answers, and passes its events on until the stream ends. Fails
/// in one line when the engine does not answer.
async fn listen(
    engine: &impl Source,
    tell: &watch::Sender<EngineView>,
    nudge: &mpsc::Sender<EngineEvent>,
    since: &mut Option<Timestamp>,
) -> Result<(), String> {
    let view = engine.view().await.map_err(|e| e.to_string())?;
    let answered = Timestamp::now();
    // What was heard in the future was heard before the clock was set back.
    let since_then = since.map(|at| at.min(answered));
    let mut events = engine.events(since_then).await.map_err(|e| e.to_string())?;
    let mut reachable = Some(view);
    let mut early = VecDeque::new();
    loop {
        let event = if let Some(event) = early.pop_front() {
            event
        } else if let Some(view) = &reachable {
            // Old events come at once; the first silence is the present.
            match tokio::time::timeout(QUIET, events.next()).await {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(_) => {
                    tell.send_replace(view.clone());
                    reachable = None;
                    continue;
                }
            }
        } else {
            match events.next().await {
                Some(event) => event,
                None => return Ok(()),
            }
        };
        *since = Some(event.at);
        let stopped = (event.what == EngineEventKind::Stopped).then(|| event.clone());
        if nudge.send(event).await.is_err() {
            return Ok(());
        }
        let Some(event) = stopped else { continue };
        // By the clock only what is told at the beginning is old: it may be set back while the engine is listened to.
        let present = reachable.is_none() || event.at > answered;
        if present && !lives_on(engine, &mut events, &mut early).await {
            return Err("the container engine is ending; start it again (systemctl start docker)".to_owned());
        }
        if nudge.send(EngineEvent { what: EngineEventKind::StoppedByHand, ..event }).await.is_err() {
            return Ok(());
        }
    }
}

/// Whether the engine accepts a new connection and its events go on: one that ends stops its containers too, but it
/// stops listening first. Events that come meanwhile are kept in `early`.
async fn lives_on(
    engine: &impl Source,
    events: &mut (impl Stream<Item = EngineEvent> + Unpin),
    early: &mut VecDeque<EngineEvent>,
) -> bool {
    let check = tokio::time::timeout(ENGINE_VERDICT, engine.view());
    tokio::pin!(check);
    let answers = loop {
        tokio::select! {
            biased;
            event = events.next() => match event {
                Some(event) => early.push_back(event),
                None => return false,
            },
            checked = &mut check => break matches!(checked, Ok(Ok(_))),
        }
    };
    // A new engine may have answered in the old one's place: then the old one's stream has ended.
    while let Some(event) = events.next().now_or_never() {
        match event {
            Some(event) => early.push_back(event),
            None => return false,
        }
    }
    answers
}

//! Log of a job, followed over whatever happens to the job: `ray job submit` and `ray job logs -f` wait on this
//! WebSocket.
//!
//! Ray's own ends with the head, with the driver's node and with the attempt. This one is read from Ray's, attempt by
//! attempt; while the head is away it waits, and since Ray begins at the file's start each time, what was sent is skipped.
//! One line says when a lost attempt is replaced. It ends when the newest attempt has.

use std::time::Duration;

use axum::{
    extract::{
        FromRequestParts as _, Path, Request, State as From,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::header,
    response::{IntoResponse as _, Response},
};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{net::TcpStream, sync::watch, time::Instant};
use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest as _};

use super::{FrontDoor, away};
use crate::{
    jobs::{
        Ledger,
        decide::{Job, Next, Outcome, State},
    },
    ray::{Endpoint, HttpJobs},
    snapshot::JobStatus,
    text::path_segment,
};

/// Longest wait for Ray's log to begin.
const BEGINS: Duration = Duration::from_secs(10);
/// Time between two tries to read on, and between two checks of the ledger.
const AGAIN: Duration = Duration::from_secs(1);
/// Time after its end in which a job's log may still bring something; Ray reads the file once a second.
const LAST_WORDS: Duration = Duration::from_secs(4);
/// Time between two signs of life, so that no tunnel on the way closes a log that is silent.
const ALIVE: Duration = Duration::from_secs(30);

/// Error: the client has gone, and nothing more is to be done.
struct Gone;

/// Result of reading from Ray.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    /// Closed by Ray: the job has ended, or the node it runs on.
    Closed,
    /// Broken off, or not to be had.
    Broken,
}

pub(super) async fn get(From(door): From<FrontDoor>, Path(id): Path<String>, request: Request) -> Response {
    if !door.is_ours(request.headers()) {
        return door.pass(request).await;
    }
    match door.ledger.attempts(&id).await {
        None => away("labd is shutting down"),
        Some(attempts) if attempts.is_empty() => {
            door.wait_for_head().await;
            door.pass(request).await
        }
        Some(_) => match WebSocketUpgrade::from_request_parts(&mut request.into_parts().0, &()).await {
            Ok(upgrade) => upgrade.on_upgrade(move |socket| async move {
                let mut follower = Follower { door, socket, log: Log::default() };
                if follower.follow(id).await.is_ok() {
                    let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
                    // The client may have gone meanwhile.
                    let _ = follower.socket.send(Message::Close(Some(frame))).await;
                    while let Ok(Some(Ok(_))) = tokio::time::timeout(AGAIN, follower.socket.recv()).await {}
                }
            }),
            Err(rejection) => rejection.into_response(),
        },
    }
}

struct Follower {
    door: FrontDoor,
    socket: WebSocket,
    log: Log,
}

impl Follower {
    async fn follow(&mut self, id: String) -> Result<(), Gone> {
        let ledger = self.door.ledger.clone();
        let mut view = ledger.watch();
        let (mut now_at, mut whole, mut noted) = (id.clone(), false, false);
        loop {
            let attempts = ledger.attempts(&id).await.ok_or(Gone)?;
            // When its owner deleted it, nothing more comes.
            let Some(job) = attempts.into_iter().find(|job| job.id == now_at) else { return Ok(()) };
            if let Some(note) = job.note.as_ref().filter(|_| !noted) {
                self.say(note).await?;
            }
            noted = true;
            let Job { state, .. } = job;
            match state {
                State::Queued { .. } => self.pause(&mut view).await?,
                State::Submitted(_) => {
                    let read = self.read(&now_at).await?;
                    let told = match self.door.head().filter(|_| read == Read::Closed) {
                        Some(head) => {
                            HttpJobs::new(head).status(&now_at).await.ok().flatten().map(|(status, _)| status)
                        }
                        None => None,
                    };
                    // Ray reads to the end of the file once the job has ended.
                    whole = told.is_some_and(JobStatus::is_final);
                    match told {
                        Some(JobStatus::Succeeded | JobStatus::Stopped) => return Ok(()),
                        // What that means is the ledger's to say.
                        _ => self.pause(&mut view).await?,
                    }
                    while whole && is_open(&ledger, &now_at).await {
                        self.pause(&mut view).await?;
                    }
                }
                State::Ended { outcome, .. } => {
                    if !std::mem::take(&mut whole) {
                        self.read(&now_at).await?;
                    }
                    match outcome {
                        Outcome::Lost { why, next: Next::As(next) } => {
                            self.say(&format!("{now_at} was lost ({why}); {next} continues")).await?;
                            self.log = Log { at_line_start: true, ..Log::default() };
                            now_at = next;
                        }
                        Outcome::Lost { why, next: Next::Not(reason) } => {
                            return self.say(&format!("{now_at} was lost ({why}); {reason}")).await;
                        }
                        Outcome::Succeeded | Outcome::Stopped | Outcome::Failed { .. } => return Ok(()),
                    }
                }
            }
        }
    }

    /// Reads Ray's log of one attempt, and passes on what was not sent yet.
    async fn read(&mut self, id: &str) -> Result<Read, Gone> {
        let ledger = self.door.ledger.clone();
        let Some(endpoint) = self.door.head() else { return Ok(Read::Broken) };
        let Ok(Ok(mut ray)) = tokio::time::timeout(BEGINS, open(&endpoint, id)).await else { return Ok(Read::Broken) };
        self.log.begin();
        let (mut heard, mut alive) = (Instant::now(), Instant::now());
        let mut tick = tokio::time::interval(AGAIN);
        loop {
            tokio::select! {
                message = ray.next() => match message {
                    Some(Ok(tungstenite::Message::Text(text))) => {
                        heard = Instant::now();
                        let new = self.log.take(&text).to_owned();
                        self.send(new).await?;
                    }
                    Some(Ok(tungstenite::Message::Close(frame))) => {
                        let normal = frame.is_none_or(|f| u16::from(f.code) == close_code::NORMAL);
                        let _ = ray.flush().await;
                        return Ok(if normal { Read::Closed } else { Read::Broken });
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Ok(Read::Broken),
                },
                message = self.socket.recv() => heard_from_client(message.as_ref())?,
                _ = tick.tick() => {
                    // What is dead may never say so.
                    if heard.elapsed() >= LAST_WORDS && !is_open(&ledger, id).await {
                        return Ok(Read::Closed);
                    }
                    if alive.elapsed() >= ALIVE {
                        alive = Instant::now();
                        self.socket.send(Message::Ping(bytes::Bytes::new())).await.map_err(|_| Gone)?;
                    }
                }
            }
        }
    }

    /// Waits a moment, or until the ledger changes.
    async fn pause(&mut self, view: &mut watch::Receiver<std::sync::Arc<crate::jobs::LedgerView>>) -> Result<(), Gone> {
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => Ok(()),
            changed = view.changed() => changed.map_err(|_| Gone),
            message = self.socket.recv() => heard_from_client(message.as_ref()),
        }
    }

    /// Sends a line of labd's own.
    async fn say(&mut self, text: &str) -> Result<(), Gone> {
        let line = if self.log.at_line_start { format!("labd: {text}\n") } else { format!("\nlabd: {text}\n") };
        self.send(line).await
    }

    async fn send(&mut self, text: String) -> Result<(), Gone> {
        if text.is_empty() {
            return Ok(());
        }
        self.socket.send(Message::Text(text.into())).await.map_err(|_| Gone)
    }
}

/// Whether the ledger still waits for the job's end.
async fn is_open(ledger: &Ledger, id: &str) -> bool {
    let attempts = ledger.attempts(id).await.unwrap_or_default();
    attempts.first().is_some_and(|job| !job.is_over())
}

fn heard_from_client(message: Option<&Result<Message, axum::Error>>) -> Result<(), Gone> {
    match message {
        None | Some(Err(_) | Ok(Message::Close(_))) => Err(Gone),
        Some(Ok(_)) => Ok(()),
    }
}

/// Opens Ray's log of one attempt, from its beginning.
async fn open(
    head: &Endpoint,
    id: &str,
) -> Result<tokio_tungstenite::WebSocketStream<TcpStream>, Box<tungstenite::Error>> {
    let url = format!("ws://{}/api/jobs/{}/logs/tail", head.dashboard, path_segment(id));
    let mut request = url.into_client_request().map_err(Box::new)?;
    if let Ok(mut token) = header::HeaderValue::from_str(&format!("Bearer {}", head.token.expose())) {
        token.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, token);
    }
    let stream = TcpStream::connect(head.dashboard).await.map_err(|e| Box::new(e.into()))?;
    let (stream, _) = tokio_tungstenite::client_async(request, stream).await.map_err(Box::new)?;
    Ok(stream)
}

/// Log of an attempt: how much of it was sent. Pure.
#[derive(Debug)]
struct Log {
    /// Number of bytes sent.
    sent: usize,
    /// Number of bytes read from Ray since it began again.
    read: usize,
    /// Whether what was sent last ended a line.
    at_line_start: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { sent: 0, read: 0, at_line_start: true }
    }
}

impl Log {
    /// Begins again, as Ray does at the file's start.
    const fn begin(&mut self) {
        self.read = 0;
    }

    /// Part of a piece that was not sent yet.
    fn take<'a>(&mut self, piece: &'a str) -> &'a str {
        let before = self.sent.saturating_sub(self.read);
        self.read += piece.len();
        if self.read <= self.sent {
            return "";
        }
        self.sent = self.read;
        // A file that was replaced may differ: better a piece twice than none.
        let new = piece.get(before..).unwrap_or(piece);
        self.at_line_start = new.ends_with('\n');
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_skipped_however_ray_cuts_it() {
        let mut log = Log::default();
        assert_eq!([log.take("epoch 1\n"), log.take("epo")], ["epoch 1\n", "epo"]);
        assert!(!log.at_line_start);
        log.begin();
        assert_eq!(["ep", "och 1\nep", "och 2\nä", "ö\n"].map(|piece| log.take(piece)), ["", "", "ch 2\nä", "ö\n"]);
        assert!(log.at_line_start);
        log.begin();
        assert_eq!(log.take("epoch 1\nepoch 2\näö\nepoch 3\n"), "epoch 3\n");
        // Another file.
        log.begin();
        assert_eq!(log.take(&"ä".repeat(20)), "ä".repeat(20));
    }
}

//! One request to one service, streamed both ways.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, HttpBody as _},
    http::{Request, Response, StatusCode},
};
use futures_util::{StreamExt as _, stream};
use hyper::{body::Incoming, client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};

use super::guard::Own;

/// How long the door waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For a connection. Services are on this machine: one that does not take it is stuck.
    pub(super) connect: Duration,
    /// For the next byte of a request.
    pub(super) body: Duration,
    /// For the first byte of an answer, from the last byte of the request: a large query of Prometheus takes minutes.
    pub(super) answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), body: Duration::from_mins(1), answer: Duration::from_mins(5) }
    }
}

impl Patience {
    /// The same, with a shorter wait for the answer.
    pub(super) fn at_most(self, answer: Duration) -> Self {
        Self { answer: self.answer.min(answer), ..self }
    }
}

/// Reason why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nobody takes the connection.
    Away,
    /// The connection ended before the answer, or what came was none.
    Broken,
    /// No answer in time.
    Silent,
    /// The client's request stopped coming.
    Stalled,
    /// The client's request broke off.
    Cut,
}

impl Fault {
    /// Answer that says so.
    pub(super) fn told(self, name: &str) -> Own {
        let (status, text) = match self {
            Self::Away => return not_ready(name),
            Self::Broken => (StatusCode::BAD_GATEWAY, format!("{name} ended the connection without an answer")),
            Self::Silent => (StatusCode::GATEWAY_TIMEOUT, format!("{name} does not answer")),
            Self::Stalled => (StatusCode::REQUEST_TIMEOUT, "the rest of the request did not come".to_owned()),
            Self::Cut => (StatusCode::BAD_REQUEST, "the request broke off".to_owned()),
        };
        Own::line(status, text)
    }
}

/// Answer for a service that is not there.
pub(super) fn not_ready(name: &str) -> Own {
    Own::line(StatusCode::SERVICE_UNAVAILABLE, format!("{name} is not ready; the lab's page says why"))
}

/// Sends the request, whose address is path and query, and returns the answer as soon as its head is there.
///
/// Each has a connection of its own: on one machine that costs nothing, a service that was restarted leaves none behind
/// that is dead, and what is left over of one request never meets another's.
pub(super) async fn send(
    address: SocketAddr,
    request: Request<Body>,
    patience: Patience,
) -> Result<Response<Incoming>, Fault> {
    let stream = timeout(patience.connect, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| Fault::Away)?.map_err(|_| Fault::Away)?;
    // It only delays small messages.
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Fault::Broken)?;
    // It ends with the answer's body, or when that is dropped.
    tokio::spawn(connection.with_upgrades());
    let (moved, fault) = (Moved::default(), Arc::new(OnceLock::new()));
    let request = request.map(|body| timed(body, patience.body, moved.clone(), Arc::clone(&fault)));
    tokio::select! {
        answer = sender.send_request(request) => answer.map_err(|_| *fault.get().unwrap_or(&Fault::Broken)),
        () = moved.silent(patience.answer) => Err(Fault::Silent),
    }
}

/// Moment at which a request's body last moved. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Moved(Arc<Mutex<Instant>>);

impl Default for Moved {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Moved {
    fn lock(&self) -> MutexGuard<'_, Instant> {
        // An instant is never half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that it moves now.
    pub(crate) fn touch(&self) {
        *self.lock() = Instant::now();
    }

    /// Waits until nothing has moved for this time.
    pub(crate) async fn silent(&self, patience: Duration) {
        loop {
            let until = *self.lock() + patience;
            sleep_until(until).await;
            if *self.lock() + patience <= until {
                return;
            }
        }
    }
}

/// Body as it is, which fails when no piece of it comes for this time; `fault` is why it failed.
pub(super) fn timed(body: Body, patience: Duration, moved: Moved, fault: Arc<OnceLock<Fault>>) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let pieces = stream::unfold(body.into_data_stream(), move |mut body| {
        let (moved, fault) = (moved.clone(), Arc::clone(&fault));
        async move {
            let piece = match timeout(patience, body.next()).await {
                Ok(Some(Ok(piece))) => Ok(piece),
                Ok(Some(Err(e))) => Err((e, Fault::Cut)),
                Ok(None) => return None,
                Err(late) => Err((axum::Error::new(late), Fault::Stalled)),
            };
            moved.touch();
            let piece = piece.map_err(|(error, why)| {
                // The first is what ended it.
                let _ = fault.set(why);
                error
            });
            Some((piece, body))
        }
    });
    Body::from_stream(pieces)
}

/// Joins two upgraded connections until either side goes, or until `ended`.
pub(crate) fn tunnel(ours: OnUpgrade, theirs: OnUpgrade, ended: impl Future<Output = ()> + Send + 'static) {
    let joined = async move {
        if let (Ok(ours), Ok(theirs)) = tokio::join!(ours, theirs) {
            let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
            // Either side may go at any time.
            let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = joined => {}
            () = ended => {}
        }
    });
}

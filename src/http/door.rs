//! The front door: labd on the address of Ray's dashboard. Everything passes on to the head, WebSockets included, so
//! that `RAY_ADDRESS`, `ray job submit` and the dashboard work unchanged; submissions, requests to stop and packages go by
//! the ledger on their way.
//!
//! | request | head is there | head is away |
//! |---|---|---|
//! | `POST /api/jobs/` | recorded, handed in, Ray's answer | recorded, answered as Ray answers, handed in later |
//! | `POST /api/jobs/{id}/stop` | noted, passed on for the attempt that runs | noted, passed on later |
//! | `PUT /api/packages/gcs/{name}` | passed on while a copy is kept | kept, handed in with its job |
//! | `GET /api/packages/gcs/{name}` | passed on, unless no copy is kept | answered from what is kept |
//! | `GET /api/version` | passed on | the last answer, which every client asks for first |
//! | everything else | passed on | `503` with `Retry-After` |
//!
//! Ray checks its token itself; labd checks it, too, before anything is recorded, since what is recorded is handed in under
//! labd's own. The same router answers on the host, and through the relay on the lab's network (`images/run/relay.py`).

pub mod installs;
mod pass;
#[cfg(test)]
mod tests;

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State as From},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, delete, get, post},
};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::sync::watch;

use crate::{
    jobs::{
        Ledger, Stop,
        packages::{Incoming, Packages},
        submission::Submission,
    },
    ray::{Endpoint, Gcs, RayView, Reply},
    secret::Secret,
};

/// Ray's own limit for a request's body (`DASHBOARD_CLIENT_MAX_SIZE`) is 100 MiB; a submission is a few KiB.
const LARGEST_SUBMISSION: usize = 100 << 20;
/// A head that is there answers within this; longer waits are streams, which have begun by then.
const ANSWER: Duration = Duration::from_mins(1);
/// When a client should ask again: a head that died is back in about 5 s.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// What the front door answers from.
#[derive(Clone)]
pub struct Door {
    ledger: Ledger,
    packages: Packages,
    endpoint: watch::Receiver<Option<Endpoint>>,
    ray: watch::Receiver<std::sync::Arc<RayView>>,
    token: Secret,
    client: Client<HttpConnector, Body>,
}

impl Door {
    /// A front door for the lab whose Ray token is `token`.
    pub fn new(
        ledger: Ledger,
        packages: Packages,
        endpoint: watch::Receiver<Option<Endpoint>>,
        ray: watch::Receiver<std::sync::Arc<RayView>>,
        token: Secret,
    ) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { ledger, packages, endpoint, ray, token, client }
    }

    /// Where the head answers now.
    fn head(&self) -> Option<Endpoint> {
        let away = matches!(self.ray.borrow().gcs, Gcs::Unreachable { .. });
        self.endpoint.borrow().clone().filter(|_| !away)
    }

    /// Whether the request carries Ray's token, in one of the three places where Ray looks for it.
    fn is_trusted(&self, headers: &HeaderMap) -> bool {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let bearer = |v: &str| v.strip_prefix("Bearer ").map(str::to_owned);
        let given = match (text("authorization"), text("x-ray-authorization")) {
            (Some(v), _) | (None, Some(v)) => bearer(v),
            (None, None) => text("cookie").and_then(|cookies| {
                let pair = cookies.split(';').find_map(|c| c.trim().strip_prefix("ray-authentication-token="));
                pair.map(str::to_owned)
            }),
        };
        given.is_some_and(|given| self.token.is(&given))
    }

    /// Whether a page in a browser sent it, which Ray refuses: the page may be anybody's.
    fn is_browser(headers: &HeaderMap) -> bool {
        let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok());
        agent.is_some_and(|a| a.starts_with("Mozilla")) || headers.keys().any(|k| k.as_str().starts_with("sec-fetch-"))
    }

    /// Whether labd may act on it, instead of only passing it on.
    fn is_ours(&self, headers: &HeaderMap) -> bool {
        self.is_trusted(headers) && !Self::is_browser(headers)
    }

    async fn pass(&self, request: Request) -> Response {
        match self.head() {
            Some(head) => pass::pass(&self.client, head.dashboard, request, ANSWER).await.unwrap_or_else(|e| away(&e)),
            None => away("the Ray head is away"),
        }
    }
}

/// The router for both listeners.
pub fn router(door: Door) -> Router {
    Router::new()
        .route("/labd/healthz", get(|| async { "ok\n" }))
        .route("/api/version", get(version))
        .route("/api/jobs", post(submit).fallback(any(pass_on)))
        .route("/api/jobs/", post(submit).fallback(any(pass_on)))
        .route("/api/jobs/{id}", delete(remove).fallback(any(pass_on)))
        .route("/api/jobs/{id}/stop", post(stop).fallback(any(pass_on)))
        .route("/api/packages/gcs/{name}", get(has_package).put(put_package).fallback(any(pass_on)))
        .fallback(any(pass_on))
        .with_state(door)
}

async fn pass_on(From(door): From<Door>, request: Request) -> Response {
    door.pass(request).await
}

async fn version(From(door): From<Door>, request: Request) -> Response {
    let known = door.ray.borrow().version.clone();
    match (door.head(), known) {
        (None, Some(version)) if door.is_trusted(request.headers()) => {
            ([(header::CONTENT_TYPE, "application/json")], version).into_response()
        }
        _ => door.pass(request).await,
    }
}

async fn submit(From(door): From<Door>, request: Request) -> Response {
    if !door.is_ours(request.headers()) {
        return door.pass(request).await;
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = Limited::new(body, LARGEST_SUBMISSION).collect().await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, "a submission of more than 100 MiB is none\n").into_response();
    };
    let body = body.to_bytes();
    match Submission::parse(&body) {
        Some(submission) => match door.ledger.submit(submission).await {
            Some(reply) => answer(reply),
            None => away("labd is shutting down"),
        },
        // What is wrong with it, Ray says best.
        None if door.head().is_some() => door.pass(Request::from_parts(parts, Body::from(body))).await,
        None => {
            let text = "not a submission: a JSON object with a string `entrypoint`, and `metadata` and `runtime_env` as objects\n";
            (StatusCode::BAD_REQUEST, text).into_response()
        }
    }
}

async fn stop(From(door): From<Door>, Path(id): Path<String>, mut request: Request) -> Response {
    if !door.is_ours(request.headers()) {
        return door.pass(request).await;
    }
    let stopped = || ([(header::CONTENT_TYPE, "application/json")], "{\"stopped\": true}").into_response();
    match door.ledger.stop(&id).await {
        Some(Stop::Done) => stopped(),
        Some(Stop::Pass(now)) if now != id => {
            // The attempt that runs now is meant, whichever of its ids a person remembers.
            if let Ok(uri) = format!("/api/jobs/{now}/stop").parse() {
                *request.uri_mut() = uri;
            }
            stop_at(&door, request, stopped).await
        }
        Some(Stop::Pass(_)) => stop_at(&door, request, stopped).await,
        None => away("labd is shutting down"),
    }
}

/// While the head is away the ledger remembers, and tells Ray later.
async fn stop_at(door: &Door, request: Request, stopped: impl Fn() -> Response) -> Response {
    if door.head().is_some() { door.pass(request).await } else { stopped() }
}

async fn remove(From(door): From<Door>, Path(id): Path<String>, request: Request) -> Response {
    let ours = door.is_ours(request.headers());
    let answer = door.pass(request).await;
    if ours && answer.status().is_success() {
        door.ledger.forget(&id).await;
    }
    answer
}

async fn has_package(From(door): From<Door>, Path(name): Path<String>, request: Request) -> Response {
    if !door.is_trusted(request.headers()) {
        return door.pass(request).await;
    }
    match (door.packages.find(&name), door.head()) {
        (Some(_), Some(_)) => door.pass(request).await,
        (Some(_), None) => StatusCode::OK.into_response(),
        // Ray may have it, the ledger does not: the client uploads it once more.
        (None, _) => (StatusCode::NOT_FOUND, format!("Package gcs://{name} does not exist")).into_response(),
    }
}

async fn put_package(From(door): From<Door>, Path(name): Path<String>, request: Request) -> Response {
    if !door.is_ours(request.headers()) {
        return door.pass(request).await;
    }
    let mut incoming = match door.packages.receive(&name).await {
        Some(Ok(incoming)) => incoming,
        Some(Err(e)) => {
            tracing::warn!("the package {name} is not kept: {e}");
            return door.pass(request).await;
        }
        None => return door.pass(request).await,
    };
    if door.head().is_some() {
        let (parts, body) = request.into_parts();
        let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let (body, copy) = pass::tee(body, length, incoming);
        let answer = door.pass(Request::from_parts(parts, body)).await;
        if answer.status().is_success()
            && let Ok(Some(incoming)) = copy.await
        {
            finish(incoming, &name).await;
        }
        return answer;
    }
    let mut body = request.into_body().into_data_stream();
    while let Some(piece) = futures_util::StreamExt::next(&mut body).await {
        let Ok(piece) = piece else { return StatusCode::BAD_REQUEST.into_response() };
        if let Err(e) = incoming.write(&piece).await {
            return (StatusCode::INSUFFICIENT_STORAGE, format!("the package cannot be kept: {e}\n")).into_response();
        }
    }
    match incoming.finish().await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(e) => (StatusCode::INSUFFICIENT_STORAGE, format!("the package cannot be kept: {e}\n")).into_response(),
    }
}

async fn finish(incoming: Incoming, name: &str) {
    if let Err(e) = incoming.finish().await {
        tracing::warn!("the package {name} is not kept: {e}");
    }
}

fn answer(reply: Reply) -> Response {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_GATEWAY);
    (status, [(header::CONTENT_TYPE, reply.content_type)], reply.body).into_response()
}

/// Nothing is lost: the client is told to come again.
fn away(reason: &str) -> Response {
    let text = format!("{reason}; labd brings it back, jobs that train go on: `labd status` shows how far it is\n");
    let headers = [
        (header::RETRY_AFTER, RETRY_AFTER),
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
    ];
    (StatusCode::SERVICE_UNAVAILABLE, headers, text).into_response()
}

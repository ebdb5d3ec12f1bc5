//! The front door: labd on the address of Ray's dashboard. Everything passes on to the head, WebSockets included, so
//! that `RAY_ADDRESS`, `ray job submit` and the dashboard work unchanged; submissions, requests to stop and packages go by
//! the ledger on their way.
//!
//! | request | head is there | head is away |
//! |---|---|---|
//! | `POST /api/jobs/` | recorded, submitted, Ray's answer | recorded, answered as Ray answers, submitted later |
//! | `POST /api/jobs/{id}/stop` | noted, passed on for the attempt that runs | noted, passed on later |
//! | `GET /api/jobs/{id}` | Ray's report on the newest attempt, or the ledger's | the ledger's, or held for a minute |
//! | `DELETE /api/jobs/{id}` | passed on, and noted with what Ray reported last | `503` with `Retry-After` |
//! | `GET /api/jobs/{id}/logs/tail` | the log, attempt after attempt | waits |
//! | `PUT /api/packages/gcs/{name}` | passed on while a copy is kept | kept, uploaded with its job |
//! | `GET /api/packages/gcs/{name}` | passed on, unless no copy is kept | answered from what is kept |
//! | `GET /api/version` | passed on | the last answer, which every client asks for first |
//! | `GET /api/grafana_health` | "disabled": panels are on labd's page | the same |
//! | everything else | passed on | `503` with `Retry-After` |
//!
//! Ray checks its token itself; labd checks it, too, before anything is recorded, since what is recorded is submitted
//! under labd's own. The same router answers on the host, and through the relay on the lab's network
//! (`images/run/relay.py`).

pub mod installs;
mod job;
mod posts;
mod proxy;
pub mod reports;
mod tail;
#[cfg(test)]
mod tests;

use std::time::Duration;

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State as From},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::sync::watch;

use crate::{
    jobs::{
        Ledger, Stop,
        packages::Packages,
        submission::{self, Submission},
    },
    ray::{Endpoint, Gcs, HttpJobs, RayView, Reply, dashboards::HEALTHY},
    secret::Secret,
    services::front_door::GRAFANA,
    text::path_segment,
    time::Timestamp,
};

/// Silence after which a request is given up: an upload that brings no byte for so long, and, from the last byte of the
/// request on, a head that does not answer. Longer waits are streams, which have begun by then.
const ANSWER: Duration = Duration::from_mins(1);
/// Longest wait of a question about one job for the head: a client that waits for a job's end gives up at the first
/// error.
const HOLD: Duration = Duration::from_mins(1);
/// Time after which a client should ask again: a head that died is back in about 5 s.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// What Ray's dashboard hears of Grafana on this address, where `/grafana` is nobody's: as where it is switched off. Behind the
/// page's login it hears the head itself.
const NO_PANELS: &str = r#"{"result":true,"msg":"Grafana disabled","data":{"grafanaHost":"DISABLED"}}"#;

/// Front door: everything that it answers from.
#[derive(Clone)]
pub struct FrontDoor {
    ledger: Ledger,
    packages: Packages,
    endpoint: watch::Receiver<Option<Endpoint>>,
    ray: watch::Receiver<std::sync::Arc<RayView>>,
    token: Secret,
    client: Client<HttpConnector, Body>,
}

impl FrontDoor {
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

    /// Endpoint of the head now.
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

    /// Whether a page in a browser sent the request, which Ray refuses: the page may be anybody's. Tests what Ray 2.60
    /// does (`is_browser_request`), and everything of `Sec-Fetch-` beyond.
    fn is_browser(headers: &HeaderMap) -> bool {
        let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok());
        let tells = [
            header::ORIGIN,
            header::REFERER,
            header::ACCESS_CONTROL_REQUEST_METHOD,
            header::ACCESS_CONTROL_REQUEST_HEADERS,
        ];
        agent.is_some_and(|a| a.starts_with("Mozilla"))
            || tells.iter().any(|name| headers.contains_key(name))
            || headers.keys().any(|k| k.as_str().starts_with("sec-fetch-"))
    }

    /// Whether labd may act on the request, instead of only passing it on.
    fn is_ours(&self, headers: &HeaderMap) -> bool {
        self.is_trusted(headers) && !Self::is_browser(headers)
    }

    /// Records that the ledger has no copy of an uploaded package.
    async fn unkept(&self, name: &str, why: &str) {
        let name = crate::text::one_line(name, 100);
        let what = format!(
            "the package {name} is not kept ({why}): a job that needs it cannot be resubmitted after the \
                            head's state is lost"
        );
        self.ledger.unkept(what).await;
    }

    /// Waits until the head is there, or for long enough.
    async fn wait_for_head(&self) {
        let until = tokio::time::Instant::now() + HOLD;
        while self.head().is_none() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn pass(&self, request: Request) -> Response {
        match self.head() {
            Some(head) => proxy::pass(&self.client, head.dashboard, request, ANSWER).await.unwrap_or_else(|e| away(&e)),
            None => away("the Ray head is away"),
        }
    }
}

fn json(text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], text)
}

/// The router for both listeners.
pub fn router(door: FrontDoor) -> Router {
    Router::new()
        .route("/labd/healthz", get(|| async { "ok\n" }))
        .route(&format!("{GRAFANA}/api/health"), get(|| async { json(HEALTHY) }))
        .route("/api/grafana_health", get(|| async { json(NO_PANELS) }))
        .route("/api/version", get(version))
        .route("/api/jobs", post(submit).fallback(any(pass_on)))
        .route("/api/jobs/", post(submit).fallback(any(pass_on)))
        .route("/api/jobs/{id}", get(job::get).delete(remove).fallback(any(pass_on)))
        .route("/api/jobs/{id}/logs/tail", get(tail::get).fallback(any(pass_on)))
        .route("/api/jobs/{id}/stop", post(stop).fallback(any(pass_on)))
        .route("/api/packages/gcs/{name}", get(has_package).put(put_package).fallback(any(pass_on)))
        .fallback(any(pass_on))
        .with_state(door)
}

async fn pass_on(From(door): From<FrontDoor>, request: Request) -> Response {
    door.pass(request).await
}

async fn version(From(door): From<FrontDoor>, request: Request) -> Response {
    let known = door.ray.borrow().version.clone();
    match (door.head(), known) {
        (None, Some(version)) if door.is_trusted(request.headers()) => {
            ([(header::CONTENT_TYPE, "application/json")], version).into_response()
        }
        _ => door.pass(request).await,
    }
}

async fn submit(From(door): From<FrontDoor>, request: Request) -> Response {
    if !door.is_ours(request.headers()) {
        return door.pass(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = match whole(body).await {
        Ok(body) => body,
        Err(refusal) => return refusal.into_response(),
    };
    match Submission::parse(&body) {
        Some(submission) => match submission.check() {
            Err(line) => (StatusCode::BAD_REQUEST, format!("{line}\n")).into_response(),
            Ok(()) => match door.ledger.submit(submission).await {
                Some(reply) => answer(reply),
                None => away("labd is shutting down"),
            },
        },
        // What is wrong with it, Ray says best.
        None if door.head().is_some() => door.pass(Request::from_parts(parts, Body::from(body))).await,
        None => {
            let text = "not a submission: a JSON object with a string `entrypoint`, and `metadata` and `runtime_env` as objects\n";
            (StatusCode::BAD_REQUEST, text).into_response()
        }
    }
}

/// Body of a submission, which may come slowly, but not without end.
async fn whole(body: Body) -> Result<Bytes, (StatusCode, &'static str)> {
    let mut body = Limited::new(body, submission::LARGEST);
    let mut bytes = BytesMut::new();
    loop {
        match tokio::time::timeout(ANSWER, body.frame()).await {
            Ok(Some(Ok(frame))) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(Err(e))) if e.is::<http_body_util::LengthLimitError>() => {
                let text = "a submission must be at most 1 MiB: put larger data into a file of `working_dir`\n";
                return Err((StatusCode::PAYLOAD_TOO_LARGE, text));
            }
            Ok(Some(Err(_))) => return Err((StatusCode::BAD_REQUEST, "the submission broke off\n")),
            Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, "the submission brought nothing for a minute\n")),
        }
    }
}

async fn stop(From(door): From<FrontDoor>, Path(id): Path<String>, mut request: Request) -> Response {
    if !door.is_ours(request.headers()) {
        return door.pass(request).await;
    }
    let stopped = || ([(header::CONTENT_TYPE, "application/json")], "{\"stopped\": true}").into_response();
    match door.ledger.stop(&id).await {
        Some(Stop::Done) => stopped(),
        Some(Stop::Pass(now)) if now != id => {
            // The attempt that runs now is meant, whichever of its ids a person remembers.
            if let Ok(uri) = format!("/api/jobs/{}/stop", path_segment(&now)).parse() {
                *request.uri_mut() = uri;
            }
            stop_at(&door, request, stopped).await
        }
        Some(Stop::Pass(_)) => stop_at(&door, request, stopped).await,
        None => away("labd is shutting down"),
    }
}

/// Stops a job at the head; while that is away the ledger remembers, and tells Ray later.
async fn stop_at(door: &FrontDoor, request: Request, stopped: impl Fn() -> Response) -> Response {
    if door.head().is_some() { door.pass(request).await } else { stopped() }
}

async fn remove(From(door): From<FrontDoor>, Path(id): Path<String>, request: Request) -> Response {
    if !door.is_ours(request.headers()) {
        return door.pass(request).await;
    }
    let (Some(attempts), Some(head)) = (door.ledger.attempts(&id).await, door.head()) else {
        return away("the Ray head is away");
    };
    let api = HttpJobs::new(head);
    // The attempt that took its place is the same job: it is deleted with it, and not while it runs.
    let newest = attempts.last().map_or(id.clone(), |job| job.id.clone());
    if newest != id && attempts.last().is_some_and(|job| !job.is_over()) {
        let text = format!("Attempted to delete job '{id}', but {newest}, which took its place, has not ended.\n");
        return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
    }
    let told = api.status(&newest).await.ok().flatten();
    if let Some(ended) = told.and_then(|(_, ended)| ended) {
        tokio::time::sleep(still_watched(ended, Timestamp::now())).await;
    }
    let last = told.map(|(status, _)| status);
    if let Some(last) = last {
        door.ledger.deleting(&newest, last).await;
    }
    let answer = door.pass(request).await;
    if answer.status().is_success() {
        door.ledger.forget(&id, last).await;
        for other in attempts.iter().filter(|job| job.id != id) {
            // Ray may have forgotten it.
            let _ = api.delete(&other.id).await;
        }
    }
    answer
}

/// Time for which Ray may still watch a job that ended. It checks once a second; a job that was deleted before that,
/// and perhaps submitted again, is called failed since its old supervisor does not answer (Ray 2.60).
fn still_watched(ended: Timestamp, now: Timestamp) -> Duration {
    const WATCHED: Duration = Duration::from_secs(3);
    WATCHED.saturating_sub(now.since(ended))
}

async fn has_package(From(door): From<FrontDoor>, Path(name): Path<String>, request: Request) -> Response {
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

async fn put_package(From(door): From<FrontDoor>, Path(name): Path<String>, request: Request) -> Response {
    if !door.is_ours(request.headers()) {
        return door.pass(request).await;
    }
    let mut incoming = match door.packages.receive(&name).await {
        Some(Ok(incoming)) => incoming,
        Some(Err(e)) => {
            door.unkept(&name, &e.to_string()).await;
            return door.pass(request).await;
        }
        None => {
            door.unkept(&name, "its name is not a valid file name").await;
            return door.pass(request).await;
        }
    };
    if door.head().is_some() {
        let (parts, body) = request.into_parts();
        let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let (body, copy) = proxy::tee(body, length, incoming);
        let answer = door.pass(Request::from_parts(parts, body)).await;
        if answer.status().is_success() {
            let kept = match copy.await {
                Ok(Ok(incoming)) => incoming.finish().await,
                Ok(Err(e)) => Err(e),
                // Ray took a body that never ended: there is nothing to keep.
                Err(_) => Ok(()),
            };
            if let Err(e) = kept {
                door.unkept(&name, &e.to_string()).await;
            }
        }
        return answer;
    }
    let mut body = request.into_body().into_data_stream();
    loop {
        let piece = match tokio::time::timeout(ANSWER, futures_util::StreamExt::next(&mut body)).await {
            Ok(Some(Ok(piece))) => piece,
            Ok(None) => break,
            Ok(Some(Err(_))) => return (StatusCode::BAD_REQUEST, "the upload broke off\n").into_response(),
            Err(_) => {
                return (StatusCode::REQUEST_TIMEOUT, "the upload brought nothing for a minute\n").into_response();
            }
        };
        if let Err(e) = incoming.write(&piece).await {
            return (StatusCode::INSUFFICIENT_STORAGE, format!("the package cannot be kept: {e}\n")).into_response();
        }
    }
    match incoming.finish().await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(e) => (StatusCode::INSUFFICIENT_STORAGE, format!("the package cannot be kept: {e}\n")).into_response(),
    }
}

fn answer(reply: Reply) -> Response {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_GATEWAY);
    (status, [(header::CONTENT_TYPE, reply.content_type)], reply.body).into_response()
}

/// Answer while the head is away: nothing is lost, and the client is told to come again.
fn away(reason: &str) -> Response {
    let text = format!("{reason}; labd brings it back, jobs in training continue: `labd status` shows the progress\n");
    let headers = [
        (header::RETRY_AFTER, RETRY_AFTER),
        (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
    ];
    (StatusCode::SERVICE_UNAVAILABLE, headers, text).into_response()
}

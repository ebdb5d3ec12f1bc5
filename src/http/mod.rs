//! HTTP for the outside: the page, the API, the metrics.
//!
//! Three routers over one [`State`], and who may use them is decided by where they listen:
//!
//! | router | listens on | may |
//! |---|---|---|
//! | [`admin_router`] | the Unix socket, whose permissions decide | everything |
//! | [`public_router`] | TCP, loopback unless `labd.toml` says otherwise | read, never a secret |
//! | [`scrape_router`] | the lab's container network | `/metrics` and `/healthz` |
//!
//! Each kind of request is one file: parse, answer, tests. Everything is answered from watched values, so no request
//! waits for a service; only commands wait, for the supervision loop.

mod assets;
mod credentials;
mod error;
mod events;
mod gpus;
mod healthz;
mod host;
mod jobs;
mod lab;
mod logs;
mod metrics;
mod plan;
mod serve;
mod services;
mod snapshot;

#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    http::{HeaderName, HeaderValue, header},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use tokio::sync::watch;

pub use error::ApiError;
pub use logs::LogSource;
pub use serve::{ServeError, UnixSocket, bind_tcp, bind_unix, raise_open_files, serve_tcp, serve_tcp_to, serve_unix};

use crate::{
    control::Control, credentials::Credential, gpus::handle::Gpus, journal::Journal, plan::PlanView, snapshot::Snapshot,
};

/// State: everything the handlers answer from.
#[derive(Clone)]
pub struct State {
    /// The lab as it is.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Journal, for what happened.
    pub journal: Journal,
    /// Handle on the supervision loop.
    pub control: Control,
    /// Source of the services' output.
    pub logs: Arc<dyn LogSource>,
    /// Plan as `labd plan` prints it.
    pub plan: watch::Receiver<Arc<PlanView>>,
    /// Credentials that a person needs to log in to the services; admin only.
    pub credentials: watch::Receiver<Arc<Vec<Credential>>>,
    /// Handle on the job ledger.
    pub jobs: crate::jobs::Ledger,
    /// Handle on the GPUs' manager.
    pub gpus: Gpus,
    /// Names, beside loopback and IP addresses, under which a browser may reach the page.
    pub host_names: Arc<[String]>,
    /// Turns true when the daemon ends: streams end then, so that no open page delays it.
    pub shutdown: watch::Receiver<bool>,
}

/// Router for the Unix socket, with everything.
pub fn admin_router(state: State) -> Router {
    let commands = Router::new()
        .route("/services/{name}/logs", get(logs::get))
        .route("/services/{name}/{verb}", post(services::post))
        .route("/jobs/{id}/stop", post(jobs::stop))
        .route("/gpus/{gpu}/release", post(gpus::release))
        .route("/gpus/{gpu}/drill/{fault}", post(gpus::drill))
        .route("/reload", post(lab::reload))
        .route("/apply", post(lab::apply))
        .route("/down", post(lab::down))
        .route("/credentials", get(credentials::get));
    common(reading().merge(commands)).with_state(state)
}

/// Router for TCP, for reading only.
pub fn public_router(state: State) -> Router {
    let host_names = Arc::clone(&state.host_names);
    common(reading()).with_state(state).layer(middleware::from_fn_with_state(host_names, host::check))
}

/// Router for Prometheus on the lab's container network, with metrics only.
pub fn scrape_router(state: State) -> Router {
    let host_names = Arc::clone(&state.host_names);
    Router::new()
        .route("/metrics", get(metrics::get))
        .route("/healthz", get(healthz::get))
        .fallback(error::nothing_here)
        .layer(middleware::map_response(headers))
        .layer(middleware::from_fn(contained))
        .with_state(state)
        .layer(middleware::from_fn_with_state(host_names, host::check))
}

fn reading() -> Router<State> {
    Router::new()
        .route("/snapshot", get(snapshot::get))
        .route("/stream", get(snapshot::stream))
        .route("/events", get(events::get))
        .route("/events/stream", get(events::stream))
        .route("/plan", get(plan::get))
}

fn common(api: Router<State>) -> Router<State> {
    let api = api
        .fallback(error::nothing_here)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(middleware::from_fn(no_store));
    Router::new()
        .nest("/api/v1", api)
        .route("/metrics", get(metrics::get))
        .route("/healthz", get(healthz::get))
        .route("/", get(assets::index))
        .route("/{file}", get(assets::get))
        .fallback(error::nothing_here)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(middleware::map_response(headers))
        .layer(middleware::from_fn(contained))
}

/// Answers a request so that a panic in it breaks that request only.
pub(crate) async fn contained(request: Request, next: Next) -> Response {
    crate::bug::contain(next.run(request)).await
}

async fn no_store(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn headers(mut response: Response) -> Response {
    const ALWAYS: [(HeaderName, &str); 4] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in ALWAYS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Waits until the daemon ends, or until whoever would say so is gone.
async fn stopped(mut shutdown: watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

//! HTTP for the outside: the page, the API, the metrics.
//!
//! Three routers over one [`State`]. Who asks ([`who`]) decides what is answered:
//!
//! | router | listens on | whoever asks is |
//! |---|---|---|
//! | [`admin_router`] | the Unix socket, whose permissions decide | a user of this machine, who may do everything |
//! | [`public_router`] | TCP, loopback unless `labd.toml` says otherwise | who logged in; never shown a secret |
//! | [`scrape_router`] | the lab's container network | a container: `/metrics` and `/healthz` |
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
mod login;
mod logs;
mod metrics;
mod plan;
mod serve;
mod services;
mod snapshot;
mod users;
mod who;

#[cfg(test)]
pub(crate) mod testing;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{delete, get, post},
};
use tokio::sync::watch;

pub use error::ApiError;
pub use logs::LogSource;
pub use serve::{ServeError, UnixSocket, bind_tcp, bind_unix, raise_open_files, serve_tcp, serve_tcp_to, serve_unix};

use crate::{
    accounts::Accounts,
    config::Config,
    control::Control,
    credentials::Credential,
    door::{self, Door},
    gpus::handle::Gpus,
    journal::{Entry, Journal, Kind},
    plan::PlanView,
    snapshot::Snapshot,
    time::Timestamp,
};

/// Longest time that a login may take: a password is checked within a second, and 32 of them wait at most.
const ENTERING: Duration = Duration::from_secs(20);

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
    /// Accounts and sessions.
    pub accounts: Accounts,
    /// Name of the cookie of a session. It has the lab's name in it: all ports of a machine share their cookies.
    pub cookie: Arc<str>,
    /// The door to the services' own pages.
    pub door: Door,
    /// Configuration, for who may do what, and where the page is.
    pub config: watch::Receiver<Arc<Config>>,
    /// Names, beside loopback and IP addresses, under which a browser may reach the page.
    pub host_names: Arc<[String]>,
    /// Turns true when the daemon ends: streams end then, so that no open page delays it.
    pub shutdown: watch::Receiver<bool>,
}

impl State {
    /// Notes in the journal what a person asked for.
    fn asked(&self, who: &who::Who, service: Option<&str>, what: &str) {
        self.journal.record(Entry {
            at: Timestamp::now(),
            service: service.map(str::to_owned),
            kind: Kind::Person,
            what: "asked".to_owned(),
            reason: format!("{} ({}): {what}", who.name(), who.way()),
        });
    }
}

/// Router for the Unix socket, with everything.
pub fn admin_router(state: State) -> Router {
    let here = Router::new()
        .route("/down", post(lab::down))
        .route("/credentials", get(credentials::get))
        .route("/links", post(users::link))
        .route("/users", get(users::list).post(users::add))
        .route("/users/{name}", delete(users::remove))
        .route("/users/{name}/password", post(users::password))
        .route("/users/{name}/role", post(users::role))
        .route("/sessions", get(users::sessions))
        .route("/sessions/{id}", delete(users::end));
    let metrics = Router::new().route("/metrics", get(metrics::get));
    let api = reading().merge(telling()).merge(acting()).merge(here).route("/me", get(login::me));
    common(api, metrics).layer(middleware::from_fn(who::local)).with_state(state)
}

/// Router for TCP: for who logged in.
pub fn public_router(state: State) -> Router {
    let host_names = Arc::clone(&state.host_names);
    let readers = middleware::from_fn_with_state(state.clone(), who::readers);
    let people = middleware::from_fn_with_state(state.clone(), who::people);
    let admins = middleware::from_fn_with_state(state.clone(), who::admins);
    let metrics = Router::new().route("/metrics", get(metrics::get)).route_layer(readers.clone());
    let api = reading()
        .route_layer(readers)
        .merge(telling().route_layer(people))
        .merge(acting().route_layer(admins))
        .merge(entering())
        .route("/logout", post(login::out))
        .route("/me", get(login::me));
    let services = door::paths(&state.door, door::Origin::Main)
        .route_layer(middleware::from_fn_with_state(state.clone(), who::visitors))
        .layer(middleware::from_fn(contained));
    common(api, metrics)
        .merge(services)
        .layer(middleware::from_fn_with_state(state.clone(), who::remote))
        .with_state(state)
        .layer(middleware::from_fn_with_state(host_names, host::check))
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
    Router::new().route("/snapshot", get(snapshot::get)).route("/stream", get(snapshot::stream))
}

/// The way in, for whoever comes: small bodies, and no time to send them slowly.
fn entering() -> Router<State> {
    let soon = |request: Request, next: Next| async move {
        tokio::time::timeout(ENTERING, next.run(request)).await.unwrap_or_else(|_| {
            ApiError::new(StatusCode::REQUEST_TIMEOUT, "this took too long: try again").into_response()
        })
    };
    Router::new()
        .route("/login", post(login::by_password))
        .route("/login/link", post(login::by_link))
        .layer(DefaultBodyLimit::max(4 << 10))
        .layer(middleware::from_fn(soon))
}

/// What is the affair of the lab's people: what services write, what happened and through whom, how everything is set up.
fn telling() -> Router<State> {
    Router::new()
        .route("/services/{name}/logs", get(logs::get))
        .route("/events", get(events::get))
        .route("/events/stream", get(events::stream))
        .route("/plan", get(plan::get))
}

fn acting() -> Router<State> {
    Router::new()
        .route("/services/{name}/{verb}", post(services::post))
        .route("/jobs/{id}/stop", post(jobs::stop))
        .route("/gpus/{gpu}/release", post(gpus::release))
        .route("/gpus/{gpu}/drill/{fault}", post(gpus::drill))
        .route("/reload", post(lab::reload))
        .route("/apply", post(lab::apply))
}

fn common(api: Router<State>, metrics: Router<State>) -> Router<State> {
    let api = api
        .fallback(error::nothing_here)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(middleware::from_fn(no_store));
    Router::new()
        .nest("/api/v1", api)
        .merge(metrics)
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

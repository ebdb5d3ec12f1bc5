//! HTTP for the outside: the page, the API, the metrics.
//!
//! Four routers over one [`State`]. Who asks ([`who`]) decides what is answered:
//!
//! | router | listens on | whoever asks is |
//! |---|---|---|
//! | [`admin_router`] | the Unix socket, whose permissions decide | a user of this machine, who may do everything |
//! | [`public_router`] | TCP, loopback unless `labd.toml` says otherwise | who logged in; never shown a secret |
//! | [`second_router`] | a port of its own, and the page's under another name | an admin, with a visit that their session began |
//! | [`scrape_router`] | the lab's container network | a container: `/metrics` and `/healthz` |
//!
//! The second and third speak TLS where `labd.toml` asks for it ([`tls`]).
//!
//! Each kind of request is one file: parse, answer, tests. Everything is answered from watched values, so no request
//! waits for a service; only commands wait, for the supervision loop.

mod api;
mod assets;
mod credentials;
mod curve;
mod dashboards;
mod doctor;
mod error;
mod events;
mod extract;
mod feed;
mod gpus;
mod healthz;
mod history;
mod host;
mod incidents;
mod jobs;
mod lab;
mod login;
mod logs;
mod metrics;
mod notify;
mod openapi;
mod page;
mod plan;
mod runs;
mod second;
mod serve;
mod services;
mod snapshot;
mod tls;
mod turn;
mod users;
mod who;

#[cfg(test)]
pub(crate) mod testing;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{FromRef, Request},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio::sync::watch;

pub use dashboards::FileSource;
pub use doctor::Doctor;
pub use error::ApiError;
pub use feed::Feed;
pub use logs::LogSource;
pub use second::{Second, second_router};
pub use serve::{
    ServeError, UnixSocket, bind_tcp, bind_unix, raise_open_files, serve_secured, serve_tcp, serve_tcp_to, serve_unix,
};
pub use tls::{Scraped, Secured, to_https_router};
pub use turn::Turns;

use self::openapi::{Listener, Needs};
use crate::{
    accounts::Accounts,
    config::Config,
    control::Control,
    credentials::Credential,
    door::{self, Door},
    gpus::handle::Gpus,
    history::History,
    journal::{Entry, Journal, Kind},
    notify::Notifier,
    plan::PlanView,
    ray::Endpoint,
    snapshot::Snapshot,
    time::Timestamp,
    tls::Served,
    training::Training,
};

/// Longest time that a login may take: a password is checked within a second, and 32 of them wait at most.
const ENTERING: Duration = Duration::from_secs(20);

/// State: everything the handlers answer from.
#[derive(Clone)]
pub struct State {
    /// The lab as it is.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Its changes, as streams tell them.
    pub feed: Feed,
    /// Journal, for what happened.
    pub journal: Journal,
    /// Handle on the supervision loop.
    pub control: Control,
    /// Source of the services' output.
    pub logs: Arc<dyn LogSource>,
    /// Source of files that services write.
    pub files: Arc<dyn FileSource>,
    /// Plan as `labd plan` prints it.
    pub plan: watch::Receiver<Arc<PlanView>>,
    /// Credentials that a person needs to log in to the services; admin only.
    pub credentials: watch::Receiver<Arc<Vec<Credential>>>,
    /// Handle on the job ledger.
    pub jobs: crate::jobs::Ledger,
    /// Handle on training curves.
    pub training: Training,
    /// Endpoint of the head that runs now, for jobs' logs.
    pub head: watch::Receiver<Option<Endpoint>>,
    /// Handle on the GPUs' manager.
    pub gpus: Gpus,
    /// History of the GPUs, and the account of their hours.
    pub history: History,
    /// Handle on who is told what happens.
    pub notify: Notifier,
    /// Accounts and sessions.
    pub accounts: Accounts,
    /// Name of the cookie of a session. It has the lab's name in it: all ports of a machine share their cookies.
    pub cookie: Arc<str>,
    /// Second origin, on which what people write is shown.
    pub second: Second,
    /// Certificate of the page and of its second origin.
    pub tls: watch::Receiver<Arc<Served>>,
    /// The door to the services' own pages.
    pub door: Door,
    /// What `labd doctor` says.
    pub doctor: Doctor,
    /// Configuration, for who may do what, and where the page is.
    pub config: watch::Receiver<Arc<Config>>,
    /// Turns of requests that take long.
    pub turns: Turns,
    /// Names, beside loopback and IP addresses, under which a browser may reach the page.
    pub host_names: Arc<[String]>,
    /// Turns true when the daemon ends: streams end then, so that no open page delays it.
    pub shutdown: watch::Receiver<bool>,
}

/// State as routes hold it: each has a copy of what it is given, and there are a hundred.
#[derive(Clone)]
struct Shared(Arc<State>);

impl FromRef<Shared> for State {
    fn from_ref(shared: &Shared) -> Self {
        Self::clone(&shared.0)
    }
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
    let state = Shared(Arc::new(state));
    common(Listener::Socket, state, |_, router| router).layer(middleware::from_fn(who::local))
}

/// Router for the page's port: for who logged in, and under another name the second origin.
pub fn public_router(state: State) -> Router {
    let (host_names, second) = (Arc::clone(&state.host_names), second_router(state.clone()));
    let paths = door::paths(&state.door, door::Origin::Main);
    let state = Shared(Arc::new(state));
    let readers = middleware::from_fn_with_state(state.clone(), who::readers);
    let people = middleware::from_fn_with_state(state.clone(), who::people);
    let admins = middleware::from_fn_with_state(state.clone(), who::admins);
    let guarded = |needs, router: Router<Shared>| match needs {
        Needs::Nothing => router,
        Needs::Reading => router.route_layer(readers.clone()),
        Needs::Login => router.route_layer(people.clone()),
        Needs::Admin => router.route_layer(admins.clone()),
    };
    let services = paths
        .route_layer(middleware::from_fn_with_state(state.clone(), dashboards::instead_of_grafana))
        .route_layer(middleware::from_fn_with_state(state.clone(), who::visitors))
        .layer(middleware::from_fn(contained));
    as_one(services.fallback_service(common(Listener::Page, state.clone(), guarded)))
        .layer(middleware::from_fn_with_state(state, who::remote))
        .layer(middleware::from_fn_with_state(host_names, host::check))
        .layer(middleware::from_fn_with_state(second, host::fork))
}

/// Router with one route, which is all of another's: what is put around a router is put around each of its routes.
fn as_one(router: Router) -> Router {
    Router::new().fallback_service(router)
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
        .with_state(Shared(Arc::new(state)))
        .layer(middleware::from_fn_with_state(host_names, host::check))
}

/// Answers what anybody may ask within [`ENTERING`].
async fn hurry(request: Request, next: Next) -> Response {
    tokio::time::timeout(ENTERING, next.run(request))
        .await
        .unwrap_or_else(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "this took too long: try again").into_response())
}

/// What stands on this listener: the API's groups of routes, each `guarded` by the right that it asks for, and the page.
fn common(listener: Listener, state: Shared, guarded: impl Fn(Needs, Router<Shared>) -> Router<Shared>) -> Router {
    let (mut api, mut beside) = (Router::new(), Router::new());
    for group in api::all().into_iter().filter(|group| group.is_on(listener)) {
        let (needs, is_api) = (group.needs(), group.is_api());
        let router = guarded(needs, group.into_router());
        if is_api {
            api = api.merge(router);
        } else {
            beside = beside.merge(router);
        }
    }
    let api = api
        .fallback(error::nothing_here)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(middleware::from_fn(no_store));
    let all = Router::new()
        .nest(openapi::BASE, api)
        .merge(beside)
        .route("/", get(assets::index))
        .route("/{file}", get(assets::get))
        .route("/js/{*module}", get(assets::module))
        .route("/vendor/{file}", get(assets::vendored))
        .fallback(error::nothing_here)
        .method_not_allowed_fallback(error::wrong_method)
        .with_state(state);
    as_one(all).layer(middleware::map_response(headers)).layer(middleware::from_fn(contained))
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

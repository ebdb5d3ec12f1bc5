//! The door: Ray's dashboard, Grafana, MinIO's console, Prometheus and JupyterLab behind labd's own login, each under its
//! path and signed in with its own secret, which no browser sees.
//!
//! | path | service | asked | signed in with | for viewers |
//! |---|---|---|---|---|
//! | `/ray/` | Ray's dashboard | without the prefix | the token, in both headers that Ray reads before a cookie | reading |
//! | `/prometheus/` | Prometheus | as it is | nothing | reading |
//! | `/minio/` | MinIO's console | without the prefix | a session that the door opens and renews | no |
//! | `/grafana/` | Grafana | as it is | a password | reading |
//! | `/jupyter/`, on an origin of its own | JupyterLab | as it is | a header with the door's secret | no |
//!
//! Who asks was found out before: each request carries an [`Admission`]. Everything that can be decided from a request's
//! head is pure: [`guard`] judges it, [`target`] makes the path, [`headers`] the headers both ways. Bodies and WebSockets
//! stream through [`proxy`]; nothing of them is kept.

mod console;
mod guard;
mod headers;
mod proxy;
mod target;
#[cfg(test)]
mod tests;
mod upstream;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Extension, Router,
    body::{Body, HttpBody as _},
    extract::{Request, State as From},
    http::{HeaderName, HeaderValue, StatusCode, Version, header, request::Parts, uri::Scheme},
    response::{IntoResponse, Response},
    routing::any,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::sync::watch;

pub use guard::origin_is_own;
pub use headers::DOOR as JUPYTER_HEADER;
pub(crate) use headers::drop_hop;
pub(crate) use proxy::{Moved, tunnel};
pub use upstream::{ALL, Kind, Origin, Upstream, Upstreams};

use self::{
    console::Console,
    guard::{Own, Passed},
    headers::Place,
    proxy::Patience,
};
use crate::{minio::Keys, secret::Secret};

/// Admission: what was found out about whoever asks. The session's middleware puts it into the request's extensions.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Whether they may change things.
    pub admin: bool,
    /// Scheme under which the listener is reached.
    pub scheme: Scheme,
    /// Turns true when the session ends, or the daemon: WebSockets end then, as they do when the sender is gone.
    pub ended: watch::Receiver<bool>,
}

/// Secrets with which the door signs in.
#[derive(Debug, Clone)]
pub struct SignIns {
    /// Ray's token.
    pub ray_token: Secret,
    /// Name of Grafana's user.
    pub grafana_user: String,
    /// Its password.
    pub grafana_password: Secret,
    /// Keys with which MinIO's console is entered.
    pub minio: Keys,
    /// Secret that JupyterLab knows the door by.
    pub jupyter: Secret,
}

#[cfg(test)]
impl SignIns {
    /// No secrets.
    pub(crate) fn none() -> Self {
        let none = || Secret::new("");
        Self {
            ray_token: none(),
            grafana_user: String::new(),
            grafana_password: none(),
            minio: Keys { access: none(), secret: none() },
            jupyter: none(),
        }
    }
}

/// The door: everything that it passes requests on with. Clones are the same one.
#[derive(Clone)]
pub struct Door {
    upstreams: watch::Receiver<Arc<Upstreams>>,
    sign_ins: Arc<SignIns>,
    console: Arc<Console>,
    patience: Patience,
}

impl Door {
    /// A door to what `upstreams` has now.
    pub fn new(upstreams: watch::Receiver<Arc<Upstreams>>, sign_ins: SignIns) -> Self {
        let console = Arc::new(Console::new(sign_ins.minio.clone()));
        Self { upstreams, sign_ins: Arc::new(sign_ins), console, patience: Patience::default() }
    }

    /// A door to nothing.
    #[cfg(test)]
    pub(crate) fn closed() -> Self {
        Self::new(watch::channel(Arc::default()).1, SignIns::none())
    }

    /// Whether a service is there to be asked.
    pub fn is_there(&self, kind: Kind) -> bool {
        self.upstreams.borrow().address(kind).is_some()
    }

    /// Passes a request on to a service, and its answer back. Only its own path is ever passed on to it, so the address
    /// must be the one that the client sent: a router may be merged with another, and not nested in one.
    pub async fn pass(&self, kind: Kind, admission: Admission, request: Request) -> Response {
        self.answer(kind.upstream(), admission, request).await.unwrap_or_else(IntoResponse::into_response)
    }

    async fn answer(&self, up: &Upstream, admission: Admission, mut request: Request) -> Result<Response, Own> {
        let passed = guard::check(up, request.method(), request.uri(), request.headers(), &admission)?;
        let address = self.upstreams.borrow().address(up.kind).ok_or_else(|| proxy::not_ready(up.name))?;
        let ours = passed.is_websocket.then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let body = if passed.is_websocket { Body::empty() } else { body };
        let mut answer = match up.kind {
            Kind::MinioConsole => self.ask_console(up, address, &passed, &parts, body).await?,
            _ => self.ask(up, address, &passed, &parts, body, self.sign_in(up.kind)?).await?,
        };
        let switched = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        match ours {
            Some(ours) if switched => {
                let mut ended = admission.ended.clone();
                let ended = async move {
                    let _ = ended.wait_for(|ended| *ended).await;
                };
                proxy::tunnel(ours, hyper::upgrade::on(&mut answer), ended);
            }
            // It would speak another protocol than the client.
            None if switched => return Err(proxy::Fault::Broken.told(up.name)),
            _ => {}
        }
        let place = Place { address, scheme: &admission.scheme, host: &passed.host, path: parts.uri.path() };
        let headers = std::mem::take(answer.headers_mut());
        *answer.headers_mut() = headers::response_headers(headers, up, &place, switched);
        *answer.version_mut() = Version::HTTP_11;
        Ok(answer.map(Body::new))
    }

    async fn ask(
        &self,
        up: &Upstream,
        address: SocketAddr,
        passed: &Passed,
        parts: &Parts,
        body: Body,
        sign_in: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<hyper::Response<hyper::body::Incoming>, Own> {
        let bad = || Own::line(StatusCode::BAD_REQUEST, "this request is not passed on");
        let host = passed.host.parse().map_err(|_| bad())?;
        let mut request = hyper::Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = passed.target.clone().into();
        *request.headers_mut() =
            headers::request_headers(parts.headers.clone(), up, &host, sign_in, passed.is_websocket);
        proxy::send(address, request, self.patience).await.map_err(|fault| fault.told(up.name))
    }

    /// Asks MinIO's console, a second time when the session has ended. What has a body cannot be sent twice: the session
    /// is asked for before.
    async fn ask_console(
        &self,
        up: &Upstream,
        address: SocketAddr,
        passed: &Passed,
        parts: &Parts,
        body: Body,
    ) -> Result<hyper::Response<hyper::body::Incoming>, Own> {
        let sign_in = |token: &Secret| Ok(vec![(header::COOKIE, console::cookie(token)?)]);
        if !body.is_end_stream() {
            let token = self.console.sure_token(address, self.patience).await?;
            return self.ask(up, address, passed, parts, body, sign_in(&token)?).await;
        }
        let token = self.console.token(address, self.patience).await?;
        let answer = self.ask(up, address, passed, parts, Body::empty(), sign_in(&token)?).await?;
        if !console::is_over(answer.status()) {
            return Ok(answer);
        }
        // What the user of the jobs' keys may not do is refused in the same way.
        let fresh = self.console.sure_token(address, self.patience).await?;
        if fresh == token {
            return Ok(answer);
        }
        drop(answer);
        let token = fresh;
        self.ask(up, address, passed, parts, Body::empty(), sign_in(&token)?).await
    }

    /// Headers that sign the door in to a service without sessions.
    fn sign_in(&self, kind: Kind) -> Result<Vec<(HeaderName, HeaderValue)>, Own> {
        let value = |text: &str| {
            let unusable = || Own::line(StatusCode::BAD_GATEWAY, "labd's secret for this service cannot be sent");
            sensitive(text).ok_or_else(unusable)
        };
        let secrets = &self.sign_ins;
        Ok(match kind {
            Kind::Ray => {
                let bearer = value(&format!("Bearer {}", secrets.ray_token.expose()))?;
                // A wrong first one would not be rescued by a right second one.
                vec![(header::AUTHORIZATION, bearer.clone()), (headers::X_RAY_AUTHORIZATION, bearer)]
            }
            Kind::Grafana => {
                let pair = format!("{}:{}", secrets.grafana_user, secrets.grafana_password.expose());
                vec![(header::AUTHORIZATION, value(&format!("Basic {}", BASE64_STANDARD.encode(pair)))?)]
            }
            Kind::Jupyter => vec![(headers::DOOR, value(secrets.jupyter.expose())?)],
            Kind::Prometheus | Kind::MinioConsole => Vec::new(),
        })
    }
}

/// Value of a header that is not shown by `Debug`.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Routes of one origin. They answer `401` unless a layer around them has put an [`Admission`] into the request.
pub fn paths<S: Clone + Send + Sync + 'static>(door: &Door, origin: Origin) -> Router<S> {
    let here = ALL.iter().filter(|up| up.origin == origin);
    let router = here.fold(Router::new(), |router, up| {
        let pass =
            any(move |From(door): From<Door>, admission: Option<Extension<Admission>>, request: Request| async move {
                match admission {
                    Some(Extension(admission)) => door.pass(up.kind, admission, request).await,
                    None => Own::line(StatusCode::UNAUTHORIZED, "sign in first").into_response(),
                }
            });
        let bare = up.prefix.trim_end_matches('/');
        router.route(bare, pass.clone()).route(up.prefix, pass.clone()).route(&format!("{}{{*rest}}", up.prefix), pass)
    });
    router.with_state(door.clone())
}

//! Who asks, and what that allows.
//!
//! | asks over | is | may |
//! |---|---|---|
//! | the Unix socket, whose permissions decide | the user whose process is at its other end | everything |
//! | TCP, with the cookie of a session | the person who logged in | what their role allows |
//! | TCP, without one | nobody | read, where `http.anonymous` says so |
//! | TCP, on the second origin | whose session began the visit ([`super::second`]) | open JupyterLab, as an admin |
//!
//! A browser sends the cookie along whoever wrote the page that asks, if only from another port of this machine. So what is no
//! plain reading must come from a page of labd's own (`Origin`). And every server on another port of this host is sent the cookie by
//! whoever opens its page: what changes anything must show a token besides, which is told once, at the login.

use std::{borrow::Cow, fs, future::Future, sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody as _},
    extract::{Request, State as From},
    http::{HeaderMap, HeaderName, Method, StatusCode, header, uri::Scheme},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};
use futures_util::StreamExt as _;
use tokio::sync::watch;

use super::{ApiError, State, second, stopped, tls::OverTls};
use crate::{
    accounts::{Accounts, Person, Role, Session, is_for},
    config::Anonymous,
    door::{Admission, origin_is_own},
};

/// Header that carries the session's CSRF token on requests that change something.
pub(super) const CSRF: HeaderName = HeaderName::from_static("x-labd-csrf");

/// Time between two checks whether a stream's session goes on.
const LOOK: Duration = Duration::from_secs(5);

/// Asker of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// User of this machine, on the Unix socket; by number, where the kernel says so.
    Local(Option<u32>),
    /// Person who logged in.
    Person(Person),
    /// Nobody who is known.
    Nobody,
}

impl Who {
    /// Name for the journal.
    pub(super) fn name(&self) -> Cow<'_, str> {
        match self {
            Self::Local(Some(uid)) => user_name(*uid).into(),
            Self::Local(None) => "somebody on the socket".into(),
            Self::Person(person) => person.name.as_str().into(),
            Self::Nobody => "somebody".into(),
        }
    }

    /// Way by which they ask, for the journal: an account may have the name of a user of the machine.
    pub(super) const fn way(&self) -> &'static str {
        match self {
            Self::Local(_) => "on the machine",
            Self::Person(_) | Self::Nobody => "on the page",
        }
    }

    fn role(&self, anonymous: Anonymous) -> Option<Role> {
        match self {
            Self::Local(_) => Some(Role::Admin),
            Self::Person(person) => Some(person.role),
            Self::Nobody => (anonymous == Anonymous::Viewer).then_some(Role::Viewer),
        }
    }
}

/// Session of whoever asks, and the cookie that showed it.
#[derive(Clone)]
pub(super) struct Entered {
    session: Arc<Session>,
    pub(super) cookie: Arc<str>,
}

impl Entered {
    /// Whether a request shows the token that this session's own page was told.
    pub(super) fn may_change(&self, headers: &HeaderMap) -> bool {
        let csrf = headers.get(CSRF).and_then(|token| token.to_str().ok()).unwrap_or_default();
        self.session.admits(csrf)
    }
}

/// User at the other end of a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer(pub(super) u32);

/// Name of a user of this machine, by `/etc/passwd`; its number where that has none.
fn user_name(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_in(&passwd, uid).map_or_else(|| format!("uid {uid}"), str::to_owned)
}

fn name_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (id.parse() == Ok(uid)).then_some(name)
    })
}

/// Notes who asks on the Unix socket.
pub(super) async fn local(mut request: Request, next: Next) -> Response {
    let uid = request.extensions().get::<Peer>().map(|peer| peer.0);
    request.extensions_mut().insert(Who::Local(uid));
    next.run(request).await
}

/// Notes who asks over TCP, and refuses what a page of somebody else's makes a browser ask.
pub(super) async fn remote(From(state): From<State>, mut request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let upgrades = request.headers().contains_key(header::UPGRADE);
    let over = OverTls::of(&request);
    if (!reads || upgrades) && own_scheme(over, request.headers()).is_none() {
        let text = "this must come from labd's own page: its `Origin` is another's, or missing";
        return ApiError::new(StatusCode::FORBIDDEN, text).into_response();
    }
    let value = match cookie(request.headers(), &over.cookie(&state.cookie)) {
        Ok(value) => value,
        Err(twice) => return ApiError::from(twice).into_response(),
    };
    let entered = value
        .filter(|cookie| is_for(cookie, over.0))
        .and_then(|cookie| Some(Entered { session: Arc::new(state.accounts.session(cookie)?), cookie: cookie.into() }));
    let cookie = entered.as_ref().map(|entered| Arc::clone(&entered.cookie));
    let who = entered.as_ref().map_or(Who::Nobody, |entered| Who::Person(entered.session.person.clone()));
    request.extensions_mut().insert(who);
    if let Some(entered) = entered {
        request.extensions_mut().insert(entered);
    }
    // Who has a page of labd's own open uses the session, though that asks for nothing else: a screen on a wall.
    let goes_on = goes_on(state, cookie, |accounts, cookie| accounts.session(cookie).is_some());
    until(next.run(request).await, watch_for(goes_on))
}

/// Answer that ends when whoever asked may not ask any more, where it is a stream: that goes on for as long as its page is open.
fn until(response: Response, over: impl Future<Output = ()> + Send + 'static) -> Response {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| Body::from_stream(body.into_data_stream().take_until(over)))
}

/// Lets through to a service's own page who logged in; a browser that wants a page is sent to the login.
pub(super) async fn visitors(From(state): From<State>, mut request: Request, next: Next) -> Response {
    let Some(Entered { session, cookie }) = request.extensions().get::<Entered>().cloned() else {
        if wants_page(&request) {
            return Redirect::to("/").into_response();
        }
        return log_in_first().into_response();
    };
    let is_admin = session.person.role == Role::Admin;
    let over = watch_for(goes_on(state.clone(), Some(cookie), Accounts::goes_on));
    let admission = admission(&state, &request, is_admin, over);
    request.extensions_mut().insert(admission);
    next.run(request).await
}

/// Lets through to what is on the second origin who visits it: by its own cookie, for as long as the session goes on that the
/// visit belongs to, and is an admin's.
pub(super) async fn second_visitors(From(state): From<State>, mut request: Request, next: Next) -> Response {
    let over = OverTls::of(&request);
    let value = match cookie(request.headers(), &over.cookie(&state.second.cookie)) {
        Ok(value) => value,
        Err(twice) => return ApiError::from(twice).into_response(),
    };
    let value = value.filter(|cookie| is_for(cookie, over.0));
    let visit = value.and_then(|cookie| Some((state.accounts.visit(cookie)?, Arc::<str>::from(cookie))));
    let Some((session, cookie)) = visit else {
        if wants_page(&request) {
            return Redirect::to(second::ENTER).into_response();
        }
        return ApiError::new(StatusCode::UNAUTHORIZED, second::NOT_IN).into_response();
    };
    if session.person.role != Role::Admin {
        return only_looks(&session.person.name).into_response();
    }
    let over = || {
        let (accounts, cookie) = (state.accounts.clone(), Arc::clone(&cookie));
        watch_for(move || accounts.visit_goes_on(&cookie))
    };
    let admission = admission(&state, &request, true, over());
    request.extensions_mut().insert(admission);
    until(next.run(request).await, over())
}

/// Whether a browser asks for a page to show, and not for a part of one.
fn wants_page(request: &Request) -> bool {
    let accepted = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok());
    *request.method() == Method::GET && accepted.is_some_and(|v| v.contains("text/html"))
}

/// What the door is told of whoever asks. A WebSocket ends when it is `over`, or with labd.
fn admission(
    state: &State,
    request: &Request,
    admin: bool,
    over: impl Future<Output = ()> + Send + 'static,
) -> Admission {
    let (tell, ended) = watch::channel(false);
    if request.headers().contains_key(header::UPGRADE) {
        let shutdown = state.shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = over => {}
                () = stopped(shutdown) => {}
                () = tell.closed() => {}
            }
            tell.send_replace(true);
        });
    }
    let over = OverTls::of(request);
    Admission { admin, scheme: own_scheme(over, request.headers()).unwrap_or(over.scheme()), ended }
}

/// Whether the session of this cookie goes on, by `is_on`; without one, whether somebody may look who is not known.
fn goes_on(state: State, cookie: Option<Arc<str>>, is_on: impl Fn(&Accounts, &str) -> bool) -> impl Fn() -> bool {
    move || match &cookie {
        Some(cookie) => is_on(&state.accounts, cookie),
        None => state.config.borrow().http.anonymous == Anonymous::Viewer,
    }
}

/// Waits until something does not go on any more.
async fn watch_for(goes_on: impl Fn() -> bool) {
    while goes_on() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Lets through who may read.
pub(super) async fn readers(From(state): From<State>, request: Request, next: Next) -> Response {
    admit(&state, Role::Viewer, request, next).await
}

/// Lets through who logged in.
pub(super) async fn people(From(state): From<State>, request: Request, next: Next) -> Response {
    if matches!(request.extensions().get::<Who>(), None | Some(Who::Nobody)) {
        return log_in_first().into_response();
    }
    admit(&state, Role::Viewer, request, next).await
}

/// Lets through who may do everything.
pub(super) async fn admins(From(state): From<State>, request: Request, next: Next) -> Response {
    admit(&state, Role::Admin, request, next).await
}

async fn admit(state: &State, needed: Role, request: Request, next: Next) -> Response {
    let who = request.extensions().get::<Who>().cloned().unwrap_or(Who::Nobody);
    let anonymous = state.config.borrow().http.anonymous;
    match who.role(anonymous) {
        Some(role) if role >= needed => {}
        Some(_) if matches!(who, Who::Person(_)) => {
            return only_looks(&who.name()).into_response();
        }
        _ => return log_in_first().into_response(),
    }
    let changes = needed == Role::Admin && !matches!(*request.method(), Method::GET | Method::HEAD);
    let is_shown = request.extensions().get::<Entered>().is_some_and(|entered| entered.may_change(request.headers()));
    if changes && matches!(who, Who::Person(_)) && !is_shown {
        let text = format!("`{CSRF}` is missing or wrong: log in again");
        return ApiError::new(StatusCode::FORBIDDEN, text).into_response();
    }
    next.run(request).await
}

/// Refusal of a viewer.
fn only_looks(name: &str) -> ApiError {
    let text = format!("{name} may look, and change nothing: `labd user role` makes an admin");
    ApiError::new(StatusCode::FORBIDDEN, text)
}

/// Refusal of somebody who is not known.
pub(super) fn log_in_first() -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "log in first: `labd open` on the machine prints a link")
}

/// Scheme of the page that asks, where that is one of this very origin; without TLS of labd's own https is one, too, where a proxy
/// with TLS stands before this.
pub(super) fn own_scheme(over: OverTls, headers: &HeaderMap) -> Option<Scheme> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    let possible = [Scheme::HTTP, Scheme::HTTPS].into_iter().filter(|scheme| !over.0 || *scheme == Scheme::HTTPS);
    possible.into_iter().find(|scheme| origin_is_own(headers, scheme.as_str(), host))
}

/// A cookie that came twice: one of the two is somebody else's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Twice;

impl std::convert::From<Twice> for ApiError {
    fn from(Twice: Twice) -> Self {
        let text =
            "two cookies of one name: another server on this machine may have set one; clear the cookies of this site";
        Self::new(StatusCode::BAD_REQUEST, text)
    }
}

/// Value of the cookie of this name.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Twice> {
    let all =
        headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(';'));
    let mut ours =
        all.filter_map(|pair| pair.trim().split_once('=')).filter(|(key, _)| *key == name).map(|(_, value)| value);
    match (ours.next(), ours.next()) {
        (value, None) => Ok(value),
        _ => Err(Twice),
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        http::{HeaderValue, Request as Asked},
    };
    use tower::ServiceExt as _;

    use super::*;
    use crate::http::{
        public_router,
        testing::{Lab, Sse, ask_with, status_and_text},
    };
    use crate::time::{Timestamp, simulated};

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut all = HeaderMap::new();
        for (name, value) in pairs {
            all.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        all
    }

    #[test]
    fn a_cookie_is_found_once_and_a_second_one_is_refused() {
        for (lines, found) in [
            (&[][..], Ok(None)),
            (&[("cookie", "a=b; labd-lab=x; c=d")][..], Ok(Some("x"))),
            (&[("cookie", "a=b"), ("cookie", "labd-lab=x")][..], Ok(Some("x"))),
            (&[("cookie", "labd-lab2=x; xlabd-lab=y")][..], Ok(None)),
            (&[("cookie", "labd-lab=x; labd-lab=y")][..], Err(Twice)),
            (&[("cookie", "labd-lab=x"), ("cookie", "labd-lab=x")][..], Err(Twice)),
        ] {
            assert_eq!(cookie(&headers(lines), "labd-lab"), found, "{lines:?}");
        }
    }

    #[test]
    fn only_a_page_of_this_very_origin_is_labds_own() {
        let host = ("host", "localhost:8600");
        for (lines, own) in [
            (&[host][..], false),
            (&[host, ("origin", "http://localhost:8600")][..], true),
            (&[host, ("origin", "http://LOCALHOST:8600"), ("sec-fetch-site", "same-origin")][..], true),
            (&[host, ("origin", "http://localhost:8888")][..], false),
            (&[host, ("origin", "http://localhost:8600.evil.example")][..], false),
            (&[host, ("origin", "null")][..], false),
            (&[host, ("origin", "http://localhost:8600"), ("sec-fetch-site", "same-site")][..], false),
            (&[("origin", "http://localhost:8600")][..], false),
        ] {
            assert_eq!(own_scheme(OverTls(false), &headers(lines)).is_some(), own, "{lines:?}");
            assert_eq!(own_scheme(OverTls(true), &headers(lines)), None, "a page without TLS is another's: {lines:?}");
        }
        let https = headers(&[host, ("origin", "https://localhost:8600")]);
        assert_eq!(own_scheme(OverTls(true), &https), Some(Scheme::HTTPS));
        assert_eq!(own_scheme(OverTls(false), &https), Some(Scheme::HTTPS), "behind a proxy");
    }

    async fn sent(router: Router, method: &str, path: &str, lines: &[(&'static str, &str)]) -> (u16, String) {
        let mut request = Asked::builder().method(method).uri(path).header("host", "localhost:8600");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let answer =
            router.oneshot(request.body(Body::empty()).expect("a request")).await.expect("routers do not fail");
        let (status, text) = status_and_text(answer).await;
        (status.as_u16(), text)
    }

    #[tokio::test]
    async fn each_role_may_what_it_may() {
        let lab = Lab::answering(|_| Ok("on it".into())).closed();
        let router = || public_router(lab.state.clone());
        let own = ("origin", "http://localhost:8600");
        let stop = "/api/v1/services/minio/stop";
        for path in [
            "/api/v1/snapshot",
            "/api/v1/plan",
            "/api/v1/events",
            "/metrics",
            "/api/v1/me",
            "/api/v1/services/minio/logs",
        ] {
            let (status, text) = sent(router(), "GET", path, &[]).await;
            assert!(status == 401 && text.contains("labd open"), "{path}: {status} {text}");
        }
        assert_eq!(sent(router(), "POST", stop, &[own]).await.0, 401);
        let (cookie, csrf) = lab.log_in(Role::Viewer).await;
        let (cookie, csrf) = (("cookie", cookie.as_str()), ("x-labd-csrf", csrf.as_str()));
        for path in ["/api/v1/snapshot", "/metrics", "/api/v1/services/minio/logs"] {
            assert_eq!(sent(router(), "GET", path, &[cookie]).await.0, 200, "{path}");
        }
        let (status, text) = sent(router(), "POST", stop, &[own, cookie, csrf]).await;
        assert!(status == 403 && text.contains("a viewer may look"), "{status} {text}");
        let (cookie, csrf) = lab.log_in(Role::Admin).await;
        let (cookie, csrf) = (("cookie", cookie.as_str()), ("x-labd-csrf", csrf.as_str()));
        let other = lab.log_in(Role::Admin).await.1;
        for lines in [
            &[own, cookie][..],
            &[own, cookie, ("x-labd-csrf", other.as_str())],
            &[cookie, csrf],
            &[("origin", "http://localhost:8888"), cookie, csrf],
            &[own, ("sec-fetch-site", "same-site"), cookie, csrf],
        ] {
            assert_eq!(sent(router(), "POST", stop, lines).await.0, 403, "{lines:?}");
        }
        assert_eq!(sent(router(), "POST", stop, &[own, cookie, csrf]).await, (200, r#"{"message":"on it"}"#.into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_with_its_session() {
        let lab = Lab::new().closed();
        let (cookie, _) = lab.log_in(Role::Viewer).await;
        let mut stream =
            Sse::new(ask_with(public_router(lab.state.clone()), "/api/v1/stream", "cookie", &cookie).await);
        assert!(stream.next().await.is_some());
        lab.state.accounts.log_out(cookie.split_once('=').expect("a pair").1).await.expect("written");
        let rest = async { while stream.next().await.is_some() {} };
        tokio::time::timeout(LOOK * 3, rest).await.expect("it ends");
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_is_open_uses_its_session_and_a_closed_one_does_not() {
        simulated::begin(Some(Timestamp::from_millis(1_795_000_000_000)));
        let lab = Lab::new().closed();
        let [(wall, _), (closed, _)] = [lab.log_in(Role::Viewer).await, lab.log_in(Role::Viewer).await];
        let open = async |cookie: &str| {
            Sse::new(ask_with(public_router(lab.state.clone()), "/api/v1/stream", "cookie", cookie).await)
        };
        drop(open(&closed).await);
        let mut stream = open(&wall).await;
        let looks = async { while stream.next().await.is_some() {} };
        tokio::time::timeout(Duration::from_hours(13), looks).await.expect_err("it goes on");
        let goes_on = |cookie: &str| lab.state.accounts.goes_on(cookie.split_once('=').expect("a pair").1);
        assert!(goes_on(&wall) && !goes_on(&closed));
        simulated::begin(None);
    }

    #[test]
    fn users_are_called_by_name() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nanna:x:1000:1000::/home/anna:/bin/sh\n";
        assert_eq!((name_in(passwd, 1000), name_in(passwd, 7)), (Some("anna"), None));
    }
}

//! Logging in and out, and who one is.

use std::{
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use axum::{
    Extension, Json,
    extract::State as From,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ApiError, State,
    error::{Done, done},
    extract::{Body, Shape},
    openapi::WithCookie,
    tls::OverTls,
    who::{Entered, Who, cookie},
};
use crate::{
    accounts::{LoginError, NewSession, Person, Role, SESSION_LIFETIME, Way},
    journal::{Entry, Kind},
    secret::Secret,
    time::Timestamp,
};

/// Address that a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address(pub(super) IpAddr);

/// Body of `POST /api/v1/login`.
#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    /// Name of the account.
    name: String,
    /// Its password.
    password: String,
}

impl Shape for Login {
    const SHAPE: &'static str = "{\"name\": ..., \"password\": ...}";
}

/// Body of `POST /api/v1/login/link`.
#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Link {
    /// What stands behind `#link=` in the link.
    token: String,
}

impl Shape for Link {
    const SHAPE: &'static str = "{\"token\": ...}";
}

/// Session that began.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "NewSession")]
pub(super) struct Welcome {
    /// Name of the person.
    name: String,
    /// What they may do.
    role: Role,
    /// Token to show in `X-Labd-Csrf` with what changes something. Told once: what a page has it by is no other page's.
    csrf: String,
    /// Time at which the session ends, however much it is used.
    expires_at: Timestamp,
}

/// Whoever asks.
#[derive(JsonSchema, Serialize)]
pub(super) struct Me {
    /// Name; absent for who is not logged in, and may look all the same.
    name: Option<String>,
    /// What they may do.
    role: Role,
    /// Whether they may change what their role allows: a page must show the token of its session for that, in
    /// `X-Labd-Csrf`, and this request did.
    may_command: bool,
}

/// `POST /api/v1/login`: a session for a name and a password.
pub(super) async fn by_password(
    From(state): From<State>,
    from: Option<Extension<Address>>,
    over: OverTls,
    headers: HeaderMap,
    Body(Login { name, password }): Body<Login>,
) -> Result<WithCookie<Welcome>, ApiError> {
    let session = state.accounts.log_in(&name, &Secret::new(password), way(from, over)).await;
    if let Some(reason) = state.accounts.failures(session.is_ok()) {
        let (at, what) = (Timestamp::now(), "refused".to_owned());
        state.journal.record(Entry { at, service: None, kind: Kind::Person, what, reason });
    }
    let session = session?;
    Ok(welcome(&state, over, &headers, &session).await)
}

/// `POST /api/v1/login/link`: a session for the token of a link.
pub(super) async fn by_link(
    From(state): From<State>,
    from: Option<Extension<Address>>,
    over: OverTls,
    headers: HeaderMap,
    Body(Link { token }): Body<Link>,
) -> Result<WithCookie<Welcome>, ApiError> {
    let session = state.accounts.log_in_by_link(&Secret::new(token), way(from, over)).await?;
    Ok(welcome(&state, over, &headers, &session).await)
}

/// Everybody on this machine counts as one where nobody says who asks.
fn address(from: Option<Extension<Address>>) -> IpAddr {
    from.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |Extension(Address(ip))| ip)
}

/// Way on which a request came.
pub(super) fn way(from: Option<Extension<Address>>, over: OverTls) -> Way {
    Way { from: address(from), over_tls: over.0 }
}

async fn welcome(state: &State, over: OverTls, headers: &HeaderMap, session: &NewSession) -> WithCookie<Welcome> {
    // The session that this one takes the place of, also for the JupyterLab that is open beside the page.
    if let Ok(Some(old)) = cookie(headers, &over.cookie(&state.cookie)) {
        state.accounts.hand_over(old, session);
        let _ = state.accounts.log_out(old).await;
    }
    let told = Welcome {
        name: session.person.name.clone(),
        role: session.person.role,
        csrf: session.csrf.expose().to_owned(),
        expires_at: session.expires_at,
    };
    let (answer, name) = (Json(told).into_response(), over.cookie(&state.cookie));
    WithCookie(with_cookie(answer, &name, session.cookie.expose(), SESSION_LIFETIME, over.0), PhantomData)
}

/// Answer by which a browser keeps a cookie for this time: no script reads it, and no other site sends it.
pub(super) fn with_cookie(
    mut response: Response,
    name: &str,
    value: &str,
    lifetime: Duration,
    only_https: bool,
) -> Response {
    let (seconds, secure) = (lifetime.as_secs(), if only_https { "; Secure" } else { "" });
    let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}");
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

/// `POST /api/v1/logout`: ends the session.
pub(super) async fn out(From(state): From<State>, over: OverTls, headers: HeaderMap) -> WithCookie<Done> {
    let name = over.cookie(&state.cookie);
    let ended = match cookie(&headers, &name) {
        Ok(Some(value)) => state.accounts.log_out(value).await,
        _ => Ok(()),
    };
    let answer = match ended {
        Ok(()) => done("logged out").into_response(),
        Err(error) => ApiError::from(error).into_response(),
    };
    // Whatever the disk says, the browser forgets it.
    WithCookie(with_cookie(answer, &name, "", Duration::ZERO, over.0), PhantomData)
}

/// `GET /api/v1/me`: who asks, and whether this page of theirs may command.
pub(super) async fn me(
    Extension(who): Extension<Who>,
    entered: Option<Extension<Entered>>,
    headers: HeaderMap,
) -> Json<Me> {
    let is_shown = entered.is_some_and(|Extension(entered)| entered.may_change(&headers));
    Json(match &who {
        Who::Person(Person { name, role }) => {
            Me { name: Some(name.clone()), role: *role, may_command: is_shown && *role == Role::Admin }
        }
        Who::Local(_) => Me { name: Some(who.name().into_owned()), role: Role::Admin, may_command: true },
        // Nobody else is let through to here who may not look.
        Who::Nobody => Me { name: None, role: Role::Viewer, may_command: false },
    })
}

impl std::convert::From<LoginError> for ApiError {
    fn from(error: LoginError) -> Self {
        let status = match &error {
            LoginError::Wrong | LoginError::Link | LoginError::Ticket => StatusCode::UNAUTHORIZED,
            LoginError::TooMany { .. } | LoginError::Busy => StatusCode::TOO_MANY_REQUESTS,
            LoginError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;
    use crate::{
        http::{public_router, testing::Lab},
        journal::EventQuery,
    };

    #[tokio::test]
    async fn failed_logins_are_an_event_that_holds_no_password() {
        let lab = Lab::new();
        for _ in 0..5 {
            let request = Request::post("/api/v1/login").header("host", "localhost:8600");
            let request = request.header("origin", "http://localhost:8600").header("content-type", "application/json");
            let body = Body::from("{\"name\": \"ada\", \"password\": \"a wrong password\"}");
            let answer = public_router(lab.state.clone()).oneshot(request.body(body).expect("a request")).await;
            assert_eq!(answer.expect("routers do not fail").status(), 401);
        }
        let query = EventQuery { after_seq: None, service: None, kind: Some(Kind::Person), limit: 9, newest: true };
        let told = lab.state.journal.events(query).await;
        let told: Vec<(&str, &str)> = told.iter().map(|event| (&*event.what, &*event.reason)).collect();
        assert_eq!(told, [("refused", "5 failed logins, the last as nobody known from 127.0.0.1")]);
    }
}

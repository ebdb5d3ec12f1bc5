//! Logging in and out, and who one is.

use std::net::{IpAddr, Ipv4Addr};

use axum::{
    Extension, Json,
    extract::{State as From, rejection::JsonRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{
    ApiError, State,
    who::{Who, cookie, log_in_first},
};
use crate::{
    accounts::{LoginError, NewSession, SESSION_LIFETIME},
    config::Anonymous,
    secret::Secret,
};

/// Address that a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address(pub(super) IpAddr);

/// Body of `POST /api/v1/login`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    name: String,
    password: String,
}

/// Body of `POST /api/v1/login/link`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Link {
    token: String,
}

/// `POST /api/v1/login`: a session for a name and a password.
pub(super) async fn by_password(
    From(state): From<State>,
    from: Option<Extension<Address>>,
    headers: HeaderMap,
    body: Result<Json<Login>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(Login { name, password }) = body.map_err(|_| no_login())?;
    let session = state.accounts.log_in(&name, &Secret::new(password), address(from)).await?;
    Ok(welcome(&state, &headers, &session).await)
}

/// `POST /api/v1/login/link`: a session for the token of a link.
pub(super) async fn by_link(
    From(state): From<State>,
    from: Option<Extension<Address>>,
    headers: HeaderMap,
    body: Result<Json<Link>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(Link { token }) = body.map_err(|_| no_login())?;
    let session = state.accounts.log_in_by_link(&Secret::new(token), address(from)).await?;
    Ok(welcome(&state, &headers, &session).await)
}

fn no_login() -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "the body must be {\"name\": ..., \"password\": ...}, or {\"token\": ...} for a link",
    )
}

/// Everybody on this machine counts as one where nobody says who asks.
fn address(from: Option<Extension<Address>>) -> IpAddr {
    from.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |Extension(Address(ip))| ip)
}

async fn welcome(state: &State, headers: &HeaderMap, session: &NewSession) -> Response {
    // The session that this one takes the place of.
    if let Ok(Some(old)) = cookie(headers, &state.cookie) {
        let _ = state.accounts.log_out(old).await;
    }
    let told = json!({
        "name": session.person.name,
        "role": session.person.role,
        // Told once: what a page has it by is no other page's.
        "csrf": session.csrf.expose(),
        "expires_at": session.expires_at,
    });
    let keep = format!(
        "{}={}; Path=/; HttpOnly; SameSite=Strict; Max-Age={}",
        state.cookie,
        session.cookie.expose(),
        SESSION_LIFETIME.as_secs()
    );
    with_cookie(Json(told).into_response(), &keep)
}

fn with_cookie(mut response: Response, cookie: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}

/// `POST /api/v1/logout`: ends the session.
pub(super) async fn out(From(state): From<State>, headers: HeaderMap) -> Response {
    let ended = match cookie(&headers, &state.cookie) {
        Ok(Some(value)) => state.accounts.log_out(value).await,
        _ => Ok(()),
    };
    let answer = match ended {
        Ok(()) => Json(json!({ "message": "logged out" })).into_response(),
        Err(error) => ApiError::from(error).into_response(),
    };
    // Whatever the disk says, the browser forgets it.
    let gone = format!("{}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0", state.cookie);
    with_cookie(answer, &gone)
}

/// `GET /api/v1/me`: who asks.
pub(super) async fn me(
    From(state): From<State>,
    Extension(who): Extension<Who>,
) -> Result<Json<serde_json::Value>, ApiError> {
    let anonymous = state.config.borrow().http.anonymous;
    match (&who, anonymous) {
        (Who::Person(person), _) => Ok(Json(json!({ "name": person.name, "role": person.role }))),
        (Who::Local(_), _) => Ok(Json(json!({ "name": who.name(), "role": "admin" }))),
        (Who::Nobody, Anonymous::Viewer) => Ok(Json(json!({ "name": null, "role": "viewer" }))),
        (Who::Nobody, Anonymous::None) => Err(log_in_first()),
    }
}

impl std::convert::From<LoginError> for ApiError {
    fn from(error: LoginError) -> Self {
        let status = match &error {
            LoginError::Wrong | LoginError::Link => StatusCode::UNAUTHORIZED,
            LoginError::TooMany { .. } | LoginError::Busy => StatusCode::TOO_MANY_REQUESTS,
            LoginError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

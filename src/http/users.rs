//! Accounts, sessions and one-time links, for the machine's own users over the Unix socket.

use axum::{Extension, Json, extract::State as From, http::StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ApiError, State,
    error::{Done, done},
    extract::{Body, Path, Shape},
    who::Who,
};
use crate::{
    accounts::{self, Account, AccountError, Person, Role, SessionView},
    secret::Secret,
    services,
};

/// Body of `POST /api/v1/users`.
#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewUser {
    /// Name to log in with: 1 to 64 letters, digits, `.`, `_`, `-` or `@`, beginning with neither `.` nor `-`.
    #[schemars(regex(pattern = "^[A-Za-z0-9_@][A-Za-z0-9._@-]{0,63}$"))]
    name: String,
    /// What its person may do.
    role: Role,
    /// Password, of 10 characters and more, and other than the name.
    #[schemars(length(min = 10, max = 1_000))]
    password: String,
}

impl Shape for NewUser {
    const SHAPE: &'static str = "{\"name\": ..., \"role\": \"viewer\" or \"admin\", \"password\": ...}";
}

/// Body of `POST /api/v1/users/{name}/password`.
#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPassword {
    /// Password, of 10 characters and more, and other than the name.
    #[schemars(length(min = 10, max = 1_000))]
    password: String,
}

impl Shape for NewPassword {
    const SHAPE: &'static str = "{\"password\": ...}";
}

/// Body of `POST /api/v1/users/{name}/role`.
#[derive(JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRole {
    /// What its person may do.
    role: Role,
}

impl Shape for NewRole {
    const SHAPE: &'static str = "{\"role\": \"viewer\" or \"admin\"}";
}

/// Link that logs its opener in, once.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "LoginLink")]
pub(super) struct Link {
    /// Address to open.
    url: String,
    /// Time for which it is good, in seconds.
    expires_in_s: u64,
    /// SHA-256 fingerprint of the page's certificate, where labd made that itself and no authority vouches for it.
    fingerprint: Option<String>,
}

/// Every account.
pub(super) async fn list(From(state): From<State>) -> Result<Json<Vec<Account>>, ApiError> {
    Ok(Json(state.accounts.list().await?))
}

/// Adds an account.
pub(super) async fn add(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Body(NewUser { name, role, password }): Body<NewUser>,
) -> Result<Json<Done>, ApiError> {
    state.accounts.add(&name, role, &Secret::new(password)).await?;
    state.asked(&who, None, &format!("add user {name} as {}", role.as_str()));
    Ok(done(format!("{name} can log in as {}", role.as_str())))
}

/// Removes an account, and ends its sessions.
pub(super) async fn remove(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path(name): Path<String>,
) -> Result<Json<Done>, ApiError> {
    state.accounts.remove(&name).await?;
    state.asked(&who, None, &format!("remove user {name}"));
    Ok(done(format!("{name} is removed and logged out everywhere")))
}

/// Gives an account another password, and ends its sessions.
pub(super) async fn password(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path(name): Path<String>,
    Body(NewPassword { password }): Body<NewPassword>,
) -> Result<Json<Done>, ApiError> {
    state.accounts.set_password(&name, &Secret::new(password)).await?;
    state.asked(&who, None, &format!("new password for user {name}"));
    Ok(done(format!("{name} has another password and is logged out everywhere")))
}

/// Gives an account another role.
pub(super) async fn role(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path(name): Path<String>,
    Body(NewRole { role }): Body<NewRole>,
) -> Result<Json<Done>, ApiError> {
    state.accounts.set_role(&name, role).await?;
    state.asked(&who, None, &format!("make user {name} {}", role.as_str()));
    Ok(done(format!("{name} is {} now", role.as_str())))
}

/// Every session.
pub(super) async fn sessions(From(state): From<State>) -> Json<Vec<SessionView>> {
    Json(state.accounts.sessions())
}

/// Ends a session.
pub(super) async fn end(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
) -> Result<Json<Done>, ApiError> {
    if !state.accounts.end(&id).await? {
        let text = format!("no session {id:?}; `labd user sessions` shows them");
        return Err(ApiError::new(StatusCode::NOT_FOUND, text));
    }
    state.asked(&who, None, &format!("end session {id}"));
    Ok(done(format!("session {id} is ended")))
}

/// Makes a link that logs the asker in, once.
pub(super) async fn link(From(state): From<State>, Extension(who): Extension<Who>) -> Json<Link> {
    let token = state.accounts.link(Person { name: who.name().into_owned(), role: Role::Admin });
    let served = state.tls.borrow().clone();
    let page = {
        let (config, snapshot) = (state.config.borrow(), state.snapshot.borrow());
        services::page_url(&config, &snapshot.node.address, served.view.as_ref())
    };
    // Behind `#`, a browser sends it to nobody: it is in no log.
    let url = format!("{page}#link={}", token.expose());
    // By which a person knows a certificate that no authority vouches for.
    let own = served.view.as_ref().filter(|view| view.self_signed).map(|view| view.fingerprint.clone());
    Json(Link { url, expires_in_s: accounts::LINK_VALID.as_secs(), fingerprint: own })
}

impl std::convert::From<AccountError> for ApiError {
    fn from(error: AccountError) -> Self {
        let status = match &error {
            AccountError::Missing(_) => StatusCode::NOT_FOUND,
            AccountError::Exists(_) | AccountError::PasswordIsName => StatusCode::CONFLICT,
            AccountError::Busy | AccountError::Unavailable(_) | AccountError::EndedUntilRestart(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

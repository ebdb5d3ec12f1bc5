//! Accounts, sessions and one-time links, for the machine's own users over the Unix socket.

use axum::{
    Extension, Json,
    extract::{Path, State as From, rejection::JsonRejection},
    http::StatusCode,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiError, State, who::Who};
use crate::{
    accounts::{self, AccountError, Person, Role},
    secret::Secret,
};

/// Body of `POST /api/v1/users`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewUser {
    name: String,
    role: Role,
    password: String,
}

/// Body of `POST /api/v1/users/{name}/password`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewPassword {
    password: String,
}

/// Body of `POST /api/v1/users/{name}/role`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRole {
    role: Role,
}

fn done(message: &str) -> Json<Value> {
    Json(json!({ "message": message }))
}

fn wrong(rejection: &JsonRejection) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, rejection.body_text().lines().next().unwrap_or_default())
}

/// Every account.
pub(super) async fn list(From(state): From<State>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!(state.accounts.list().await?)))
}

/// Adds an account.
pub(super) async fn add(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    body: Result<Json<NewUser>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Json(NewUser { name, role, password }) = body.map_err(|r| wrong(&r))?;
    state.accounts.add(&name, role, &Secret::new(password)).await?;
    state.asked(&who, None, &format!("add user {name} as {}", role.as_str()));
    Ok(done(&format!("{name} can log in as {}", role.as_str())))
}

/// Removes an account, and ends its sessions.
pub(super) async fn remove(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    state.accounts.remove(&name).await?;
    state.asked(&who, None, &format!("remove user {name}"));
    Ok(done(&format!("{name} is removed and logged out everywhere")))
}

/// Gives an account another password, and ends its sessions.
pub(super) async fn password(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path(name): Path<String>,
    body: Result<Json<NewPassword>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Json(NewPassword { password }) = body.map_err(|r| wrong(&r))?;
    state.accounts.set_password(&name, &Secret::new(password)).await?;
    state.asked(&who, None, &format!("new password for user {name}"));
    Ok(done(&format!("{name} has another password and is logged out everywhere")))
}

/// Gives an account another role.
pub(super) async fn role(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path(name): Path<String>,
    body: Result<Json<NewRole>, JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    let Json(NewRole { role }) = body.map_err(|r| wrong(&r))?;
    state.accounts.set_role(&name, role).await?;
    state.asked(&who, None, &format!("make user {name} {}", role.as_str()));
    Ok(done(&format!("{name} is {} now", role.as_str())))
}

/// Every session.
pub(super) async fn sessions(From(state): From<State>) -> Json<Value> {
    Json(json!(state.accounts.sessions()))
}

/// Ends a session.
pub(super) async fn end(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if !state.accounts.end(&id).await? {
        let text = format!("no session {id:?}; `labd user sessions` shows them");
        return Err(ApiError::new(StatusCode::NOT_FOUND, text));
    }
    state.asked(&who, None, &format!("end session {id}"));
    Ok(done(&format!("session {id} is ended")))
}

/// Makes a link that logs the asker in, once.
pub(super) async fn link(From(state): From<State>, Extension(who): Extension<Who>) -> Json<Value> {
    let token = state.accounts.link(Person { name: who.name().into_owned(), role: Role::Admin });
    // Behind `#`, a browser sends it to nobody: it is in no log.
    let url = format!("{}#link={}", page_url(&state), token.expose());
    Json(json!({ "url": url, "expires_in_s": accounts::LINK_VALID.as_secs() }))
}

/// Address of the page as a browser on this machine has it.
fn page_url(state: &State) -> String {
    let page = state.config.borrow().lab.page;
    if page.ip().is_unspecified() {
        let address = state.snapshot.borrow().node.address.clone();
        return format!("http://{address}:{}/", page.port());
    }
    if page.ip().is_loopback() { format!("http://localhost:{}/", page.port()) } else { format!("http://{page}/") }
}

impl std::convert::From<AccountError> for ApiError {
    fn from(error: AccountError) -> Self {
        let status = match &error {
            AccountError::Missing(_) => StatusCode::NOT_FOUND,
            AccountError::Busy | AccountError::Unavailable(_) | AccountError::EndedUntilRestart(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

//! Refusals as problem details (RFC 9457), with the fitting status. `detail` is one line for a person; `error` is the same,
//! under the name that earlier versions had for it.

use axum::{
    Json,
    extract::OriginalUri,
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::Refusal;

/// Refusal as it is sent.
#[derive(JsonSchema, Serialize)]
pub(super) struct Problem {
    /// One line for a person: what is wrong, and what would be right.
    detail: String,
    /// The same, under the name that earlier versions had for it.
    error: String,
    /// The HTTP status.
    #[schemars(range(min = 400, max = 599))]
    status: u16,
    /// The status in words.
    title: &'static str,
    /// Kind of problem, by RFC 9457: there is nothing to know beyond the status.
    #[serde(rename = "type")]
    kind: &'static str,
}

/// Answer to something that was asked for and is under way or done.
#[derive(JsonSchema, Serialize)]
pub(super) struct Done {
    /// One line for a person.
    message: String,
}

/// Answer that something is under way or done.
pub(super) fn done(message: impl Into<String>) -> Json<Done> {
    Json(Done { message: message.into() })
}

/// Refusal of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// One line for a person.
    pub text: String,
}

impl ApiError {
    /// An error with this status.
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            error: self.text.clone(),
            detail: self.text,
            status: self.status.as_u16(),
            title: self.status.canonical_reason().unwrap_or_default(),
            kind: "about:blank",
        };
        // Strings and a number always serialise.
        let problem = serde_json::to_string(&problem).unwrap_or_default();
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], problem).into_response()
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::UnknownService(_) => StatusCode::NOT_FOUND,
            Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::Barred(_) => StatusCode::CONFLICT,
            Refusal::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, refusal.to_string())
    }
}

/// Error for paths that lead nowhere, from here.
pub(super) async fn nothing_here(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    let path = uri.path();
    let here = ["/api/v1/down", "/api/v1/credentials", "/api/v1/links", "/api/v1/users", "/api/v1/sessions"];
    let text = if here.iter().any(|p| path.starts_with(p)) {
        format!("nothing answers {method} `{path}` here: accounts and secrets go over labd's Unix socket, use `labd`")
    } else {
        format!("nothing answers {method} `{path}`")
    };
    ApiError::new(StatusCode::NOT_FOUND, text)
}

/// Error for paths that exist and want another method.
pub(super) async fn wrong_method(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("`{}` does not take {method}", uri.path()))
}

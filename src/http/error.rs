//! Refusals as JSON: `{"error": "one line"}` with the fitting status.

use axum::{
    Json,
    extract::{OriginalUri, rejection::QueryRejection},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::control::Refusal;

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
        (self.status, Json(json!({ "error": self.text }))).into_response()
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::UnknownService(_) => StatusCode::NOT_FOUND,
            Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, refusal.to_string())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(StatusCode::BAD_REQUEST, rejection.body_text())
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

//! What a request brings along, by type: parts of the path, the query, the body. What is wrong with it is one line
//! ([`ApiError`]), and [`super::openapi`] reads from the same types what the document says of it.

use axum::{
    Json,
    extract::{
        FromRequest, FromRequestParts, Request,
        path::ErrorKind,
        rejection::{JsonRejection, PathRejection},
    },
    http::{StatusCode, request::Parts},
};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use super::ApiError;
use crate::text::one_line;

/// Longest part of what somebody sent that an error repeats, in characters. Chosen, not measured.
const REPEATED: usize = 200;

/// Parts of the path, in the order in which it has them.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        read.map(|axum::extract::Path(value)| Self(value)).map_err(|rejection| {
            // What is none of the words that stand there leads nowhere.
            let status = match &rejection {
                PathRejection::FailedToDeserializePathParams(failed)
                    if !matches!(failed.kind(), ErrorKind::InvalidUtf8InPathParam { .. }) =>
                {
                    StatusCode::NOT_FOUND
                }
                _ => StatusCode::BAD_REQUEST,
            };
            ApiError::new(status, one_line(&rejection.body_text(), REPEATED))
        })
    }
}

/// Parameters in the query. A type of them refuses the names that it does not know.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        let bad = |text: &str| ApiError::new(StatusCode::BAD_REQUEST, one_line(text, REPEATED));
        read.map(|axum::extract::Query(value)| Self(value)).map_err(|rejection| bad(&rejection.body_text()))
    }
}

/// Number in a query, within its bounds.
pub(super) fn within(name: &str, number: u32, least: u32, most: u32) -> Result<u32, ApiError> {
    if (least..=most).contains(&number) {
        return Ok(number);
    }
    let text = format!("`{name}` must be a whole number from {least} to {most}");
    Err(ApiError::new(StatusCode::BAD_REQUEST, text))
}

/// Body of a request, as JSON.
pub(super) struct Body<T>(pub(super) T);

/// What a body must look like, for who sent another.
pub(super) trait Shape: DeserializeOwned + JsonSchema {
    /// The body as JSON, with dots where values stand. An error says this, and nothing of what was sent: that may be a password.
    const SHAPE: &'static str;
}

impl<S: Send + Sync, T: Shape> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let read = Json::<T>::from_request(request, state).await;
        read.map(|Json(value)| Self(value)).map_err(|rejection| {
            let (status, text) = match rejection {
                JsonRejection::MissingJsonContentType(_) => (
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "the body must be JSON: send `Content-Type: application/json`".into(),
                ),
                JsonRejection::BytesRejection(rejection) => (rejection.status(), rejection.body_text()),
                _ => (StatusCode::BAD_REQUEST, format!("the body must be {}", T::SHAPE)),
            };
            ApiError::new(status, text)
        })
    }
}

/// Id of the last event that a client heard, where it comes back to a stream.
pub(super) struct LastEventId(pub(super) Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for LastEventId {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(parts.headers.get("last-event-id").and_then(|id| Some(id.to_str().ok()?.to_owned()))))
    }
}

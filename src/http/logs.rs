//! `GET /api/v1/services/{name}/logs?tail=&follow=`: what a service wrote, as plain text.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{Path, Query, State as From, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use serde::Deserialize;

use super::{ApiError, State, stopped};

const TAIL: usize = 200;

/// Source of the output of services.
pub trait LogSource: Send + Sync + 'static {
    /// The last `tail` lines of a service, then, with `follow`, what it writes from now on. An `Err` is one line for
    /// a person and ends the stream.
    fn logs(&self, service: &str, tail: usize, follow: bool) -> BoxStream<'static, Result<Bytes, String>>;
}

/// Query for output.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    tail: Option<usize>,
    #[serde(default)]
    follow: bool,
}

/// Streams the output. What cannot be had at all is an error; what breaks off later just ends.
pub(super) async fn get(
    From(state): From<State>,
    Path(name): Path<String>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(wanted) = wanted?;
    known(&state, &name)?;
    let mut lines = state.logs.logs(&name, wanted.tail.unwrap_or(TAIL), wanted.follow);
    // A service may have written nothing yet; then the answer begins all the same.
    let first = match tokio::time::timeout(Duration::from_millis(500), lines.next()).await {
        Ok(Some(Err(reason))) => return Err(ApiError::new(StatusCode::BAD_GATEWAY, reason)),
        Ok(first) => first,
        Err(_) => None,
    };
    let body = stream::iter(first).chain(lines).map(|line| line.map_err(std::io::Error::other));
    let body = Body::from_stream(body.take_until(stopped(state.shutdown)));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

fn known(state: &State, name: &str) -> Result<(), ApiError> {
    let snapshot = state.snapshot.borrow();
    if snapshot.services.iter().any(|s| s.name == name) {
        return Ok(());
    }
    let names: Vec<&str> = snapshot.services.iter().map(|s| s.name.as_str()).collect();
    Err(ApiError::new(StatusCode::NOT_FOUND, format!("no service `{name}`; there are: {}", names.join(", "))))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::http::{
        admin_router,
        testing::{Lab, ask, status_and_text},
    };

    /// Source of output that repeats what it was asked, then goes on forever when followed.
    struct Parrot;

    impl LogSource for Parrot {
        fn logs(&self, service: &str, tail: usize, follow: bool) -> BoxStream<'static, Result<Bytes, String>> {
            if service == "minio" {
                return stream::iter([Err("minio has no container".to_owned())]).boxed();
            }
            let first = stream::iter([Ok(Bytes::from(format!("{service} {tail} {follow}\n")))]);
            if follow { first.chain(stream::pending()).boxed() } else { first.boxed() }
        }
    }

    fn lab() -> Lab {
        let mut lab = Lab::new();
        lab.state.logs = Arc::new(Parrot);
        lab
    }

    #[tokio::test]
    async fn lines_come_as_plain_text() {
        let lab = lab();
        let answer = ask(admin_router(lab.state.clone()), "GET", "/api/v1/services/ray-head/logs?tail=7").await;
        assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!(status_and_text(answer).await.1, "ray-head 7 false\n");
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_said() {
        let lab = lab();
        for (path, want, says) in [
            ("minio/logs", 502, "minio has no container"),
            ("minoi/logs", 404, "there are: ray-head, minio"),
            ("minio/logs?tail=many", 400, "tail"),
        ] {
            let path = format!("/api/v1/services/{path}");
            let (status, text) = status_and_text(ask(admin_router(lab.state.clone()), "GET", &path).await).await;
            assert!(status == want && text.contains(says), "{path}: {status} {text}");
        }
    }

    #[tokio::test]
    async fn following_ends_at_shutdown() {
        let lab = lab();
        let path = "/api/v1/services/ray-head/logs?follow=true";
        let answer = ask(admin_router(lab.state.clone()), "GET", path).await;
        lab.shutdown.send_replace(true);
        let text = tokio::time::timeout(Duration::from_secs(5), status_and_text(answer)).await.expect("it ends").1;
        assert!("ray-head 200 true\n".starts_with(&text), "{text}");
    }
}

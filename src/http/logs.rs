//! `GET /api/v1/services/{name}/logs?tail=&follow=`: what a service wrote, as plain text.

use std::time::Duration;

use axum::{body::Body, extract::State as From, http::StatusCode};
use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    ApiError, State,
    extract::{Path, Query},
    openapi::Text,
    services::named,
    stopped,
};

const TAIL: u32 = 200;

/// Source of the output of services.
pub trait LogSource: Send + Sync + 'static {
    /// The last `tail` lines of a service, then, with `follow`, what it writes from now on. An `Err` is one line for
    /// a person and ends the stream.
    fn logs(&self, service: &str, tail: usize, follow: bool) -> BoxStream<'static, Result<Bytes, String>>;
}

/// Query for output.
#[derive(Debug, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Number of last lines; 200 when absent.
    #[schemars(range(max = u32::MAX))]
    tail: Option<u32>,
    /// Whether to go on with what it writes from now on.
    #[serde(default)]
    follow: bool,
}

/// Streams the output. What cannot be had at all is an error; what breaks off later just ends.
pub(super) async fn get(
    From(state): From<State>,
    Path(name): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<Text, ApiError> {
    named(&state.snapshot.borrow(), &name)?;
    let tail = usize::try_from(wanted.tail.unwrap_or(TAIL)).unwrap_or(usize::MAX);
    let mut lines = state.logs.logs(&name, tail, wanted.follow);
    // A service may have written nothing yet; then the answer begins all the same.
    let first = match tokio::time::timeout(Duration::from_millis(500), lines.next()).await {
        Ok(Some(Err(reason))) => return Err(ApiError::new(StatusCode::BAD_GATEWAY, reason)),
        Ok(first) => first,
        Err(_) => None,
    };
    let body = stream::iter(first).chain(lines).map(|line| line.map_err(std::io::Error::other));
    Ok(Text(Body::from_stream(body.take_until(stopped(state.shutdown)))))
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

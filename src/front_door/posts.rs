//! What the lab's own containers post to labd, beside what goes to Ray: whether it is theirs, and its body.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::Request,
    http::{HeaderMap, StatusCode},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Collected, Limited};

use super::FrontDoor;

/// Longest time for a body: it comes from a node of this machine.
pub(super) const IN_TIME: Duration = Duration::from_secs(10);

/// Check whether a request is one of the lab's own.
pub(super) type Trust = Arc<dyn Fn(&HeaderMap) -> bool + Send + Sync>;

/// Check by the front door's token.
pub(super) fn trust(door: FrontDoor) -> Trust {
    Arc::new(move |headers: &HeaderMap| door.is_ours(headers))
}

/// Body of a post of the lab's own, at most `largest` bytes of it; `too_large` is what is said of more.
pub(super) async fn body(
    trust: &Trust,
    request: Request,
    largest: usize,
    too_large: &'static str,
) -> Result<Bytes, (StatusCode, &'static str)> {
    if !trust(request.headers()) {
        let text = "not authorized: `Authorization: Bearer` with Ray's token is needed\n";
        return Err((StatusCode::UNAUTHORIZED, text));
    }
    let body = tokio::time::timeout(IN_TIME, Limited::new(request.into_body(), largest).collect());
    let body =
        body.await.map_err(|_| (StatusCode::REQUEST_TIMEOUT, "this did not come within 10 s: post it again\n"))?;
    body.map(Collected::to_bytes).map_err(|_| (StatusCode::PAYLOAD_TOO_LARGE, too_large))
}

//! What runs report to Ray Train, as their controllers post it: `POST /labd/reports` (`images/ray/labd_curve.py`).

use axum::{
    Json, Router,
    extract::{Request, State as From},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::json;

use super::{
    FrontDoor,
    posts::{self, Trust},
};
use crate::{
    time::Timestamp,
    training::{Training, report::Report},
};

/// Largest body: 400 points of 16 metrics are a third of it.
const LARGEST: usize = 512 << 10;

/// The router for reports, beside the front door's own.
pub fn router(door: FrontDoor, training: Training) -> Router {
    of(posts::trust(door), training)
}

fn of(trust: Trust, training: Training) -> Router {
    Router::new().route("/labd/reports", post(report)).with_state((trust, training))
}

async fn report(From((trust, training)): From<(Trust, Training)>, request: Request) -> Response {
    let too_large = "reports exceed 512 KiB: post fewer at once\n";
    let body = match posts::body(&trust, request, LARGEST, too_large).await {
        Ok(body) => body,
        Err(refusal) => return refusal.into_response(),
    };
    let Some(report) = Report::parse(&body, Timestamp::now()) else {
        let text = "not reports: JSON with root, submission, run, run_id, names, points, groups\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    match training.take(report).await {
        Some(taken) => Json(json!({ "stored": taken.stored, "labd": taken.labd })).into_response(),
        None => super::away("training curves cannot be written now"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::{body::Body, http::HeaderMap};
    use http_body_util::BodyExt as _;
    use serde_json::Value;
    use tower::ServiceExt as _;

    use super::{super::posts::IN_TIME, *};
    use crate::training::Which;

    async fn post_to(router: &Router, body: &Value, trusted: bool) -> (StatusCode, Value) {
        let mut request = Request::post("/labd/reports");
        if trusted {
            request = request.header("authorization", "Bearer x");
        }
        let request = request.body(Body::from(body.to_string())).expect("valid");
        let answer = router.clone().oneshot(request).await.expect("infallible");
        let status = answer.status();
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn reports_are_taken_from_the_lab_only_and_the_answer_says_what_is_on_disk() {
        let dir = tempfile::tempdir().expect("a folder");
        let training = Training::open(dir.path()).training;
        let router = of(Arc::new(|headers: &HeaderMap| headers.contains_key("authorization")), training.clone());
        let body = json!({
            "root": "a", "submission": "a", "run": "a", "run_id": "0a", "names": ["loss"],
            "points": [{"seq": 1, "at": 5, "group": 1, "values": [0.5]}],
        });
        assert_eq!(post_to(&router, &body, false).await.0, StatusCode::UNAUTHORIZED);
        assert_eq!(post_to(&router, &json!({"root": "a"}), true).await.0, StatusCode::BAD_REQUEST);
        let large = json!({ "root": "a".repeat(LARGEST) });
        assert_eq!(post_to(&router, &large, true).await.0, StatusCode::PAYLOAD_TOO_LARGE);
        let (status, taken) = post_to(&router, &body, true).await;
        assert_eq!((status, &taken["stored"]), (StatusCode::OK, &json!(0)));
        let read = training.read(Which { root: "a".into(), ..Which::default() }).await.expect("readable");
        assert_eq!(read.map(|curve| curve.points.len()), Some(1));
        let (_, again) = post_to(&router, &body, true).await;
        assert_eq!((&again["stored"], &again["labd"]), (&json!(1), &taken["labd"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_post_that_never_ends_is_given_up() {
        let dir = tempfile::tempdir().expect("a folder");
        let router = of(Arc::new(|_: &HeaderMap| true), Training::open(dir.path()).training);
        let body = Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
        let request = Request::post("/labd/reports").body(body).expect("valid");
        let answer = tokio::time::timeout(2 * IN_TIME, router.oneshot(request)).await.expect("given up");
        assert_eq!(answer.expect("infallible").status(), StatusCode::REQUEST_TIMEOUT);
    }
}

//! `GET /api/v1/notify` and `POST /api/v1/notify/test`: who is told what happens, and whether that works.

use axum::{Extension, Json, extract::State as From, http::StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ApiError, State, extract::Query, who::Who};
use crate::notify::{TargetView, TestError, Tested};

/// Query of `POST /api/v1/notify/test`.
#[derive(Debug, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    /// Name of the target; all when absent.
    name: Option<String>,
}

/// Everybody who is told.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Targets {
    /// Targets of `[[notify]]`, without anything that is secret.
    targets: Vec<TargetView>,
}

/// Outcomes of test messages.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct TestedTargets {
    /// Targets that a message was sent to.
    targets: Vec<Tested>,
}

/// Targets, without anything that is secret.
pub(super) async fn list(From(state): From<State>) -> Json<Targets> {
    let targets = state.notify.watch().borrow().to_vec();
    Json(Targets { targets })
}

/// Sends a test message.
pub(super) async fn test(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Query(Which { name }): Query<Which>,
) -> Result<Json<TestedTargets>, ApiError> {
    let tested = state.notify.test(name.as_deref()).await?;
    let names: Vec<&str> = tested.iter().map(|target| target.name.as_str()).collect();
    state.asked(&who, None, &format!("send a test message to {}", names.join(", ")));
    Ok(Json(TestedTargets { targets: tested }))
}

impl std::convert::From<TestError> for ApiError {
    fn from(error: TestError) -> Self {
        let status = match error {
            TestError::Unknown(_) => StatusCode::NOT_FOUND,
            TestError::Busy => StatusCode::TOO_MANY_REQUESTS,
        };
        Self::new(status, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use crate::http::{
        admin_router,
        testing::{Lab, ask, json, status_and_text},
    };

    #[tokio::test]
    async fn a_lab_that_tells_nobody_says_so() {
        let lab = Lab::new();
        let answer = ask(admin_router(lab.state.clone()), "GET", "/api/v1/notify").await;
        assert_eq!(json(answer).await["targets"], serde_json::json!([]));
        let answer = ask(admin_router(lab.state.clone()), "POST", "/api/v1/notify/test?name=ops").await;
        let (status, text) = status_and_text(answer).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(text.contains("labd.toml has no `[[notify]]`"), "{text}");
    }
}

//! Stopping a job.

use axum::{
    Extension, Json,
    extract::{Path, State as From},
    http::StatusCode,
};
use serde_json::{Value, json};

use super::{ApiError, State, who::Who};
use crate::jobs::Stop;

/// Stops the attempt that runs now, or waits.
pub(super) async fn stop(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let ending = || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "labd is shutting down");
    let attempts = state.jobs.attempts(&id).await.ok_or_else(ending)?;
    let Some(newest) = attempts.last() else {
        let text = format!("no job {id:?} came through labd's front door; `ray job stop` asks Ray");
        return Err(ApiError::new(StatusCode::NOT_FOUND, text));
    };
    if newest.is_over() {
        return Ok(Json(json!({ "message": format!("{} has ended already", newest.id) })));
    }
    state.asked(&who, None, &format!("stop job {id}"));
    // Ray is told by the ledger, as often as it takes.
    match state.jobs.stop(&id).await.ok_or_else(ending)? {
        Stop::Pass(now) => Ok(Json(json!({ "message": format!("{now} is being stopped") }))),
        Stop::Done => Ok(Json(json!({ "message": format!("{} is stopped: it had not begun", newest.id) }))),
    }
}

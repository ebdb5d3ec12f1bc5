//! `POST /api/v1/gpus/{gpu}/release` and `POST /api/v1/gpus/{gpu}/drill/{fault}`.

use axum::{
    Extension, Json,
    extract::{Path, State as From},
};
use serde_json::{Value, json};

use super::{ApiError, State, who::Who};
use crate::gpus::handle::Order;

/// Puts a quarantined GPU back to work, or forgets one that is gone.
pub(super) async fn release(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path(gpu): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let message = state.gpus.ask(Order::Release { gpu: gpu.clone() }).await?;
    state.asked(&who, None, &format!("release GPU {gpu}"));
    Ok(Json(json!({ "message": message })))
}

/// Lets a simulated GPU have a fault.
pub(super) async fn drill(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path((gpu, fault)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let asked = format!("let GPU {gpu} have {fault}");
    let message = state.gpus.ask(Order::Drill { gpu, fault }).await?;
    state.asked(&who, None, &asked);
    Ok(Json(json!({ "message": message })))
}

//! `POST /api/v1/gpus/{gpu}/release` and `POST /api/v1/gpus/{gpu}/drill/{fault}`.

use axum::{
    Json,
    extract::{Path, State as From},
};
use serde_json::{Value, json};

use super::{ApiError, State};
use crate::gpus::handle::Order;

/// Puts a quarantined GPU back to work, or forgets one that is gone.
pub(super) async fn release(From(state): From<State>, Path(gpu): Path<String>) -> Result<Json<Value>, ApiError> {
    let message = state.gpus.ask(Order::Release { gpu }).await?;
    Ok(Json(json!({ "message": message })))
}

/// Lets a simulated GPU have a fault.
pub(super) async fn drill(
    From(state): From<State>,
    Path((gpu, fault)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let message = state.gpus.ask(Order::Drill { gpu, fault }).await?;
    Ok(Json(json!({ "message": message })))
}

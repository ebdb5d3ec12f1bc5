//! The GPUs as the snapshot has them, and `POST /api/v1/gpus/{gpu}/release` and `POST /api/v1/gpus/{gpu}/drill/{fault}`.

use axum::{Extension, Json, extract::State as From, http::StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ApiError, State,
    error::{Done, done},
    extract::Path,
    who::Who,
};
use crate::{
    gpus::handle::Order,
    snapshot::{GpuSource, GpuView},
    text::one_line,
};

/// Every GPU of the lab.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Gpus {
    /// Every GPU, simulated ones marked.
    gpus: Vec<GpuView>,
    /// Sources of their readings; empty when all are simulated.
    gpu_sources: Vec<GpuSource>,
}

/// Every GPU.
pub(super) async fn list(From(state): From<State>) -> Json<Gpus> {
    let snapshot = state.snapshot.borrow().clone();
    Json(Gpus { gpus: snapshot.gpus.clone(), gpu_sources: snapshot.gpu_sources.clone() })
}

/// One GPU.
pub(super) async fn one(From(state): From<State>, Path(id): Path<String>) -> Result<Json<GpuView>, ApiError> {
    let snapshot = state.snapshot.borrow().clone();
    let found = snapshot.gpus.iter().find(|gpu| gpu.id == id).cloned();
    found.map(Json).ok_or_else(|| {
        let text = format!("no GPU {:?}; `labd gpu` shows which there are", one_line(&id, 128));
        ApiError::new(StatusCode::NOT_FOUND, text)
    })
}

/// Puts a quarantined GPU back to work, or forgets one that is gone.
pub(super) async fn release(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path(gpu): Path<String>,
) -> Result<Json<Done>, ApiError> {
    let message = state.gpus.ask(Order::Release { gpu: gpu.clone() }).await?;
    state.asked(&who, None, &format!("release GPU {gpu}"));
    Ok(done(message))
}

/// Lets a simulated GPU have a fault.
pub(super) async fn drill(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path((gpu, fault)): Path<(String, String)>,
) -> Result<Json<Done>, ApiError> {
    let asked = format!("let GPU {gpu} have {fault}");
    let message = state.gpus.ask(Order::Drill { gpu, fault }).await?;
    state.asked(&who, None, &asked);
    Ok(done(message))
}

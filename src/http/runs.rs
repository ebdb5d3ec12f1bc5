//! `GET /api/v1/runs`: training runs, as the snapshot has them.

use axum::{Extension, Json, extract::State as From};
use schemars::JsonSchema;
use serde::Serialize;

use super::{State, snapshot::shown, who::Who};
use crate::snapshot::RunView;

/// Training runs.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Runs {
    /// Runs and what is kept of them, newest first, at most 50.
    runs: Vec<RunView>,
}

/// The runs.
pub(super) async fn list(From(state): From<State>, Extension(who): Extension<Who>) -> Json<Runs> {
    Json(Runs { runs: shown(&state, &who).runs.clone() })
}

//! `GET /api/v1/incidents`: what died, and each step of the way back, as far as the journal remembers.

use axum::{Json, extract::State as From};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ApiError, State,
    extract::Query,
    page::{self, Cursor, Paged},
};
use crate::incident::Incident;

/// Page of incidents.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Incidents {
    /// Incidents, newest first. An end that somebody asked for is none.
    incidents: Vec<Incident>,
    /// Value of `before` for the next page; absent when this is the last.
    next: Option<String>,
}

/// Incidents of the past.
pub(super) async fn list(From(state): From<State>, Query(paged): Query<Paged>) -> Result<Json<Incidents>, ApiError> {
    let (before, limit) = paged.read()?;
    let known = state.journal.older_incidents(before.clone().map(|cursor| (cursor.at, cursor.id)), limit + 1).await;
    let place = |incident: &Incident| Cursor { at: incident.died_at, id: incident.service.clone() };
    let (incidents, next) = page::of(known, place, before.as_ref(), limit);
    Ok(Json(Incidents { incidents, next }))
}

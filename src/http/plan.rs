//! `GET /api/v1/plan`: what labd wants to run, and how the machine is divided.

use axum::{Json, extract::State as From};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::State;

/// The plan. What stands in its parts may change with any version: they are for people, and for `labd plan`.
#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "Plan")]
#[serde(transparent)]
pub(super) struct Printed(Map<String, Value>);

/// The plan in force.
pub(super) async fn get(From(state): From<State>) -> Json<Printed> {
    // Written when it is asked for: as text it is some hundred kilobytes, and hardly anybody asks.
    let plan = state.plan.borrow().clone();
    Json(Printed(match plan.to_json() {
        Value::Object(parts) => parts,
        _ => Map::new(),
    }))
}

#[cfg(test)]
mod tests {
    use crate::http::{
        admin_router,
        testing::{Lab, ask, json},
    };

    #[tokio::test]
    async fn it_is_the_plan_in_force() {
        let lab = Lab::new();
        let answer = ask(admin_router(lab.state.clone()), "GET", "/api/v1/plan").await;
        assert_eq!(json(answer).await["sizes"]["workers"], 2);
    }
}

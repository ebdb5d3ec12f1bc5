//! `GET /api/v1/plan`: what labd wants to run, and how the machine is divided.

use axum::{Json, extract::State as From};
use serde_json::Value;

use super::State;

/// The plan in force.
pub(super) async fn get(From(state): From<State>) -> Json<Value> {
    // Written when it is asked for: as text it is some hundred kilobytes, and hardly anybody asks.
    let plan = state.plan.borrow().clone();
    Json(plan.to_json())
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

//! `GET /api/v1/credentials`: the one place where secrets are shown, and only over the Unix socket.

use axum::{Json, extract::State as From};
use serde_json::{Value, json};

use super::State;

/// Credentials of the lab, in the clear.
pub(super) async fn get(From(state): From<State>) -> Json<Value> {
    let all = state.credentials.borrow();
    all.iter()
        .map(|c| json!({ "name": c.name, "user": c.user, "secret": c.secret.expose(), "url": c.url }))
        .collect::<Value>()
        .into()
}

#[cfg(test)]
mod tests {
    use crate::http::{
        admin_router, public_router,
        testing::{Lab, ask, json, status_and_text},
    };

    #[tokio::test]
    async fn they_are_shown_to_the_admin_only() {
        let lab = Lab::new();
        let answer = ask(admin_router(lab.state.clone()), "GET", "/api/v1/credentials").await;
        assert_eq!(answer.headers()["cache-control"], "no-store");
        assert_eq!(json(answer).await[0]["secret"], "hunter2");
        for path in ["/api/v1/credentials", "/api/v1/snapshot", "/api/v1/plan", "/metrics", "/"] {
            let answer = ask(public_router(lab.state.clone()), "GET", path).await;
            assert!(!status_and_text(answer).await.1.contains("hunter2"), "{path}");
        }
    }
}

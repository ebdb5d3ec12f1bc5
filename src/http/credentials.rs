//! `GET /api/v1/credentials`: the one place where secrets are shown, and only over the Unix socket.

use axum::{Json, extract::State as From};
use schemars::JsonSchema;
use serde::Serialize;

use super::State;
use crate::credentials::Credential;

/// Credential of one service, in the clear.
#[derive(JsonSchema, Serialize)]
pub(super) struct CredentialView {
    /// Name of what it opens.
    name: String,
    /// Name to log in with; absent where none is asked for.
    user: Option<String>,
    /// Password, token or key.
    secret: String,
    /// Address of what it opens.
    url: String,
}

/// Credentials of the lab, in the clear.
pub(super) async fn get(From(state): From<State>) -> Json<Vec<CredentialView>> {
    let view = |c: &Credential| CredentialView {
        name: c.name.clone(),
        user: c.user.clone(),
        secret: c.secret.expose().to_owned(),
        url: c.url.clone(),
    };
    Json(state.credentials.borrow().iter().map(view).collect())
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

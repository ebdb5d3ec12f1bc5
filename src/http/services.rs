//! The services as the snapshot has them, and `POST /api/v1/services/{service}/{start|stop|restart}`.

use axum::{Extension, Json, extract::State as From, http::StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ApiError, State,
    error::{Done, done},
    extract::Path,
    who::Who,
};
use crate::{
    control::Command,
    snapshot::{ServiceView, Snapshot},
    text::one_line,
};

/// Every service of the lab.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Services {
    /// Every service of the plan, in the order they are started.
    services: Vec<ServiceView>,
}

/// Every service.
pub(super) async fn list(From(state): From<State>) -> Json<Services> {
    Json(Services { services: state.snapshot.borrow().services.clone() })
}

/// One service.
pub(super) async fn one(From(state): From<State>, Path(name): Path<String>) -> Result<Json<ServiceView>, ApiError> {
    Ok(Json(named(&state.snapshot.borrow(), &name)?.clone()))
}

/// Service of this name.
pub(super) fn named<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a ServiceView, ApiError> {
    snapshot.services.iter().find(|service| service.name == name).ok_or_else(|| {
        let names: Vec<&str> = snapshot.services.iter().map(|s| s.name.as_str()).collect();
        let text = format!("no service `{}`; there are: {}", one_line(name, 128), names.join(", "));
        ApiError::new(StatusCode::NOT_FOUND, text)
    })
}

/// What can be done with a service.
#[derive(Debug, Clone, Copy, JsonSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verb {
    Start,
    Stop,
    Restart,
}

/// Hands the command to the supervision loop and answers with its one line: `{"message": "..."}`.
pub(super) async fn post(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path((service, verb)): Path<(String, Verb)>,
) -> Result<Json<Done>, ApiError> {
    let named = service.clone();
    let (command, verb) = match verb {
        Verb::Start => (Command::Start { service }, "start"),
        Verb::Stop => (Command::Stop { service }, "stop"),
        Verb::Restart => (Command::Restart { service }, "restart"),
    };
    let message = state.control.ask(command).await?;
    state.asked(&who, Some(&named), verb);
    Ok(done(message))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        control::Refusal,
        http::{
            admin_router, public_router, scrape_router,
            testing::{Lab, ask, status_and_text},
        },
    };

    #[tokio::test]
    async fn commands_reach_the_loop() {
        for (verb, want) in [
            ("start", Command::Start { service: "minio".into() }),
            ("stop", Command::Stop { service: "minio".into() }),
            ("restart", Command::Restart { service: "minio".into() }),
        ] {
            let lab = Lab::answering(move |command| {
                assert_eq!(command, want);
                Ok("minio: on it".into())
            });
            let path = format!("/api/v1/services/minio/{verb}");
            let (status, text) = status_and_text(ask(admin_router(lab.state.clone()), "POST", &path).await).await;
            assert_eq!((status.as_u16(), text.as_str()), (200, r#"{"message":"minio: on it"}"#));
        }
    }

    #[tokio::test]
    async fn refusals_have_a_fitting_status() {
        for (refusal, want) in [
            (Refusal::UnknownService("no service `minoi`; there are: minio".into()), 404),
            (Refusal::Invalid("labd.toml:3: ...".into()), 422),
            (Refusal::Barred("ray-worker-0 cannot be started now: ...".into()), 409),
            (Refusal::ShuttingDown, 503),
        ] {
            let says = refusal.to_string();
            let lab = Lab::answering(move |_| Err(refusal.clone()));
            let answer = ask(admin_router(lab.state.clone()), "POST", "/api/v1/services/minoi/start").await;
            assert_eq!(answer.headers()["content-type"], "application/problem+json");
            let title = answer.status().canonical_reason().expect("a known status");
            let (_, text) = status_and_text(answer).await;
            let problem =
                json!({ "type": "about:blank", "title": title, "status": want, "detail": says, "error": says });
            assert_eq!(text, problem.to_string());
        }
        let lab = Lab::new();
        let answer = ask(admin_router(lab.state.clone()), "POST", "/api/v1/services/minio/explode").await;
        assert_eq!(status_and_text(answer).await.0, StatusCode::NOT_FOUND);
        let answer = ask(admin_router(lab.state.clone()), "GET", "/api/v1/services/minio/start").await;
        assert_eq!(status_and_text(answer).await.0, StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test]
    async fn nothing_of_the_kind_for_nobody_over_tcp() {
        let lab = Lab::answering(|command| panic!("{command:?} got through"));
        for (method, path) in [
            ("POST", "/api/v1/services/minio/stop"),
            ("POST", "/api/v1/reload"),
            ("POST", "/api/v1/apply"),
            ("POST", "/api/v1/gpus/GPU-1/release"),
            ("GET", "/api/v1/services/minio/logs"),
        ] {
            let refused = ask(public_router(lab.state.clone()), method, path).await.status();
            let want = if method == "GET" { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN };
            assert_eq!(refused, want, "{method} {path}");
            let unknown = ask(scrape_router(lab.state.clone()), method, path).await.status();
            assert_eq!(unknown, StatusCode::NOT_FOUND, "{method} {path}");
        }
        for (method, path) in [("GET", "/api/v1/credentials"), ("GET", "/api/v1/users"), ("GET", "/api/v1/sessions")] {
            let (status, text) = status_and_text(ask(public_router(lab.state.clone()), method, path).await).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{method} {path}");
            assert!(text.contains("Unix socket"), "{text}");
        }
    }
}

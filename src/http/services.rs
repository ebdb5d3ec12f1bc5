//! `POST /api/v1/services/{name}/{start|stop|restart}`.

use axum::{
    Extension, Json,
    extract::{Path, State as From},
    http::StatusCode,
};
use serde_json::{Value, json};

use super::{ApiError, State, who::Who};
use crate::control::Command;

/// Hands the command to the supervision loop and answers with its one line: `{"message": "..."}`.
pub(super) async fn post(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path((service, verb)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let named = service.clone();
    let command = match verb.as_str() {
        "start" => Command::Start { service },
        "stop" => Command::Stop { service },
        "restart" => Command::Restart { service },
        _ => {
            let text = format!("unknown action `{verb}`: use `start`, `stop` or `restart`");
            return Err(ApiError::new(StatusCode::NOT_FOUND, text));
        }
    };
    let message = state.control.ask(command).await?;
    state.asked(&who, Some(&named), &verb);
    Ok(Json(json!({ "message": message })))
}

#[cfg(test)]
mod tests {
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
            (Refusal::ShuttingDown, 503),
        ] {
            let says = refusal.to_string();
            let lab = Lab::answering(move |_| Err(refusal.clone()));
            let answer = ask(admin_router(lab.state.clone()), "POST", "/api/v1/services/minoi/start").await;
            let (status, text) = status_and_text(answer).await;
            assert_eq!(status.as_u16(), want);
            assert_eq!(text, json!({ "error": says }).to_string());
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

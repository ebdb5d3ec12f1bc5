//! `POST /api/v1/reload`, `POST /api/v1/apply` and `POST /api/v1/down`: commands to the whole lab.

use axum::{Extension, Json, extract::State as From};

use super::{
    ApiError, State,
    error::{Done, done},
    who::Who,
};
use crate::control::Command;

/// Reads `labd.toml` again; a broken one is refused and changes nothing.
pub(super) async fn reload(From(state): From<State>, Extension(who): Extension<Who>) -> Result<Json<Done>, ApiError> {
    ask(&state, &who, "reload", Command::Reload).await
}

/// Recreates what waits with changed settings.
pub(super) async fn apply(From(state): From<State>, Extension(who): Extension<Who>) -> Result<Json<Done>, ApiError> {
    ask(&state, &who, "apply", Command::Apply).await
}

/// Stops and removes every container, keeps all data, ends the daemon.
pub(super) async fn down(From(state): From<State>, Extension(who): Extension<Who>) -> Result<Json<Done>, ApiError> {
    ask(&state, &who, "down", Command::Down).await
}

async fn ask(state: &State, who: &Who, what: &str, command: Command) -> Result<Json<Done>, ApiError> {
    let message = state.control.ask(command).await?;
    state.asked(who, None, what);
    Ok(done(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::Refusal,
        http::{
            admin_router,
            testing::{Lab, ask, status_and_text},
        },
    };

    #[tokio::test]
    async fn they_reach_the_loop() {
        for (path, want) in
            [("/api/v1/reload", Command::Reload), ("/api/v1/apply", Command::Apply), ("/api/v1/down", Command::Down)]
        {
            let lab = Lab::answering(move |command| {
                assert_eq!(command, want);
                Ok("done".into())
            });
            let (status, text) = status_and_text(ask(admin_router(lab.state.clone()), "POST", path).await).await;
            assert_eq!((status.as_u16(), text.as_str()), (200, r#"{"message":"done"}"#));
        }
    }

    #[tokio::test]
    async fn a_broken_file_is_answered_with_its_line() {
        let lab = Lab::answering(|_| Err(Refusal::Invalid("labd.toml:3: `wokers` is unknown".into())));
        let answer = ask(admin_router(lab.state.clone()), "POST", "/api/v1/reload").await;
        let (status, text) = status_and_text(answer).await;
        assert!(status == 422 && text.contains("labd.toml:3"), "{status} {text}");
    }
}

//! `GET /api/v1/doctor`: what `labd doctor --json` says.
//!
//! A process of its own asks: what a check asks is what hangs when a machine is ill, and it takes memory that the daemon
//! does not give back.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json,
    extract::State as From,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse as _,
};
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::{process::Command, sync::watch, time::Instant};

use super::{ApiError, State, extract::Query, openapi::Made};
use crate::findings::Report;

/// Longest time for all checks: each has 10 s and they run beside each other, then the daemon's own snapshot with 5 s.
const ALL: Duration = Duration::from_secs(20);
/// Time for which an examination answers others who ask, whatever it said: it asks mirrors, and runs programs in containers.
const FRESH: Duration = Duration::from_secs(10);
/// Most that is passed on, in bytes: a hundred times what is usual.
const MOST: usize = 1 << 20;

type Said = Result<Bytes, String>;

/// The examination, one at a time. Clones are the same one.
#[derive(Clone)]
pub struct Doctor {
    program: PathBuf,
    args: Arc<[String]>,
    state: Arc<Mutex<Examined>>,
}

#[derive(Default)]
struct Examined {
    /// The last report, and when it was made.
    last: Option<(Instant, Said)>,
    /// Word of the examination that is under way.
    running: Option<watch::Receiver<Option<Said>>>,
}

impl Doctor {
    /// Examination by this very program, of the lab with this configuration and socket.
    pub fn new(config: &Path, socket: &Path) -> Self {
        let text = |path: &Path| path.display().to_string();
        let args = ["--config", &text(config), "--socket", &text(socket), "doctor", "--json"].map(str::to_owned);
        Self::by("/proc/self/exe".into(), args.into())
    }

    /// Examination by another program.
    pub(super) fn by(program: PathBuf, args: Arc<[String]>) -> Self {
        Self { program, args, state: Arc::default() }
    }

    /// Report of the examination that is under way, of the last one while it is fresh, or of one that begins. It goes on
    /// when whoever asked is gone: what it has started ends with it, and the next who asks begins no other.
    async fn report(&self) -> Said {
        let mut running = {
            let mut state = self.lock();
            if let Some((at, report)) = &state.last
                && at.elapsed() < FRESH
            {
                return report.clone();
            }
            state.running.get_or_insert_with(|| self.begin()).clone()
        };
        let report = running.wait_for(Option::is_some).await.ok().and_then(|report| report.clone());
        report.unwrap_or_else(|| Err("`labd doctor` was not run: labd ends".into()))
    }

    fn begin(&self) -> watch::Receiver<Option<Said>> {
        let (tell, told) = watch::channel(None);
        let doctor = self.clone();
        tokio::spawn(async move {
            let report = examine(&doctor.program, &doctor.args).await;
            let mut state = doctor.lock();
            state.last = Some((Instant::now(), report.clone()));
            state.running = None;
            tell.send_replace(Some(report));
        });
        told
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Examined> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn examine(program: &Path, args: &[String]) -> Said {
    let mut command = Command::new(program);
    // A group of its own: what the checks run ends with them.
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let child = command.spawn().map_err(|e| format!("`labd doctor` cannot be run: {e}"))?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let ended = tokio::time::timeout(ALL, child.wait_with_output()).await;
    if let Some(group) = group.filter(|_| ended.is_err()) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let output = ended
        .map_err(|_| format!("`labd doctor` did not end within {} s; run it on the machine", ALL.as_secs()))?
        .map_err(|e| format!("`labd doctor` cannot be heard: {e}"))?;
    // It ends with 1 where a check failed, and has said which.
    let said = output.stdout;
    if said.len() > MOST || serde_json::from_slice::<serde::de::IgnoredAny>(&said).is_err() {
        return Err(format!("`labd doctor` ended with {}; run it on the machine", output.status));
    }
    Ok(said.into())
}

/// Query for the report.
#[derive(Debug, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Any number: a page that asks anew has another address for it.
    #[serde(rename = "turn")]
    #[schemars(range(max = u32::MAX))]
    _turn: Option<u32>,
}

/// What the doctor found.
pub(super) async fn get(
    From(state): From<State>,
    headers: HeaderMap,
    _: Query<Wanted>,
) -> Result<Made<Json<Report>>, ApiError> {
    // A page on another port of this host makes a browser ask with the cookie, and this is no small question.
    if headers.get("sec-fetch-site").is_some_and(|site| site == "same-site" || site == "cross-site") {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "refused: a page of another origin asks for this"));
    }
    let report = state.doctor.report().await.map_err(|text| ApiError::new(StatusCode::BAD_GATEWAY, text))?;
    Ok(Made::known(([(header::CONTENT_TYPE, "application/json")], report).into_response()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{
        admin_router,
        testing::{Lab, ask, ask_with, status_and_text},
    };

    async fn asked(script: &str) -> (StatusCode, String) {
        let mut lab = Lab::new();
        lab.state.doctor = Doctor::by("/bin/sh".into(), ["-c", script].map(str::to_owned).into());
        status_and_text(ask(admin_router(lab.state.clone()), "GET", "/api/v1/doctor").await).await
    }

    #[tokio::test]
    async fn what_the_doctor_says_is_passed_on_whole_and_nothing_else_is() {
        let (status, text) = asked("echo '{\"checks\": []}'; exit 1").await;
        assert_eq!((status, text.trim()), (StatusCode::OK, "{\"checks\": []}"));
        let (status, text) = asked("echo panicked; exit 101").await;
        assert!(status == StatusCode::BAD_GATEWAY && text.contains("run it on the machine"), "{text}");
    }

    #[tokio::test]
    async fn a_page_of_another_origin_starts_none() {
        let lab = Lab::new();
        for site in ["same-site", "cross-site"] {
            let answer = ask_with(admin_router(lab.state.clone()), "/api/v1/doctor", "sec-fetch-site", site).await;
            assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{site}");
        }
    }

    #[tokio::test]
    async fn several_pages_are_no_reason_for_several_examinations() {
        let folder = tempfile::tempdir().expect("a directory");
        let count = folder.path().join("count");
        let doctor =
            Doctor::by("/bin/sh".into(), ["-c".to_owned(), format!("echo x >> {0}; echo 1", count.display())].into());
        let (first, second) = tokio::join!(doctor.report(), doctor.report());
        assert_eq!(first, second);
        assert_eq!(std::fs::read_to_string(&count).expect("written"), "x\n");
    }

    #[tokio::test]
    async fn an_examination_outlives_who_asked_and_a_failure_answers_the_next_too() {
        let folder = tempfile::tempdir().expect("a directory");
        let count = folder.path().join("count");
        let script = format!("echo x >> {}; sleep 0.3; exit 3", count.display());
        let doctor = Doctor::by("/bin/sh".into(), ["-c".to_owned(), script].into());
        assert!(tokio::time::timeout(Duration::from_millis(20), doctor.report()).await.is_err(), "gave up");
        let told = doctor.report().await.expect_err("no JSON");
        assert!(told.contains("run it on the machine"), "{told}");
        assert_eq!(doctor.report().await, Err(told));
        assert_eq!(std::fs::read_to_string(&count).expect("written"), "x\n", "one examination");
    }
}

//! `GET /api/v1/gpus/history`, `GET /api/v1/usage` and `GET /api/v1/usage.csv`: what the GPUs did, and for whom.

use axum::{Json, extract::State as From, http::StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    ApiError, State,
    extract::{Query, within},
    openapi::Csv,
    turn::{Turn, waited_for},
};
use crate::{
    history::{Chart, DAYS, HOURS, HistoryView, POINTS, UsageView},
    time::Now,
};

/// Number of days of the account where none is named: two weeks.
const SHOWN: u32 = 14;

/// Query for a chart.
#[derive(Debug, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Number of hours up to now; 1 when absent.
    #[schemars(range(min = 1, max = HOURS))]
    hours: Option<u32>,
    /// Largest number of points; as many as there are, up to the bound, when absent.
    #[schemars(range(min = 1, max = POINTS))]
    points: Option<u32>,
    /// Id of the only GPU that is asked for.
    gpu: Option<String>,
}

/// Query for the account.
#[derive(Debug, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Days {
    /// Number of days up to today; 14 when absent.
    #[schemars(range(min = 1, max = DAYS))]
    days: Option<u32>,
}

fn unavailable(line: String) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, line)
}

/// History of the GPUs for a chart.
pub(super) async fn gpus(
    From(state): From<State>,
    turn: Turn,
    Query(Wanted { hours, points, gpu }): Query<Wanted>,
) -> Result<Json<HistoryView>, ApiError> {
    let hours = within("hours", hours.unwrap_or(1), 1, HOURS)?;
    let most = u32::try_from(POINTS).unwrap_or(u32::MAX);
    let points = points.map(|points| within("points", points, 1, most)).transpose()?;
    let points = points.and_then(|points| usize::try_from(points).ok());
    waited_for(turn, async move {
        let snapshot = state.snapshot.borrow().clone();
        let chart = Chart { hours, points, gpu: gpu.as_deref() };
        state.history.chart(chart, &snapshot, Now::read()).await.map(Json).map_err(unavailable)
    })
    .await
}

fn days(Query(wanted): &Query<Days>) -> Result<u32, ApiError> {
    within("days", wanted.days.unwrap_or(SHOWN), 1, DAYS)
}

/// GPU hours by day and week, and GPUs that are idle in jobs' hands.
pub(super) async fn usage(
    From(state): From<State>,
    turn: Turn,
    wanted: Query<Days>,
) -> Result<Json<UsageView>, ApiError> {
    let days = days(&wanted)?;
    waited_for(turn, async move { state.history.usage(days, Now::read()).await.map(Json).map_err(unavailable) }).await
}

/// The same for a spreadsheet.
pub(super) async fn csv(From(state): From<State>, turn: Turn, wanted: Query<Days>) -> Result<Csv, ApiError> {
    let days = days(&wanted)?;
    let text = async move { state.history.usage_csv(days, Now::read()).await.map_err(unavailable) };
    let text = waited_for(turn, text).await?;
    let attachment = "attachment; filename=\"labd-usage.csv\"".to_owned();
    Ok(Csv { attachment, kind: "text/csv; charset=utf-8", text })
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use axum::response::Response;

    use super::*;
    use crate::{
        accounts::Role,
        http::{
            admin_router, public_router,
            testing::{Lab, ask, ask_with, json, status_and_text},
        },
        snapshot::Reading,
    };

    /// Lab whose GPU idled for the last two minutes in the hands of a job.
    fn lab() -> Lab {
        let lab = Lab::new();
        lab.snapshot.send_modify(|snapshot| {
            let snapshot = Arc::make_mut(snapshot);
            snapshot.gpus[0].reading = Some(Reading { utilisation_percent: Some(2.0), ..Reading::default() });
            snapshot.jobs[0].user = Some("anna, the first".into());
            snapshot.jobs[0].workers = vec!["ray-worker-0".into()];
        });
        let (now, snapshot) = (Now::read(), lab.snapshot.borrow().clone());
        for second in 0..120 {
            let moment = now.moment.minus(Duration::from_secs(120 - second));
            let wall = now.wall.minus(Duration::from_secs(120 - second));
            lab.state.history.look(Now { wall, moment }, &snapshot);
        }
        lab
    }

    #[tokio::test]
    async fn a_chart_has_the_points_that_were_asked_for() {
        let lab = lab();
        let router = admin_router(lab.state.clone());
        for (query, step, points) in [
            ("", 5, 720),
            ("?hours=1&points=60", 60, 60),
            ("?hours=2", 60, 120),
            ("?hours=168", 420, 1_440),
            ("?hours=168&points=100&gpu=SIM-0", 6_060, 100),
        ] {
            let view = json(ask(router.clone(), "GET", &format!("/api/v1/gpus/history{query}")).await).await;
            assert_eq!(
                (&view["step_s"], view["time"].as_array().map(Vec::len)),
                (&step.into(), Some(points)),
                "{query}"
            );
            let gpu = &view["gpus"][0];
            assert_eq!((&gpu["id"], &gpu["worker"]), (&"SIM-0".into(), &"ray-worker-0".into()));
            for column in ["use", "use_max", "memory", "temperature", "power"] {
                assert_eq!(gpu[column].as_array().map(Vec::len), Some(points), "{query} {column}");
            }
            assert!(gpu["use"].as_array().expect("a list").contains(&2.0.into()), "{query}");
            assert_eq!(gpu["jobs"][0]["job"], "raysubmit_1", "{query}");
        }
        for query in ["?hours=0", "?hours=169", "?hours=x", "?points=0", "?points=1501", "?gpus=1"] {
            let answer = ask(router.clone(), "GET", &format!("/api/v1/gpus/history{query}")).await;
            let (status, text) = status_and_text(answer).await;
            assert!(status == 400 && text.starts_with("{\"detail\":"), "{query}: {status} {text}");
        }
    }

    #[tokio::test]
    async fn the_account_is_told_as_json_and_csv() {
        let lab = lab();
        let router = admin_router(lab.state.clone());
        let usage = json(ask(router.clone(), "GET", "/api/v1/usage").await).await;
        // Soon after midnight most of it is of the day before.
        let days = usage["days"].as_array().expect("days");
        let jobs = days.iter().map(|day| &day["jobs"][0]);
        let job = jobs.max_by(|a, b| a["gpu_hours"].as_f64().partial_cmp(&b["gpu_hours"].as_f64()).expect("numbers"));
        let job = job.expect("one");
        assert_eq!((&job["job"], &job["user"]), (&"raysubmit_1".into(), &"anna, the first".into()));
        assert!(job["gpu_hours"].as_f64().is_some_and(|hours| hours > 0.01) && job["idle_hours"] == 0.0, "{job}");
        assert_eq!(usage["weeks"][0]["users"][0]["user"], "anna, the first");
        assert_eq!(usage["idle_now"], serde_json::json!([]));
        let answer = ask(router.clone(), "GET", "/api/v1/usage.csv?days=2").await;
        assert_eq!(answer.headers()["content-type"], "text/csv; charset=utf-8");
        assert_eq!(answer.headers()["content-disposition"], "attachment; filename=\"labd-usage.csv\"");
        let (_, text) = status_and_text(answer).await;
        let mut lines = text.split("\r\n");
        assert_eq!(lines.next(), Some("day,job,user,gpu,gpu_hours,busy_hours,idle_hours"));
        assert!(lines.next().is_some_and(|line| line.contains(",raysubmit_1,\"anna, the first\",SIM-0,0.")), "{text}");
        for query in ["usage?days=0", "usage?days=401", "usage.csv?days=x", "usage?day=1"] {
            let answer = ask(router.clone(), "GET", &format!("/api/v1/{query}")).await;
            assert_eq!(status_and_text(answer).await.0, 400, "{query}");
        }
    }

    #[tokio::test]
    async fn charts_are_for_readers_and_the_account_is_for_people() {
        let open = lab();
        let closed = lab().closed();
        let (cookie, _) = closed.log_in(Role::Viewer).await;
        for (path, anybody) in [("gpus/history", 200), ("usage", 401), ("usage.csv", 401)] {
            let path = format!("/api/v1/{path}");
            let status = |answer: Response| answer.status().as_u16();
            assert_eq!(status(ask(public_router(open.state.clone()), "GET", &path).await), anybody, "{path}");
            assert_eq!(status(ask(public_router(closed.state.clone()), "GET", &path).await), 401, "{path}");
            let answer = ask_with(public_router(closed.state.clone()), &path, "cookie", &cookie).await;
            assert_eq!(status(answer), 200, "{path}");
        }
    }

    #[tokio::test]
    async fn a_gpu_that_idles_in_a_jobs_hands_is_named_with_since_when() {
        let (snapshot, now) = (lab().snapshot.borrow().clone(), Now::read());
        let back = |minutes| Duration::from_mins(minutes);
        let dir = tempfile::tempdir().expect("a directory");
        let history = crate::history::History::open(dir.path()).0;
        for minute in (0..=32).rev() {
            let at = Now { wall: now.wall.minus(back(minute)), moment: now.moment.minus(back(minute)) };
            history.look(at, &snapshot);
        }
        let idle = history.idle_now(now);
        assert_eq!((idle.len(), &*idle[0].job, &*idle[0].gpu), (1, "raysubmit_1", "SIM-0"));
        assert!(now.wall.since(idle[0].since) >= back(30), "{idle:?}");
    }
}

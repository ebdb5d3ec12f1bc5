//! `GET /api/v1/jobs/{id}/curve`: a job's training curve with its faults on it, in columns; as a table: `curve.csv`.

use std::collections::BTreeMap;

use axum::{Json, extract::State as From, http::StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ApiError, State,
    extract::{Path, Query},
    jobs::{self, Found},
    openapi::{Csv, Made},
    turn::{Turn, worked_out},
};
use crate::{
    text::path_segment,
    training::{
        Curve, csv as table,
        marks::{self, Mark, Marks, Span},
    },
};

/// Query for a curve.
#[derive(Debug, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Name of the run; the one that was reported to last when absent.
    run: Option<String>,
}

/// Curve in columns, as uPlot draws it.
#[derive(Debug, JsonSchema, Serialize)]
#[schemars(rename = "Curve")]
pub(super) struct Columns {
    /// Id that the job's owner knows.
    job: String,
    /// Run that this is the curve of; absent where nothing was reported.
    run: Option<String>,
    /// Every run of the job that reported something.
    runs: Vec<String>,
    /// Names of the metrics.
    metrics: Vec<String>,
    /// Time of each point, in milliseconds since the Unix epoch.
    time: Vec<i64>,
    /// Values of each metric, one for each point.
    values: BTreeMap<String, Vec<Option<f64>>>,
    /// Number of the worker group that reported each point.
    attempt: Vec<u32>,
    /// Whether a checkpoint came with each point.
    checkpoint: Vec<bool>,
    /// What happened meanwhile, by time.
    marks: Vec<Mark>,
    /// Spans of work that was done again.
    lost: Vec<Span>,
    /// Number of points that were not kept.
    dropped: u64,
}

impl Columns {
    fn new(job: &str, run: Option<String>, curve: Curve, marks: Marks) -> Self {
        let column = |i: usize| curve.points.iter().map(|point| point.values.get(i).copied().flatten()).collect();
        Self {
            job: job.to_owned(),
            run,
            time: curve.points.iter().map(|point| point.at.as_millis()).collect(),
            values: curve.metrics.iter().enumerate().map(|(i, name)| (name.clone(), column(i))).collect(),
            attempt: curve.points.iter().map(|point| point.group).collect(),
            checkpoint: curve.points.iter().map(|point| point.checkpoint.is_some()).collect(),
            runs: curve.runs,
            metrics: curve.metrics,
            marks: marks.marks,
            lost: marks.lost,
            dropped: curve.dropped,
        }
    }
}

/// Job that somebody asked for, with the curve of the run that they named, or of the one that was reported to last.
async fn asked(
    state: &State,
    id: &str,
    Query(Wanted { run }): Query<Wanted>,
) -> Result<(Found, Option<Curve>), ApiError> {
    let found = jobs::find(state, id).await?;
    let curve = found.curve(state, run.clone()).await?;
    match (run, &curve) {
        (Some(run), None) => {
            let text = format!("job {id:?} has no run {run:?} that reported anything");
            Err(ApiError::new(StatusCode::NOT_FOUND, text))
        }
        _ => Ok((found, curve)),
    }
}

/// The curve of a job; an empty one where its run reported nothing.
pub(super) async fn get(
    From(state): From<State>,
    Path(id): Path<String>,
    turn: Turn,
    wanted: Query<Wanted>,
) -> Result<Made<Json<Columns>>, ApiError> {
    let (found, curve) = asked(&state, &id, wanted).await?;
    let folded = found.folded()?;
    let name = curve.as_ref().map(|curve| curve.run.clone()).or_else(|| folded.run.clone());
    let attempts = folded.on_curve();
    let incidents = state.journal.incidents();
    let curve = curve.unwrap_or_default();
    let job = folded.id.to_owned();
    worked_out(turn, move || {
        let hit = |run: &String| marks::of_run(&incidents, run, &curve.groups, &attempts);
        let hit = name.as_ref().map(hit).unwrap_or_default();
        let marks = marks::decide(&curve, &hit, &attempts);
        Made::of(Json(Columns::new(&job, name, curve, marks)))
    })
    .await
}

/// The curve as CSV, to be downloaded.
pub(super) async fn csv(
    From(state): From<State>,
    Path(id): Path<String>,
    turn: Turn,
    wanted: Query<Wanted>,
) -> Result<Csv, ApiError> {
    let (found, curve) = asked(&state, &id, wanted).await?;
    let folded = found.folded()?;
    let curve = curve.unwrap_or_else(|| Curve { run: folded.run.clone().unwrap_or_default(), ..Curve::default() });
    let attachment = attachment(&format!("{}-curve.csv", folded.id));
    let kind = "text/csv; charset=utf-8; header=present";
    worked_out(turn, move || Csv { attachment, kind, text: table::of(&curve) }).await
}

/// Header for a download of this name: as every browser reads it, and with every character (RFC 6266).
fn attachment(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{}", path_segment(name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{
        admin_router, public_router,
        testing::{Lab, ask, json as answer, status_and_text},
    };
    use crate::{
        incident::{Cause, Incident, Interrupted, Order},
        snapshot::{JobOutcome, JobStatus, JobView, Snapshot},
        time::Timestamp,
        training::report::Report,
    };

    /// Time of what the lab of the tests shows, in milliseconds.
    const T: i64 = 1_795_492_872_123;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(T + s * 1_000)
    }

    /// Lab with a job whose first attempt was lost and whose second one trains.
    async fn lab() -> Lab {
        let lab = Lab::new();
        lab.snapshot.send_modify(|snapshot| {
            let mut now: Snapshot = (**snapshot).clone();
            let first = JobView {
                run: Some("food11".into()),
                status: JobStatus::Failed,
                outcome: Some(JobOutcome::Lost),
                message: "lost (ray-driver: killed); resubmitted as raysubmit_1-r1".into(),
                ended_at: Some(at(22)),
                resubmitted_as: Some("raysubmit_1-r1".into()),
                ..now.jobs[0].clone()
            };
            let second = JobView {
                submission_id: "raysubmit_1-r1".into(),
                run: Some("food11".into()),
                submitted_at: Some(at(23)),
                attempt: Some(2),
                resubmission_of: Some("raysubmit_1".into()),
                workers: vec!["ray-worker-0".into()],
                ..now.jobs[0].clone()
            };
            now.jobs = vec![second, first];
            *snapshot = now.into();
        });
        lab.state.journal.keep_incident(Incident {
            service: "ray-driver".into(),
            cause: Cause::Exit,
            why: "container exited 137 (SIGKILL)".into(),
            died_at: at(20),
            noticed_at: at(20),
            running_at: None,
            ready_at: None,
            training: vec![Interrupted { run: "food11".into(), training_at: None, checkpoint: None, lost_ms: None }],
            order: Order::default(),
        });
        for (attempt, began, seqs) in [(1, 1, 1..=3), (2, 30, 1..=2)] {
            let point = |seq: i64| {
                let checkpoint = (attempt == 1 && seq == 2).then_some("checkpoint_2");
                let loss = (seq != 3).then_some(0.5);
                json!({"seq": seq, "at": at(began + seq * 5).as_millis(), "group": 1, "checkpoint": checkpoint, "values": [loss]})
            };
            let report = json!({
                "root": "raysubmit_1", "submission": if attempt == 1 { "raysubmit_1" } else { "raysubmit_1-r1" },
                "attempt": attempt, "run": "food11", "run_id": format!("id{attempt}"), "names": ["loss"],
                "points": seqs.map(point).collect::<Vec<_>>(),
                "groups": [{"group": 1, "began": at(began).as_millis(), "nodes": ["198.18.0.2"]}],
            });
            let report = Report::parse(report.to_string().as_bytes(), at(100)).expect("a report");
            lab.state.training.take(report).await.expect("room");
        }
        lab
    }

    #[tokio::test]
    async fn a_curve_goes_on_over_attempts_with_its_deaths_and_what_was_done_twice() {
        let lab = lab().await;
        let ms = |s: i64| T + s * 1_000;
        for id in ["raysubmit_1", "raysubmit_1-r1"] {
            let told =
                answer(ask(admin_router(lab.state.clone()), "GET", &format!("/api/v1/jobs/{id}/curve")).await).await;
            assert_eq!((&told["job"], &told["run"]), (&json!("raysubmit_1"), &json!("food11")));
            assert_eq!((&told["metrics"], &told["runs"]), (&json!(["loss"]), &json!(["food11"])));
            assert_eq!(told["time"], json!([ms(6), ms(11), ms(16), ms(35), ms(40)]));
            assert_eq!(told["values"], json!({"loss": [0.5, 0.5, null, 0.5, 0.5]}));
            assert_eq!(told["attempt"], json!([1, 1, 1, 2, 2]));
            assert_eq!(told["checkpoint"], json!([false, true, false, false, false]));
            let kinds: Vec<Value> =
                told["marks"].as_array().expect("marks").iter().map(|m| m["kind"].clone()).collect();
            assert_eq!(kinds, ["death", "lost", "resumed"]);
            let death = json!({"at": ms(20), "kind": "death", "service": "ray-driver",
                "text": "container exited 137 (SIGKILL)", "outcome": null});
            assert_eq!(told["marks"][0], death);
            assert_eq!((&told["lost"], &told["dropped"]), (&json!([{"from": ms(11), "to": ms(20)}]), &json!(0)));
        }
    }

    #[tokio::test]
    async fn a_curve_can_be_downloaded_as_a_table() {
        let lab = lab().await;
        let got = ask(admin_router(lab.state.clone()), "GET", "/api/v1/jobs/raysubmit_1/curve.csv").await;
        assert!(got.headers()["content-type"].to_str().is_ok_and(|v| v.starts_with("text/csv")));
        let name = got.headers()["content-disposition"].to_str().expect("text").to_owned();
        assert!(name.starts_with("attachment; filename=\"raysubmit_1-curve.csv\""), "{name}");
        let (_, text) = status_and_text(got).await;
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0]), (6, "time,run,attempt,checkpoint,loss"));
        assert_eq!(lines[2], "2026-11-24T04:01:23.123Z,food11,1,checkpoint_2,0.5");
    }

    #[tokio::test]
    async fn one_job_is_told_whole() {
        let lab = lab().await;
        let told = answer(ask(admin_router(lab.state.clone()), "GET", "/api/v1/jobs/raysubmit_1-r1").await).await;
        assert_eq!(
            (&told["id"], &told["status"], &told["curve"]),
            (&json!("raysubmit_1"), &json!("RUNNING"), &json!(true))
        );
        assert_eq!((&told["workers"], &told["gpus"]), (&json!(["ray-worker-0"]), &json!(["SIM-0"])));
        let ids: Vec<&Value> =
            told["attempts"].as_array().expect("a list").iter().map(|a| &a["submission_id"]).collect();
        assert_eq!(ids, ["raysubmit_1", "raysubmit_1-r1"]);
        assert_eq!(
            (&told["checkpoint"]["name"], &told["train_run"]["name"]),
            (&json!("checkpoint_1"), &json!("food11"))
        );
        assert_eq!(
            (&told["faults"][0]["service"], &told["faults"][0]["cause"]),
            (&json!("ray-driver"), &json!("exit"))
        );
        assert_eq!(
            (&told["groups"][1]["submission_id"], &told["groups"][1]["number"]),
            (&json!("raysubmit_1-r1"), &json!(2))
        );
    }

    #[tokio::test]
    async fn what_is_not_there_is_said_in_one_line() {
        let lab = lab().await;
        for (path, status, says) in [
            ("nobody", 404, "no job"),
            ("nobody/curve", 404, "no job"),
            ("nobody/logs", 404, "no job"),
            ("raysubmit_1/curve?run=x", 404, "no run"),
            ("raysubmit_1/curve.csv?run=x", 404, "no run"),
            ("raysubmit_1/curve?x=1", 400, "unknown field"),
            ("raysubmit_1/logs?tail=x", 400, "tail"),
            ("raysubmit_1/logs", 503, "head is away"),
        ] {
            let got =
                status_and_text(ask(admin_router(lab.state.clone()), "GET", &format!("/api/v1/jobs/{path}")).await)
                    .await;
            assert!(got.0.as_u16() == status && got.1.contains(says), "{path}: {got:?}");
        }
        // A job that reported nothing has an empty curve.
        let lab = Lab::new();
        let told = answer(ask(admin_router(lab.state.clone()), "GET", "/api/v1/jobs/raysubmit_1/curve").await).await;
        assert_eq!((&told["time"], &told["run"], &told["marks"]), (&json!([]), &Value::Null, &json!([])));
        let (_, text) =
            status_and_text(ask(admin_router(lab.state), "GET", "/api/v1/jobs/raysubmit_1/curve.csv").await).await;
        assert_eq!(text, "time,run,attempt,checkpoint\r\n");
    }

    #[tokio::test]
    async fn a_curve_is_for_who_logged_in() {
        let lab = lab().await;
        for path in ["", "/curve", "/curve.csv", "/logs"] {
            let got = ask(public_router(lab.state.clone()), "GET", &format!("/api/v1/jobs/raysubmit_1{path}")).await;
            assert_eq!(got.status(), 401, "{path}");
        }
    }
}

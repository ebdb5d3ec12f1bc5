//! Jobs, and the names of their training runs, from the dashboard's HTTP API.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, header};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde::Deserialize;
use serde_json::Value;

use super::Endpoint;
use crate::{snapshot::JobView, time::Timestamp};

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Largest answer read: thousands of jobs.
const LARGEST: usize = 16 << 20;
/// How many jobs the snapshot shows.
const SHOWN: usize = 50;
/// Longest message shown, in characters.
const MESSAGE: usize = 200;

/// All jobs that were submitted, newest first. Run names are left out when they cannot be had.
pub(super) async fn fetch(endpoint: &Endpoint) -> Result<Vec<JobView>, String> {
    let (jobs, runs) = tokio::join!(get(endpoint, "/api/jobs/"), get(endpoint, "/api/train/v2/runs/v1"));
    let runs = runs.map(|runs| run_names(&runs)).unwrap_or_default();
    Ok(views(jobs?, &runs))
}

async fn get(endpoint: &Endpoint, path: &str) -> Result<Value, String> {
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http::<Empty<Bytes>>();
    let request = Request::get(format!("http://{}{path}", endpoint.dashboard))
        .header(header::AUTHORIZATION, format!("Bearer {}", endpoint.token.expose()))
        .body(Empty::new())
        .map_err(|_| "the dashboard has no valid address")?;
    let work = async {
        let answer = client.request(request).await.map_err(|_| "the dashboard does not answer".to_owned())?;
        let status = answer.status();
        if !status.is_success() {
            return Err(format!("the dashboard answers {path} with HTTP status {}", status.as_u16()));
        }
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        let body = body.map_err(|_| "the dashboard's answer broke off".to_owned())?.to_bytes();
        serde_json::from_slice(&body).map_err(|_| format!("the dashboard's answer to {path} is no JSON"))
    };
    tokio::time::timeout(ANSWER, work).await.map_err(|_| "the dashboard does not answer".to_owned())?
}

#[derive(Deserialize)]
struct Job {
    submission_id: Option<String>,
    #[serde(default)]
    status: String,
    #[serde(default)]
    entrypoint: String,
    start_time: Option<i64>,
    end_time: Option<i64>,
    message: Option<String>,
}

/// The answer of `/api/jobs/` as the snapshot shows it. What does not look like a job is skipped. Pure.
fn views(jobs: Value, runs: &HashMap<String, String>) -> Vec<JobView> {
    let Value::Array(jobs) = jobs else { return Vec::new() };
    let mut views: Vec<JobView> = jobs
        .into_iter()
        .filter_map(|job| serde_json::from_value::<Job>(job).ok())
        .filter_map(|job| {
            let submission_id = job.submission_id?;
            Some(JobView {
                run: runs.get(&submission_id).cloned(),
                submission_id,
                status: job.status,
                entrypoint: one_line(&job.entrypoint),
                submitted_at: job.start_time.map(Timestamp::from_millis),
                ended_at: job.end_time.filter(|&ms| ms > 0).map(Timestamp::from_millis),
                message: one_line(&job.message.unwrap_or_default()),
            })
        })
        .collect();
    views.sort_by(|a, b| (b.submitted_at, &b.submission_id).cmp(&(a.submitted_at, &a.submission_id)));
    views.truncate(SHOWN);
    views
}

/// Submission id -> name of its newest training run. Pure.
fn run_names(runs: &Value) -> HashMap<String, String> {
    let mut found: HashMap<String, (i64, String)> = HashMap::new();
    for run in runs["train_runs"].as_array().into_iter().flatten() {
        let id = run["job_details"]["submission_id"].as_str();
        let (Some(id), Some(name)) = (id, run["name"].as_str()) else { continue };
        let started = run["start_time_ms"].as_i64().or(run["start_time_ns"].as_i64()).unwrap_or_default();
        if found.get(id).is_none_or(|(before, _)| *before <= started) {
            found.insert(id.to_owned(), (started, name.to_owned()));
        }
    }
    found.into_iter().map(|(id, (_, name))| (id, name)).collect()
}

fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= MESSAGE {
        return line;
    }
    line.chars().take(MESSAGE - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn jobs_are_shown_newest_first_with_their_run() {
        let jobs = json!([
            {"submission_id": "a", "status": "FAILED", "entrypoint": "python a.py", "start_time": 1, "end_time": 5,
             "message": "line one\nline two"},
            {"submission_id": "b", "status": "RUNNING", "entrypoint": "python\nb.py", "start_time": 2, "end_time": null},
            {"submission_id": null, "job_id": "01000000", "status": "RUNNING"},
            {"surprise": true}, 7, null
        ]);
        let runs = run_names(&json!({"train_runs": [
            {"name": "old", "job_details": {"submission_id": "b"}, "start_time_ms": 1},
            {"name": "food11", "job_details": {"submission_id": "b"}, "start_time_ms": 2},
            {"name": "x", "job_details": null}, 3
        ]}));
        let views = views(jobs, &runs);
        assert_eq!(views.len(), 2);
        assert_eq!((views[0].submission_id.as_str(), views[0].run.as_deref()), ("b", Some("food11")));
        assert_eq!((views[0].entrypoint.as_str(), views[0].ended_at), ("python b.py", None));
        assert_eq!(views[1].message, "line one line two");
    }

    #[test]
    fn nonsense_is_no_job() {
        for nonsense in [json!(null), json!({"a": 1}), json!("x")] {
            assert!(views(nonsense.clone(), &HashMap::new()).is_empty());
            assert!(run_names(&nonsense).is_empty());
        }
        assert_eq!(one_line(&"x".repeat(500)).chars().count(), MESSAGE);
    }
}

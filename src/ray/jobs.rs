//! Jobs from the dashboard's HTTP API.

use std::time::Duration;

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

/// All jobs that were submitted, newest first, without their runs.
pub(super) async fn fetch(endpoint: &Endpoint) -> Result<Vec<JobView>, String> {
    get(endpoint, "/api/jobs/").await.map(views)
}

/// What the dashboard answers.
pub(super) async fn get(endpoint: &Endpoint, path: &str) -> Result<Value, String> {
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
fn views(jobs: Value) -> Vec<JobView> {
    let Value::Array(jobs) = jobs else { return Vec::new() };
    let mut views: Vec<JobView> = jobs
        .into_iter()
        .filter_map(|job| serde_json::from_value::<Job>(job).ok())
        .filter_map(|job| {
            let submission_id = job.submission_id?;
            Some(JobView {
                submission_id,
                status: job.status,
                run: None,
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
    fn jobs_are_shown_newest_first() {
        let jobs = json!([
            {"submission_id": "a", "status": "FAILED", "entrypoint": "python a.py", "start_time": 1, "end_time": 5,
             "message": "line one\nline two"},
            {"submission_id": "b", "status": "RUNNING", "entrypoint": "python\nb.py", "start_time": 2, "end_time": null},
            {"submission_id": null, "job_id": "01000000", "status": "RUNNING"},
            {"surprise": true}, 7, null
        ]);
        let views = views(jobs);
        assert_eq!(views.len(), 2);
        assert_eq!(views[0].submission_id, "b");
        assert_eq!((views[0].entrypoint.as_str(), views[0].ended_at), ("python b.py", None));
        assert_eq!(views[1].message, "line one line two");
    }

    #[test]
    fn nonsense_is_no_job() {
        for nonsense in [json!(null), json!({"a": 1}), json!("x")] {
            assert!(views(nonsense).is_empty());
        }
        assert_eq!(one_line(&"x".repeat(500)).chars().count(), MESSAGE);
    }
}

//! The job API of Ray's dashboard: what labd reads there, and the few things it asks for.

use std::{collections::BTreeSet, path::Path, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use url::Url;

use super::{Endpoint, gcs::Gcs};
use crate::{
    snapshot::JobStatus,
    text::{path_segment, shell_word},
    time::Timestamp,
};

/// Metadata key of a job that labd submitted: the person's submission that it belongs to.
pub const ROOT: &str = "labd.root";
/// Metadata key of a job that labd submitted: 1 for the person's submission, 2 for its first resubmission, and so on.
pub const ATTEMPT: &str = "labd.attempt";
/// Metadata key of a job that labd submitted: the time at which the person's submission came. An id can be used again.
pub const SUBMITTED: &str = "labd.submitted";
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest wait for a submission's answer: Ray itself waits 10 s for an agent, and starts the job's supervisor then.
const TAKEN: Duration = Duration::from_secs(30);
/// Longest wait for a package to be taken.
const UPLOADED: Duration = Duration::from_mins(5);
/// What is said of a dashboard that does not answer, or not in time.
const NO_ANSWER: &str = "the dashboard does not answer";
/// Largest answer read: thousands of jobs.
const LARGEST: usize = 64 << 20;
/// Number of characters that are kept of a job's last output: Ray sends up to 20 000 of them.
const LAST_WORDS: usize = 4_000;

/// Job as the job API reports it.
#[derive(Debug, Clone, PartialEq)]
pub struct RayJob {
    /// Its submission id.
    pub submission_id: String,
    /// Its status.
    pub status: JobStatus,
    /// Kind of failure.
    pub error: Option<ErrorType>,
    /// Ray's message; for a failed entrypoint, the end of what it printed.
    pub message: String,
    /// The command line, as submitted.
    pub entrypoint: String,
    /// Time at which it was submitted.
    pub started_at: Option<Timestamp>,
    /// Time at which it ended.
    pub ended_at: Option<Timestamp>,
    /// Id of the Ray node its driver runs on.
    pub driver_node: Option<Vec<u8>>,
    /// Exit code of its driver.
    pub exit_code: Option<i64>,
    /// Mark on what labd submitted.
    pub mark: Option<Mark>,
}

/// Mark of labd on a job that it submitted to Ray.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Submission of a person that it belongs to ([`ROOT`]).
    pub root: String,
    /// Number of the attempt ([`ATTEMPT`]).
    pub attempt: u32,
    /// Time at which the person's submission came ([`SUBMITTED`]), as it was written; earlier labds did not.
    pub submitted: Option<String>,
}

/// Value of `error_type` for a failed job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorType {
    /// Its `runtime_env` could not be set up.
    RuntimeEnvSetupFailure,
    /// It waited too long for a place.
    JobSupervisorActorStartTimeout,
    /// Its supervisor is gone, or never came up.
    JobSupervisorActorStartFailure,
    /// No node could take its supervisor.
    JobSupervisorActorUnschedulable,
    /// Its supervisor failed in another way.
    JobSupervisorActorUnknownFailure,
    /// Its supervisor died: its node, or the process alone.
    JobSupervisorActorDied,
    /// Its command could not be started.
    JobEntrypointCommandStartError,
    /// Its command ended with a failure.
    JobEntrypointCommandError,
    /// One that this labd does not know.
    #[serde(other)]
    Other,
}

/// Jobs that Ray knew at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Jobs {
    /// Time at which the question was asked: what happened later may be missing.
    pub asked_at: Timestamp,
    /// The jobs that were submitted; drivers without a submission are left out.
    pub jobs: Vec<RayJob>,
}

/// Answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Its content type.
    pub content_type: String,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// Whether the request was carried out.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Job API, as far as labd uses it. The error is one line: nobody answered, or not in time.
pub trait JobApi: Clone + Send + Sync + 'static {
    /// Submits a job.
    fn submit(&self, body: Bytes) -> impl Future<Output = Result<Reply, String>> + Send;
    /// Asks a job to stop.
    fn stop(&self, submission_id: &str) -> impl Future<Output = Result<Reply, String>> + Send;
    /// Ends a job whose driver waits for resources or packages, which Ray's own stop does not: that is queued until the
    /// driver's place is there. One that runs is left alone.
    fn stop_waiting(&self, submission_id: &str) -> impl Future<Output = Result<(), String>> + Send;
    /// Whether the GCS has a package. It keeps one for 10 min more that it was asked for, whoever else refers to it, unless it
    /// restarts (`RAY_RUNTIME_ENV_TEMPORARY_REFERENCE_EXPIRATION_S`).
    fn has_package(&self, name: &str) -> impl Future<Output = Result<bool, String>> + Send;
    /// Uploads a package from a file.
    fn put_package(&self, name: &str, file: &Path) -> impl Future<Output = Result<Reply, String>> + Send;
}

/// Body of everything that labd sends to the dashboard.
type Sent = BoxBody<Bytes, std::io::Error>;

/// Job API at one head.
#[derive(Debug, Clone)]
pub struct HttpJobs {
    client: Client<HttpConnector, Sent>,
    endpoint: Endpoint,
}

impl HttpJobs {
    /// Job API of the head at `endpoint`.
    pub fn new(endpoint: Endpoint) -> Self {
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Self { client, endpoint }
    }

    /// Jobs that were submitted, all of them.
    pub async fn list(&self) -> Result<Jobs, String> {
        let asked_at = Timestamp::now();
        Ok(Jobs { asked_at, jobs: parse(self.get("/api/jobs/").await?) })
    }

    /// Jobs with these ids, asked for one by one: those that Ray knows.
    pub async fn each(&self, ids: &BTreeSet<String>) -> Result<Jobs, String> {
        let asked_at = Timestamp::now();
        let mut jobs = Vec::new();
        for id in ids {
            let reply = self.job(id).await?;
            match serde_json::from_slice(&reply.body).ok().and_then(read) {
                Some(job) if reply.is_success() => jobs.push(job),
                _ if reply.status == StatusCode::NOT_FOUND.as_u16() => {}
                _ => {
                    return Err(format!(
                        "the dashboard answers a question for a job with HTTP status {}",
                        reply.status
                    ));
                }
            }
        }
        Ok(Jobs { asked_at, jobs })
    }

    /// Ray's own answer to a question for one job.
    pub async fn job(&self, submission_id: &str) -> Result<Reply, String> {
        self.ask(Method::GET, &format!("/api/jobs/{}", path_segment(submission_id)), empty(), ANSWER).await
    }

    /// Status that Ray reports of one job now, and when it ended; `None` for one that it does not know.
    pub async fn status(&self, submission_id: &str) -> Result<Option<(JobStatus, Option<Timestamp>)>, String> {
        #[derive(Deserialize)]
        struct Told {
            status: JobStatus,
            end_time: Option<i64>,
        }
        let reply = self.job(submission_id).await?;
        if reply.status == StatusCode::NOT_FOUND.as_u16() {
            return Ok(None);
        }
        let told = serde_json::from_slice::<Told>(&reply.body);
        told.map(|told| Some((told.status, end(told.end_time)))).map_err(|_| format!("HTTP status {}", reply.status))
    }

    /// Deletes a job that has ended.
    pub async fn delete(&self, submission_id: &str) -> Result<Reply, String> {
        self.ask(Method::DELETE, &format!("/api/jobs/{}", path_segment(submission_id)), empty(), ANSWER).await
    }

    /// The last lines of what a job's driver printed, as a stream. Ray reads them from the end of the file where the driver ran: a
    /// node that came back after a death has another id, and at the same address the same files.
    pub async fn log(
        &self,
        submission_id: &str,
        lines: usize,
    ) -> Result<impl futures_util::Stream<Item = Result<Bytes, hyper::Error>> + Send + use<>, String> {
        let no_log = || {
            format!(
                "Ray has no log of this job now, as it has not begun or its node is gone: see `labd jobs {}`",
                shell_word(submission_id)
            )
        };
        // By the node and the file: asked by the submission, Ray answers with an error of its own (Ray 2.60).
        let told: Value = serde_json::from_slice(&self.job(submission_id).await?.body).unwrap_or_default();
        let file = path_segment(&format!("job-driver-{submission_id}.log"));
        for node in nodes_of(&told) {
            let path = format!("/api/v0/logs/file?{node}&filename={file}&lines={lines}");
            let answer = tokio::time::timeout(ANSWER, self.begin(Method::GET, &path, empty())).await;
            let answer = answer.map_err(|_| NO_ANSWER)??;
            if answer.status().is_success() {
                return Ok(answer.into_body().into_data_stream());
            }
        }
        Err(no_log())
    }

    /// Answer to `GET /api/version`, as it is.
    pub async fn version(&self) -> Result<Bytes, String> {
        let reply = self.ask(Method::GET, "/api/version", empty(), ANSWER).await?;
        if reply.is_success() { Ok(reply.body) } else { Err(format!("HTTP status {}", reply.status)) }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, String> {
        let reply = self.ask(Method::GET, path, empty(), ANSWER).await?;
        if !reply.is_success() {
            return Err(format!("the dashboard answers {path} with HTTP status {}", reply.status));
        }
        serde_json::from_slice(&reply.body).map_err(|_| format!("the dashboard's answer to {path} is not JSON"))
    }

    /// Asks, and returns an answer of which the body is still to come.
    async fn begin(&self, method: Method, path: &str, body: Sent) -> Result<Response<Incoming>, String> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.endpoint.dashboard))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.endpoint.token.expose()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|_| "the dashboard has no valid address")?;
        self.client.request(request).await.map_err(|_| NO_ANSWER.to_owned())
    }

    async fn ask(&self, method: Method, path: &str, body: Sent, patience: Duration) -> Result<Reply, String> {
        let work = async {
            let answer = self.begin(method, path, body).await?;
            let status = answer.status().as_u16();
            let content_type = answer.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
            let content_type = content_type.unwrap_or("text/plain; charset=utf-8").to_owned();
            let body = Limited::new(answer.into_body(), LARGEST).collect().await;
            let body = body.map_err(|e| {
                let what = if e.is::<http_body_util::LengthLimitError>() { "is too long" } else { "broke off" };
                format!("the dashboard's answer {what}")
            });
            let body = body?.to_bytes();
            Ok(Reply { status, content_type, body })
        };
        tokio::time::timeout(patience, work).await.map_err(|_| NO_ANSWER)?
    }
}

impl JobApi for HttpJobs {
    async fn submit(&self, body: Bytes) -> Result<Reply, String> {
        self.ask(Method::POST, "/api/jobs/", full(body), TAKEN).await
    }

    async fn stop(&self, submission_id: &str) -> Result<Reply, String> {
        self.ask(Method::POST, &format!("/api/jobs/{}/stop", path_segment(submission_id)), empty(), ANSWER).await
    }

    async fn stop_waiting(&self, submission_id: &str) -> Result<(), String> {
        Gcs::connect(&self.endpoint).kill_waiting_job(submission_id).await
    }

    async fn has_package(&self, name: &str) -> Result<bool, String> {
        let reply =
            self.ask(Method::GET, &format!("/api/packages/gcs/{}", path_segment(name)), empty(), ANSWER).await?;
        match StatusCode::from_u16(reply.status) {
            Ok(StatusCode::OK) => Ok(true),
            Ok(StatusCode::NOT_FOUND) => Ok(false),
            _ => Err(format!("the dashboard answers a question for a package with HTTP status {}", reply.status)),
        }
    }

    async fn put_package(&self, name: &str, file: &Path) -> Result<Reply, String> {
        const PIECE: usize = 256 << 10;
        let unreadable = |e: std::io::Error| format!("the package `{name}` cannot be read: {e}");
        let file = tokio::fs::File::open(file).await.map_err(unreadable)?;
        let pieces = futures_util::stream::try_unfold(file, |mut file| async move {
            let mut piece = Vec::with_capacity(PIECE);
            (&mut file).take(PIECE as u64).read_to_end(&mut piece).await?;
            Ok((!piece.is_empty()).then(|| (Frame::data(Bytes::from(piece)), file)))
        });
        let body = BoxBody::new(StreamBody::new(Box::pin(pieces) as SendSync));
        self.ask(Method::PUT, &format!("/api/packages/gcs/{}", path_segment(name)), body, UPLOADED).await
    }
}

/// Stream that a boxed body is made from.
type SendSync = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send + Sync>>;

fn empty() -> Sent {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn full(body: Bytes) -> Sent {
    Full::new(body).map_err(|never| match never {}).boxed()
}

/// Jobs in the answer of `/api/jobs/`. Pure.
pub(crate) fn parse(jobs: Value) -> Vec<RayJob> {
    let Value::Array(jobs) = jobs else { return Vec::new() };
    jobs.into_iter().filter_map(read).collect()
}

/// Job in Ray's answer; `None` for what is not a submission. That it is there says more than what cannot be read of it:
/// an attempt that seems to be gone is replaced, and two would write one run.
fn read(mut job: Value) -> Option<RayJob> {
    fn take<T: serde::de::DeserializeOwned>(job: &mut Value, key: &str) -> Option<T> {
        serde_json::from_value(job.get_mut(key)?.take()).ok()
    }
    Some(RayJob {
        submission_id: take(&mut job, "submission_id")?,
        // A status that this labd does not know is not one of the three ends.
        status: take(&mut job, "status").unwrap_or(JobStatus::Running),
        error: take(&mut job, "error_type"),
        message: last_words(take(&mut job, "message").unwrap_or_default()),
        entrypoint: take(&mut job, "entrypoint").unwrap_or_default(),
        started_at: take(&mut job, "start_time").map(Timestamp::told),
        ended_at: end(take(&mut job, "end_time")),
        driver_node: take::<String>(&mut job, "driver_node_id").as_deref().and_then(unhex),
        exit_code: take(&mut job, "driver_exit_code"),
        mark: mark(&job["metadata"]),
    })
}

/// Mark in a job's metadata.
fn mark(metadata: &Value) -> Option<Mark> {
    let text = |key: &str| Some(metadata.get(key)?.as_str()?.to_owned());
    Some(Mark { root: text(ROOT)?, attempt: text(ATTEMPT)?.parse().ok()?, submitted: text(SUBMITTED) })
}

/// Time at which a job ended, which Ray gives as 0 while it has not.
fn end(ms: Option<i64>) -> Option<Timestamp> {
    ms.filter(|&ms| ms > 0).map(Timestamp::told)
}

fn last_words(text: String) -> String {
    let skip = text.chars().count().saturating_sub(LAST_WORDS);
    if skip == 0 { text } else { text.chars().skip(skip).collect() }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|p| p.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    pairs.collect::<Option<Vec<u8>>>().filter(|id| !id.is_empty())
}

/// Where a job's driver runs or ran, as questions for its files say it: the node, and the one that is at its address since. Ray
/// forgets the address of a node now and then when an earlier one there is declared dead (Ray 2.60).
fn nodes_of(job: &Value) -> impl Iterator<Item = String> + use<> {
    let id = job["driver_node_id"].as_str().map(|id| format!("node_id={}", path_segment(id)));
    let agent = job["driver_agent_http_address"].as_str().and_then(|address| Url::parse(address).ok());
    let address = agent.as_ref().and_then(Url::host_str).map(|host| format!("node_ip={}", path_segment(host)));
    id.into_iter().chain(address)
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn jobs_are_read_with_their_end() {
        let jobs = json!([
            {"submission_id": "a", "status": "FAILED", "entrypoint": "python a.py", "start_time": 1, "end_time": 5,
             "message": "x", "error_type": "JOB_SUPERVISOR_ACTOR_DIED", "driver_node_id": "00ff",
             "metadata": {"labd.root": "b", "labd.attempt": "2", "labd.submitted": "then", "mine": "y"}},
            {"submission_id": "b", "status": "RUNNING", "entrypoint": "python b.py", "start_time": 2, "end_time": null,
             "error_type": null, "driver_exit_code": null},
            {"submission_id": "c", "status": "FAILED", "error_type": "SOMETHING_NEW", "driver_node_id": "xyz"},
            {"submission_id": null, "job_id": "01000000", "status": "RUNNING"},
            {"submission_id": "d", "status": "DREAMING", "start_time": "noon", "driver_exit_code": -9},
            {"submission_id": "e"},
            {"surprise": true}, 7, null
        ]);
        let jobs = parse(jobs);
        assert_eq!(jobs.iter().map(|j| j.submission_id.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
        assert_eq!(
            (jobs[0].error, jobs[0].driver_node.clone()),
            (Some(ErrorType::JobSupervisorActorDied), Some(vec![0, 255]))
        );
        let mark = Mark { root: "b".to_owned(), attempt: 2, submitted: Some("then".to_owned()) };
        assert_eq!((&jobs[0].mark, &jobs[1].mark), (&Some(mark), &None));
        assert_eq!((jobs[1].ended_at, jobs[1].status), (None, JobStatus::Running));
        assert_eq!((jobs[2].error, jobs[2].driver_node.clone()), (Some(ErrorType::Other), None));
        // What cannot be read of a job does not make it one that is gone.
        assert_eq!((jobs[3].status, jobs[3].started_at, jobs[3].exit_code), (JobStatus::Running, None, Some(-9)));
        assert_eq!(jobs[4].status, JobStatus::Running);
    }

    #[test]
    fn nonsense_is_no_job() {
        for nonsense in [json!(null), json!({"a": 1}), json!("x")] {
            assert!(parse(nonsense).is_empty());
        }
        assert_eq!(last_words("ä".repeat(9_000)).chars().count(), LAST_WORDS);
    }

    #[tokio::test]
    async fn the_end_of_a_log_is_asked_of_the_node_that_has_it() {
        use axum::{Json, Router, extract::Request, response::IntoResponse as _, routing::get};

        let is_ours = |asked: &Request| asked.headers()["authorization"] == "Bearer t0ken";
        let job = move |asked: Request| async move {
            let node = if asked.uri().path().ends_with("/new") { Value::Null } else { json!("00ff") };
            if is_ours(&asked) {
                let agent = asked.uri().path().ends_with("/back").then_some("http://198.18.0.11:52365");
                Json(json!({ "driver_node_id": node, "driver_agent_http_address": agent })).into_response()
            } else {
                StatusCode::UNAUTHORIZED.into_response()
            }
        };
        let file = move |asked: Request| async move {
            match asked.uri().query() {
                Some("node_id=00ff&filename=job-driver-a%2Fb.log&lines=7") if is_ours(&asked) => {
                    "the end".into_response()
                }
                Some("node_ip=198.18.0.11&filename=job-driver-back.log&lines=7") if is_ours(&asked) => {
                    "as before".into_response()
                }
                _ => StatusCode::NOT_FOUND.into_response(),
            }
        };
        let router = Router::new().route("/api/jobs/{id}", get(job)).route("/api/v0/logs/file", get(file));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let dashboard = listener.local_addr().expect("bound");
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let token = crate::secret::Secret::new("t0ken");
        let jobs = HttpJobs::new(Endpoint { gcs: dashboard, dashboard, token, spares: false });
        let log = async |id| {
            let pieces = jobs.log(id, 7).await?;
            let pieces: Vec<Bytes> = pieces.try_collect().await.map_err(|e| e.to_string())?;
            Ok::<_, String>(pieces.concat())
        };
        assert_eq!(log("a/b").await, Ok(b"the end".to_vec()));
        // The node died, and came back with another id.
        assert_eq!(log("back").await, Ok(b"as before".to_vec()));
        for id in ["new", "gone"] {
            assert!(log(id).await.is_err_and(|line| line.starts_with("Ray has no log of this job now")), "{id}");
        }
        serving.abort();
        let _ = serving.await;
        assert_eq!(log("a/b").await, Err("the dashboard does not answer".to_owned()));
    }
}

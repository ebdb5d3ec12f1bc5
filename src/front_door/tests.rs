//! Tests of the front door over a head that is a few lines long, with the real ledger's task behind it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

use axum::{
    body::to_bytes,
    extract::{
        FromRequest as _, Request,
        ws::{Message, WebSocketUpgrade},
    },
    http::{Method, header::HOST},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite;
use tower::ServiceExt as _;

use super::*;
use crate::{
    config::Config,
    jobs::{self, LedgerView, packages::Incoming},
    journal::Journal,
    ray::{HttpJobs, RayNode},
    snapshot::JobStatus,
    time::Timestamp,
};

const TOKEN: &str = "hunter2-hunter2";

/// Requests that reached the head: method and path with query, host, body.
type Heard = Arc<Mutex<Vec<(String, String, Vec<u8>)>>>;

/// Pieces of a log that one connection gets, and whether it ends well.
type Reading = (Vec<&'static str>, bool);

/// Answers of the head to a question for a job, and its log: pieces per connection, and whether that ends well. A job
/// that it does not know is echoed.
#[derive(Clone, Default)]
struct Told {
    jobs: Arc<Mutex<BTreeMap<String, Value>>>,
    logs: Arc<Mutex<BTreeMap<String, VecDeque<Reading>>>>,
}

struct Rig {
    router: Router,
    ledger: Ledger,
    heard: Heard,
    told: Told,
    ray: watch::Sender<Arc<RayView>>,
    endpoint: watch::Sender<Option<Endpoint>>,
    dir: TempDir,
    _alive: Vec<Box<dyn std::any::Any>>,
}

/// A head that takes everything but packages called `refused`, and echoes what a WebSocket sends.
async fn head(heard: Heard, told: Told) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let app = Router::new().fallback(any(move |mut request: Request| {
        let (heard, told) = (heard.clone(), told.clone());
        async move {
            let path = request.uri().path().to_owned();
            if let Some(id) = path.strip_prefix("/api/jobs/").and_then(|path| path.strip_suffix("/logs/tail")) {
                let next = told.logs.lock().expect("unpoisoned").get_mut(id).and_then(VecDeque::pop_front);
                let Some((pieces, well)) = next else { return StatusCode::NOT_FOUND.into_response() };
                let upgrade = WebSocketUpgrade::from_request(request, &()).await.expect("a WebSocket");
                return upgrade.on_upgrade(move |mut socket| async move {
                    for piece in pieces {
                        socket.send(Message::Text(piece.into())).await.expect("sent");
                    }
                    if well {
                        let _ = socket.send(Message::Close(None)).await;
                        let _ = socket.recv().await;
                    }
                });
            }
            let line = format!("{} {}", request.method(), request.uri());
            let host = request.headers().get(HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned();
            if request.headers().contains_key(header::UPGRADE) {
                let upgrade = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let mut stream = hyper_util::rt::TokioIo::new(upgrade.await.expect("upgraded"));
                    let mut word = [0; 5];
                    stream.read_exact(&mut word).await.expect("a word");
                    stream.write_all(&word).await.expect("echoed");
                });
                let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "websocket")];
                return (StatusCode::SWITCHING_PROTOCOLS, headers).into_response();
            }
            let refused = line.contains("refused");
            let token = request.headers().get(header::AUTHORIZATION).is_some_and(|v| v == "Bearer hunter2-hunter2");
            let body = to_bytes(request.into_body(), usize::MAX).await.expect("whole").to_vec();
            heard.lock().expect("unpoisoned").push((line.clone(), host, body.clone()));
            if !token {
                return (StatusCode::UNAUTHORIZED, "Unauthorized: Missing authentication token").into_response();
            }
            let id = path.strip_prefix("/api/jobs/").unwrap_or_default();
            let job = told.jobs.lock().expect("unpoisoned").get(id).cloned();
            match (line.split(' ').next(), job) {
                (Some("GET"), Some(job)) => return axum::Json(job).into_response(),
                (Some("DELETE"), Some(job)) => {
                    let over = job["status"] == "SUCCEEDED" || job["status"] == "FAILED";
                    return if over {
                        "{\"deleted\": true}".into_response()
                    } else {
                        StatusCode::INTERNAL_SERVER_ERROR.into_response()
                    };
                }
                _ => {}
            }
            if refused {
                return StatusCode::INTERNAL_SERVER_ERROR.into_response();
            }
            if line == "POST /api/jobs/" {
                let Ok(Value::Object(job)) = serde_json::from_slice(&body) else {
                    return (StatusCode::BAD_REQUEST, "Ray says no").into_response();
                };
                return axum::Json(json!({ "submission_id": job.get("submission_id") })).into_response();
            }
            ([("x-head", "yes")], format!("{line} by the head")).into_response()
        }
    }));
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

impl Rig {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (heard, told) = (Heard::default(), Told::default());
        let there = Endpoint {
            gcs: "127.0.0.1:1".parse().expect("one"),
            dashboard: head(heard.clone(), told.clone()).await,
            token: Secret::new(TOKEN),
            spares: false,
        };
        let driver = RayNode {
            id: vec![1],
            address: std::net::Ipv4Addr::LOCALHOST,
            port: 0,
            alive: true,
            is_head: false,
            started_at: Timestamp::now(),
            name: String::new(),
            resources: std::collections::BTreeMap::new(),
            available: std::collections::BTreeMap::new(),
            labels: [("labd.role".to_owned(), "driver".to_owned())].into(),
        };
        let version = Some(Bytes::from_static(b"{\"version\": \"4\"}"));
        let (ray, view) = watch::channel(Arc::new(RayView {
            gcs: Gcs::Reachable,
            nodes: vec![driver],
            version,
            ..RayView::default()
        }));
        let (endpoint, at) = watch::channel(Some(there));
        let opened = jobs::open(dir.path()).expect("opens");
        let packages = opened.packages.clone();
        let (incidents, died) = watch::channel(Arc::new(Vec::new()));
        let lab = crate::http::testing::Lab::new();
        let (config, configs) = watch::channel(Arc::new(Config::default()));
        let api_at = at.clone();
        let parts = jobs::Parts {
            api: Box::new(move || api_at.borrow().clone().map(HttpJobs::new)),
            ray: view.clone(),
            follow: watch::channel(BTreeSet::new()).0,
            incidents: died,
            looked_at: watch::channel(Some(crate::time::Moment::now())).1,
            snapshot: lab.state.snapshot.clone(),
            config: configs,
            journal: Journal::open(&dir.path().join("journal.db"), Duration::from_hours(24)).expect("opens"),
        };
        let ledger = jobs::spawn(opened, parts);
        let door = FrontDoor::new(ledger.clone(), packages, at, view, Secret::new(TOKEN));
        let alive: Vec<Box<dyn std::any::Any>> = vec![Box::new(incidents), Box::new(config), Box::new(lab)];
        Self { router: router(door), ledger, heard, told, ray, endpoint, dir, _alive: alive }
    }

    fn away(&self) {
        self.ray.send_modify(|view| Arc::make_mut(view).gcs = Gcs::Unreachable { reason: "it died".into() });
    }

    fn back(&self) {
        self.ray.send_modify(|view| Arc::make_mut(view).gcs = Gcs::Reachable);
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> (StatusCode, String) {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "gpu1:8265");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = self.router.clone().oneshot(request.body(body.into()).expect("valid")).await.expect("infallible");
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            assert!(answer.headers().contains_key(header::RETRY_AFTER));
        }
        let (status, body) = (answer.status(), to_bytes(answer.into_body(), usize::MAX).await.expect("whole"));
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    async fn trusted(&self, method: Method, path: &str, body: impl Into<Body>) -> (StatusCode, String) {
        self.ask(method, path, &[("authorization", "Bearer hunter2-hunter2")], body).await
    }

    fn lines(&self) -> Vec<String> {
        self.heard.lock().expect("unpoisoned").iter().map(|(line, _, _)| line.clone()).collect()
    }

    fn kept(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.dir.path().join("packages").join(name)).ok()
    }

    async fn until(&self, what: impl FnMut(&Arc<LedgerView>) -> bool) -> Arc<LedgerView> {
        let mut view = self.ledger.watch();
        match tokio::time::timeout(Duration::from_secs(10), view.wait_for(what)).await {
            Ok(seen) => seen.expect("the keeper lives").clone(),
            Err(e) => panic!("not within 10 s ({e}): {:?}", self.ledger.watch().borrow()),
        }
    }
}

#[tokio::test]
async fn everything_passes_with_query_host_and_answer() {
    let rig = Rig::new().await;
    let (status, text) = rig.trusted(Method::GET, "/api/v0/nodes?detail=1&x=%20y", Body::empty()).await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "GET /api/v0/nodes?detail=1&x=%20y by the head"));
    assert_eq!(rig.heard.lock().expect("unpoisoned")[0].1, "gpu1:8265");
    // Nobody's token is the head's own business.
    assert_eq!(rig.ask(Method::GET, "/api/jobs/", &[], Body::empty()).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_websocket_passes() {
    let rig = Rig::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let router = rig.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = "GET /api/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await.expect("an answer"));
    }
    assert!(seen.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&seen));
    stream.write_all(b"hello").await.expect("sent");
    let mut word = [0; 5];
    stream.read_exact(&mut word).await.expect("echoed");
    assert_eq!(&word, b"hello");
}

#[tokio::test]
async fn a_submission_is_recorded_placed_and_submitted_and_a_strangers_or_a_pages_is_only_passed_on() {
    let rig = Rig::new().await;
    let body = json!({ "entrypoint": "python train.py", "submission_id": "food11" }).to_string();
    rig.ask(Method::POST, "/api/jobs/", &[], body.clone()).await;
    for (name, value) in [
        ("user-agent", "Mozilla/5.0"),
        ("origin", "https://example.invalid"),
        ("referer", "https://example.invalid/page"),
        ("sec-fetch-site", "cross-site"),
        ("access-control-request-method", "POST"),
    ] {
        let page = [("authorization", "Bearer hunter2-hunter2"), (name, value)];
        rig.ask(Method::POST, "/api/jobs/", &page, body.clone()).await;
    }
    assert!(rig.ledger.watch().borrow().jobs.is_empty());
    for (_, _, sent) in rig.heard.lock().expect("unpoisoned").drain(..) {
        assert_eq!(String::from_utf8_lossy(&sent), body, "as it was sent");
    }
    let (status, text) = rig.trusted(Method::POST, "/api/jobs/", body).await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, r#"{"submission_id":"food11"}"#));
    rig.until(|v| v.jobs.len() == 1).await;
    let sent: Value = serde_json::from_slice(&rig.heard.lock().expect("unpoisoned")[0].2).expect("JSON");
    assert_eq!(sent["entrypoint_label_selector"]["labd.role"], "driver");
    assert_eq!(sent["metadata"]["labd.run"], "food11");
    // What is no submission, Ray says best.
    assert_eq!(rig.trusted(Method::POST, "/api/jobs/", "[]").await, (StatusCode::BAD_REQUEST, "Ray says no".into()));
}

#[tokio::test]
async fn the_head_hears_that_panels_can_be_embedded_and_a_page_on_this_address_that_they_cannot() {
    let rig = Rig::new().await;
    let (status, text) = rig.ask(Method::GET, "/labd/grafana/api/health", &[], Body::empty()).await;
    assert!(status == StatusCode::OK && text.contains(r#""database":"ok""#), "{status} {text}");
    let (status, text) = rig.ask(Method::GET, "/api/grafana_health", &[], Body::empty()).await;
    assert!(status == StatusCode::OK && text.contains(r#""grafanaHost":"DISABLED""#), "{status} {text}");
    assert!(rig.heard.lock().expect("unpoisoned").is_empty(), "nobody asked the head");
}

#[tokio::test]
async fn while_the_head_is_away_submissions_are_kept_and_reads_are_told_to_come_again() {
    let rig = Rig::new().await;
    rig.away();
    assert_eq!(rig.trusted(Method::GET, "/api/jobs/", Body::empty()).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(rig.trusted(Method::GET, "/api/version", Body::empty()).await.1, r#"{"version": "4"}"#);
    assert_eq!(rig.ask(Method::GET, "/api/version", &[], Body::empty()).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let package = "/api/packages/gcs/_ray_pkg_1.zip";
    assert_eq!(rig.trusted(Method::GET, package, Body::empty()).await.0, StatusCode::NOT_FOUND);
    assert_eq!(rig.trusted(Method::PUT, package, "PK").await.0, StatusCode::OK);
    assert_eq!(rig.trusted(Method::GET, package, Body::empty()).await.0, StatusCode::OK);
    let body = json!({ "entrypoint": "x", "submission_id": "food11", "runtime_env": { "working_dir": "gcs://_ray_pkg_1.zip" } });
    let (status, text) = rig.trusted(Method::POST, "/api/jobs/", body.to_string()).await;
    assert_eq!((status, text.contains("food11")), (StatusCode::OK, true));
    assert_eq!(rig.trusted(Method::POST, "/api/jobs/", "[]").await.0, StatusCode::BAD_REQUEST);
    assert!(rig.lines().is_empty(), "nobody was there");
    rig.until(|v| v.jobs.first().is_some_and(|j| j.status == JobStatus::Pending && j.message.contains("kept"))).await;
    rig.back();
    rig.until(|v| v.jobs.first().is_some_and(|j| j.message.is_empty())).await;
    // The head says of everything that it has it: the package needs no second upload.
    assert_eq!(rig.lines(), [format!("GET {package}"), "POST /api/jobs/".into()]);
}

#[tokio::test]
async fn an_id_is_free_again_once_its_job_ended_and_ray_forgot_it() {
    let rig = Rig::new().await;
    let body = json!({ "entrypoint": "x", "submission_id": "a" }).to_string();
    let jobs = |jobs| Some(Arc::new(crate::ray::Jobs { asked_at: later(), jobs }));
    assert_eq!(rig.trusted(Method::POST, "/api/jobs/", body.clone()).await.0, StatusCode::OK);
    assert_eq!(rig.trusted(Method::POST, "/api/jobs/", body.clone()).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    let done = crate::ray::RayJob {
        submission_id: "a".into(),
        status: JobStatus::Succeeded,
        error: None,
        message: String::new(),
        entrypoint: String::new(),
        started_at: None,
        ended_at: None,
        driver_node: None,
        exit_code: Some(0),
        mark: None,
    };
    rig.ray.send_modify(|view| Arc::make_mut(view).jobs = jobs(vec![done]));
    rig.until(|v| v.jobs.first().is_some_and(|j| j.outcome.is_some())).await;
    let (status, text) = rig.trusted(Method::POST, "/api/jobs/", body.clone()).await;
    assert!(status == StatusCode::INTERNAL_SERVER_ERROR && text.contains("already exists"), "{text}");
    rig.ray.send_modify(|view| Arc::make_mut(view).jobs = jobs(Vec::new()));
    assert_eq!(rig.trusted(Method::POST, "/api/jobs/", body).await.0, StatusCode::OK);
}

#[tokio::test]
async fn one_that_waits_is_stopped_without_the_head() {
    let rig = Rig::new().await;
    rig.away();
    rig.trusted(Method::POST, "/api/jobs/", json!({ "entrypoint": "x", "submission_id": "a" }).to_string()).await;
    let (status, text) = rig.trusted(Method::POST, "/api/jobs/a/stop", Body::empty()).await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, "{\"stopped\": true}"));
    rig.until(|v| v.jobs.first().is_some_and(|j| j.status == JobStatus::Stopped)).await;
    rig.back();
    rig.trusted(Method::GET, "/", Body::empty()).await;
    assert_eq!(rig.lines(), ["GET /"], "it is never handed in");
}

#[tokio::test]
async fn a_copy_of_a_package_is_kept_when_it_was_whole_and_taken() {
    let rig = Rig::new().await;
    let large = vec![7_u8; 3 << 20];
    let with_length = [("authorization", "Bearer hunter2-hunter2"), ("content-length", "3145728")];
    assert_eq!(rig.ask(Method::PUT, "/api/packages/gcs/a.zip", &with_length, large.clone()).await.0, StatusCode::OK);
    assert_eq!(rig.kept("a.zip").as_ref(), Some(&large));
    assert_eq!(rig.heard.lock().expect("unpoisoned")[0].2, large);
    assert_eq!(
        rig.trusted(Method::PUT, "/api/packages/gcs/refused.zip", "PK").await.0,
        StatusCode::INTERNAL_SERVER_ERROR
    );
    let broken =
        futures_util::stream::iter([Ok(Bytes::from_static(b"PK")), Err(std::io::Error::other("the client is gone"))]);
    rig.trusted(Method::PUT, "/api/packages/gcs/half.zip", Body::from_stream(broken)).await;
    assert_eq!((rig.kept("refused.zip"), rig.kept("half.zip")), (None, None));
    // A package that labd has no copy of is asked for, although Ray has it.
    assert_eq!(rig.trusted(Method::GET, "/api/packages/gcs/b.zip", Body::empty()).await.0, StatusCode::NOT_FOUND);
    assert_eq!(rig.trusted(Method::GET, "/api/packages/gcs/a.zip", Body::empty()).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_copy_that_cannot_be_written_stops_no_upload_and_is_told() {
    let (body, copy) = proxy::tee(Body::from(vec![7_u8; 3 << 20]), None, Incoming::on_a_full_disk().await);
    assert_eq!(to_bytes(body, usize::MAX).await.expect("whole").len(), 3 << 20);
    let Err(told) = copy.await.expect("told") else { panic!("it was kept") };
    assert_eq!(told.kind(), std::io::ErrorKind::StorageFull);
}

#[tokio::test]
async fn a_head_that_is_gone_without_a_word_is_away() {
    let rig = Rig::new().await;
    rig.endpoint.send_modify(|at| {
        if let Some(at) = at {
            at.dashboard = "127.0.0.1:1".parse().expect("an address");
        }
    });
    assert_eq!(rig.trusted(Method::GET, "/api/jobs/", Body::empty()).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let (status, _) = rig.trusted(Method::POST, "/api/jobs/", json!({ "entrypoint": "x" }).to_string()).await;
    assert_eq!(status, StatusCode::OK, "kept");
    rig.endpoint.send_replace(None);
    assert_eq!(rig.trusted(Method::GET, "/", Body::empty()).await.0, StatusCode::SERVICE_UNAVAILABLE);
}

/// Time of a list that is asked for after all that was said before, also where both come in one millisecond.
fn later() -> Timestamp {
    Timestamp::now().plus(Duration::from_millis(1))
}

/// Ray's list of jobs.
fn list(jobs: &[(&str, JobStatus, Option<crate::ray::ErrorType>)]) -> Arc<crate::ray::Jobs> {
    let job = |(id, status, error): &(&str, JobStatus, Option<crate::ray::ErrorType>)| crate::ray::RayJob {
        submission_id: (*id).to_owned(),
        status: *status,
        error: *error,
        message: String::new(),
        entrypoint: String::new(),
        started_at: None,
        ended_at: None,
        driver_node: None,
        exit_code: None,
        mark: None,
    };
    Arc::new(crate::ray::Jobs { asked_at: later(), jobs: jobs.iter().map(job).collect() })
}

impl Rig {
    async fn submit(&self, id: &str) {
        // What Ray is asked after this comes later than the submission, on a clock of milliseconds.
        let body = json!({ "entrypoint": "python train.py", "submission_id": id });
        let (status, text) = self.trusted(Method::POST, "/api/jobs/", body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }

    fn lists(&self, jobs: &[(&str, JobStatus, Option<crate::ray::ErrorType>)]) {
        self.ray.send_modify(|view| Arc::make_mut(view).jobs = Some(list(jobs)));
    }

    fn says(&self, id: &str, status: &str) {
        let job = json!({"type": "SUBMISSION", "submission_id": id, "status": status, "message": "", "end_time": null});
        self.told.jobs.lock().expect("unpoisoned").insert(id.to_owned(), job);
    }

    async fn lose(&self, id: &str) {
        self.lists(&[(id, JobStatus::Failed, Some(crate::ray::ErrorType::JobSupervisorActorDied))]);
        let next = format!("{id}-r1");
        self.until(|v| v.jobs.iter().any(|j| j.submission_id == next && j.message.contains("continues"))).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }

    /// Text that a client that waits for a job's end is sent, and the code with which it ends.
    async fn follow(&self, id: &str) -> tokio::task::JoinHandle<(String, Option<u16>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let router = self.router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let url = format!("ws://{address}/api/jobs/{id}/logs/tail");
        let mut request = tungstenite::client::IntoClientRequest::into_client_request(url).expect("a request");
        request.headers_mut().insert("authorization", "Bearer hunter2-hunter2".parse().expect("one"));
        let stream = TcpStream::connect(address).await.expect("it listens");
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("a WebSocket");
        tokio::spawn(async move {
            let mut text = String::new();
            while let Some(Ok(message)) = futures_util::StreamExt::next(&mut socket).await {
                match message {
                    tungstenite::Message::Text(piece) => text.push_str(&piece),
                    tungstenite::Message::Close(frame) => return (text, frame.map(|f| f.code.into())),
                    _ => {}
                }
            }
            (text, None)
        })
    }
}

#[tokio::test]
async fn a_log_is_followed_over_a_break_over_the_heads_absence_and_into_the_next_attempt() {
    let rig = Rig::new().await;
    rig.submit("a").await;
    let logs = [
        ("a", vec![(vec!["epoch 1\nep"], false), (vec!["epoch 1\n", "epoch 2\n"], true)]),
        ("a-r1", vec![(vec!["resumed\n"], true)]),
    ];
    rig.told.logs.lock().expect("unpoisoned").extend(logs.map(|(id, log)| (id.to_owned(), log.into())));
    let client = rig.follow("a").await;
    rig.away();
    rig.back();
    while !rig.told.logs.lock().expect("unpoisoned")["a"].is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!client.is_finished(), "what Ray closed has not ended for the ledger");
    rig.says("a-r1", "SUCCEEDED");
    rig.lose("a").await;
    let (text, code) = tokio::time::timeout(Duration::from_secs(20), client).await.expect("it ends").expect("no panic");
    let line = "labd: a was lost (the process that watches its driver died); a-r1 continues\n";
    assert_eq!((text, code), (format!("epoch 1\nepoch 2\n{line}resumed\n"), Some(1000)));
}

#[tokio::test]
async fn a_log_ends_when_its_owner_deletes_the_job_and_a_strangers_is_rays_to_refuse() {
    let rig = Rig::new().await;
    rig.submit("a").await;
    let client = rig.follow("a").await;
    rig.ledger.forget("a", Some(JobStatus::Failed)).await;
    let (text, code) = tokio::time::timeout(Duration::from_secs(20), client).await.expect("it ends").expect("no panic");
    assert_eq!((text.as_str(), code), ("", Some(1000)));
    let (status, _) = rig.ask(Method::GET, "/api/jobs/a/logs/tail", &[], Body::empty()).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "passed on");
}

#[tokio::test]
async fn a_job_that_was_lost_is_its_newest_attempt_also_while_the_head_is_away() {
    let rig = Rig::new().await;
    rig.submit("a").await;
    rig.lose("a").await;
    rig.says("a", "FAILED");
    rig.says("a-r1", "RUNNING");
    let ask = async || -> Value {
        let (status, text) = rig.trusted(Method::GET, "/api/jobs/a", Body::empty()).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        serde_json::from_str(&text).expect("JSON")
    };
    let told = ask().await;
    assert_eq!((&told["status"], &told["submission_id"]), (&json!("RUNNING"), &json!("a")));
    assert!(told["message"].as_str().is_some_and(|m| m.starts_with("a-r1 continues a (the process")), "{told}");
    rig.lists(&[("a-r1", JobStatus::Running, None)]);
    rig.away();
    let told = ask().await;
    assert_eq!((&told["status"], &told["entrypoint"]), (&json!("RUNNING"), &json!("python train.py")));
    rig.back();
    rig.says("a-r1", "SUCCEEDED");
    assert_eq!(ask().await["status"], "SUCCEEDED");
    // A failure is told once it is known whether it is one.
    rig.says("a-r1", "FAILED");
    let failed = rig.trusted(Method::GET, "/api/jobs/a", Body::empty());
    let lost = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        rig.lists(&[("a-r1", JobStatus::Failed, Some(crate::ray::ErrorType::JobSupervisorActorDied))]);
        rig.until(|v| v.jobs.iter().any(|j| j.submission_id == "a-r2")).await;
    };
    let ((status, text), ()) = tokio::join!(failed, lost);
    let told: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, &told["status"]), (StatusCode::OK, &json!("PENDING")), "{text}");
}

#[tokio::test]
async fn what_its_owner_deleted_is_not_run_again_and_its_id_begins_a_new_run() {
    let rig = Rig::new().await;
    rig.submit("a").await;
    let sent: Value = serde_json::from_slice(&rig.heard.lock().expect("unpoisoned")[0].2).expect("JSON");
    let former = crate::ray::Mark {
        root: "a".to_owned(),
        attempt: 1,
        submitted: sent["metadata"]["labd.submitted"].as_str().map(str::to_owned),
    };
    assert!(former.submitted.is_some(), "{sent}");
    rig.says("a", "RUNNING");
    assert_eq!(rig.trusted(Method::DELETE, "/api/jobs/a", Body::empty()).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    rig.says("a", "SUCCEEDED");
    assert_eq!(rig.trusted(Method::DELETE, "/api/jobs/a", Body::empty()).await.0, StatusCode::OK);
    assert!(rig.ledger.watch().borrow().jobs.is_empty());
    // The list of a moment ago.
    let mut before = crate::ray::Jobs::clone(&list(&[("a", JobStatus::Succeeded, None)]));
    (before.asked_at, before.jobs[0].mark) = (crate::time::Timestamp::now(), Some(former));
    rig.ray.send_modify(|view| Arc::make_mut(view).jobs = Some(Arc::new(before)));
    rig.heard.lock().expect("unpoisoned").clear();
    rig.submit("a").await;
    let sent: Value = serde_json::from_slice(&rig.heard.lock().expect("unpoisoned")[0].2).expect("JSON");
    assert_eq!(sent["metadata"]["labd.run"], "a.2");
    let view = rig.until(|v| v.jobs.first().is_some_and(|j| j.note.is_some())).await;
    let job = &view.jobs[0];
    assert!(job.outcome.is_none() && job.note.as_ref().is_some_and(|note| note.contains("a new run, a.2")), "{job:?}");
}

#[tokio::test]
async fn ids_are_encoded_on_their_way_to_ray() {
    let rig = Rig::new().await;
    rig.submit("lr 0.01").await;
    rig.lose("lr 0.01").await;
    rig.heard.lock().expect("unpoisoned").clear();
    rig.trusted(Method::POST, "/api/jobs/lr%200.01/stop", Body::empty()).await;
    let lines = rig.lines();
    assert!(lines.contains(&"POST /api/jobs/lr%200.01-r1/stop".to_owned()), "{lines:?}");
}

#[tokio::test]
async fn what_could_never_begin_is_refused_in_one_line_and_recorded_nowhere() {
    let rig = Rig::new().await;
    for (body, status) in [
        (json!({"entrypoint": "x", "submission_id": "a/b"}), StatusCode::BAD_REQUEST),
        (json!({"entrypoint": "x", "runtime_env": {"env_vars": {"A": "b".repeat(200_000)}}}), StatusCode::BAD_REQUEST),
        (json!({"entrypoint": "x", "metadata": {"a": "b".repeat(1 << 20)}}), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let (got, text) = rig.trusted(Method::POST, "/api/jobs/", body.to_string()).await;
        assert_eq!((got, text.lines().count()), (status, 1), "{}", &text[..text.len().min(200)]);
        assert!(text.contains("must"), "{text}");
    }
    assert!(rig.lines().is_empty() && rig.ledger.watch().borrow().jobs.is_empty());
}

#[tokio::test]
async fn a_wheel_with_a_local_version_is_kept() {
    let rig = Rig::new().await;
    let path = "/api/packages/gcs/torch-2.9.0+cpu-cp313-cp313-linux_x86_64.whl";
    assert_eq!(rig.trusted(Method::PUT, path, "PK").await.0, StatusCode::OK);
    assert_eq!(rig.kept("torch-2.9.0+cpu-cp313-cp313-linux_x86_64.whl"), Some(b"PK".to_vec()));
}

#[tokio::test(start_paused = true)]
async fn an_upload_takes_as_long_as_it_moves() {
    let moved = |pieces: u64, pause: Duration| async move {
        let body = futures_util::stream::unfold(0, move |n| async move {
            tokio::time::sleep(pause).await;
            (n < pieces).then(|| (Ok::<_, std::io::Error>(Bytes::from_static(b"x")), n + 1))
        });
        let waits = crate::door::Moved::default();
        let mut body = proxy::watched(Body::from_stream(body), waits.clone()).into_data_stream();
        let read = async { while futures_util::StreamExt::next(&mut body).await.is_some() {} };
        tokio::select! {
            () = read => true,
            () = waits.silent(ANSWER) => false,
        }
    };
    assert!(moved(100, Duration::from_secs(2)).await, "200 s of upload");
    assert!(!moved(2, Duration::from_secs(61)).await, "a minute of silence");
}

#[test]
fn a_job_is_deleted_once_ray_has_seen_its_end() {
    let ended = Timestamp::from_millis(10_000);
    let wait = |now| still_watched(ended, Timestamp::from_millis(now));
    assert_eq!((wait(10_000), wait(12_500)), (Duration::from_secs(3), Duration::from_millis(500)));
    assert_eq!((wait(13_000), wait(99_000)), (Duration::ZERO, Duration::ZERO));
    assert_eq!(wait(0), Duration::from_secs(3), "never longer, whatever the clocks say");
}

#[tokio::test(start_paused = true)]
async fn a_submission_may_come_slowly_and_is_given_up_when_nothing_comes() {
    let slow = futures_util::stream::unfold(0, |n| async move {
        tokio::time::sleep(ANSWER / 2).await;
        (n < 5).then(|| (Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"ab")), n + 1))
    });
    assert_eq!(super::whole(Body::from_stream(slow)).await, Ok(bytes::Bytes::from_static(b"ababababab")));
    let silent = Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let refused = tokio::time::timeout(2 * ANSWER, super::whole(silent)).await.expect("given up");
    assert_eq!(refused.map_err(|(status, _)| status), Err(StatusCode::REQUEST_TIMEOUT));
}

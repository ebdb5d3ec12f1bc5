//! The front door over a head that is a few lines long, and the real keeper behind it.

use std::sync::{Arc, Mutex};

use axum::{
    body::to_bytes,
    extract::Request,
    http::{Method, header::HOST},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tower::ServiceExt as _;

use super::*;
use crate::{
    config::Config,
    jobs::{self, LedgerView},
    journal::Journal,
    ray::{HttpJobs, RayNode},
    snapshot::JobStatus,
    time::Timestamp,
};

const TOKEN: &str = "hunter2-hunter2";

/// What reached the head: method and path with query, host, body.
type Heard = Arc<Mutex<Vec<(String, String, Vec<u8>)>>>;

struct Rig {
    router: Router,
    ledger: Ledger,
    heard: Heard,
    ray: watch::Sender<Arc<RayView>>,
    endpoint: watch::Sender<Option<Endpoint>>,
    dir: TempDir,
    _alive: Vec<Box<dyn std::any::Any>>,
}

/// A head that takes everything but packages called `refused`, and echoes what a WebSocket sends.
async fn head(heard: Heard) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let app = Router::new().fallback(any(move |mut request: Request| {
        let heard = heard.clone();
        async move {
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
        let heard = Heard::default();
        let there = Endpoint {
            gcs: "127.0.0.1:1".parse().expect("one"),
            dashboard: head(heard.clone()).await,
            token: Secret::new(TOKEN),
        };
        let driver = RayNode {
            id: vec![1],
            address: std::net::Ipv4Addr::LOCALHOST,
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
            incidents: died,
            snapshot: lab.state.snapshot.clone(),
            config: configs,
            journal: Journal::open(&dir.path().join("journal.db"), Duration::from_hours(24)).expect("opens"),
        };
        let ledger = jobs::spawn(opened, parts);
        let door = Door::new(ledger.clone(), packages, at, view, Secret::new(TOKEN));
        let alive: Vec<Box<dyn std::any::Any>> = vec![Box::new(incidents), Box::new(config), Box::new(lab)];
        Self { router: router(door), ledger, heard, ray, endpoint, dir, _alive: alive }
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
        let seen = tokio::time::timeout(Duration::from_secs(10), view.wait_for(what)).await;
        seen.expect("within 10 s").expect("the keeper lives").clone()
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
    let request = "GET /api/jobs/a/logs/tail HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
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
async fn a_submission_is_recorded_placed_and_handed_in_and_a_strangers_or_a_pages_is_only_passed_on() {
    let rig = Rig::new().await;
    let body = json!({ "entrypoint": "python train.py", "submission_id": "food11" }).to_string();
    let page = [("authorization", "Bearer hunter2-hunter2"), ("user-agent", "Mozilla/5.0")];
    rig.ask(Method::POST, "/api/jobs/", &[], body.clone()).await;
    rig.ask(Method::POST, "/api/jobs/", &page, body.clone()).await;
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
    let jobs = |jobs| Some(Arc::new(crate::ray::Jobs { asked_at: Timestamp::now(), jobs }));
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

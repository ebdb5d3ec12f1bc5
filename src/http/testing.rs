//! Small lab for the tests of this module, and ways to ask it.

use std::sync::Arc;

use axum::{
    Router,
    body::{Body, BodyDataStream},
    http::{Request, StatusCode},
    response::Response,
};
use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tempfile::TempDir;
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::{Doctor, Feed, FileSource, LogSource, Second, State};
use crate::{
    accounts::{Accounts, Role, Way},
    config::{Anonymous, Config},
    control::{Command, Control, Refusal},
    credentials::Credential,
    door::Door,
    gpus::handle::Gpus,
    history::History,
    journal::Journal,
    plan::{self, PlanView},
    secret::Secret,
    snapshot::{
        CheckpointView, DaemonView, EngineView, GpuState, GpuView, JobStatus, JobView, NodeView, RunStatus, RunView,
        SCHEMA, ServiceState, ServiceView, Snapshot,
    },
    supervise::DoorView,
    time::Timestamp,
};

pub(crate) struct Lab {
    pub(crate) state: State,
    pub(crate) snapshot: watch::Sender<Arc<Snapshot>>,
    pub(crate) shutdown: watch::Sender<bool>,
    config: watch::Sender<Arc<Config>>,
    _dir: TempDir,
}

struct Silent;

impl LogSource for Silent {
    fn logs(&self, _: &str, _: usize, _: bool) -> BoxStream<'static, Result<Bytes, String>> {
        stream::empty().boxed()
    }
}

impl FileSource for Silent {
    fn file(&self, service: &str, path: &str, _: usize) -> BoxFuture<'static, Result<Vec<u8>, String>> {
        let none = format!("{service} has not written {path} yet");
        std::future::ready(Err(none)).boxed()
    }
}

impl Lab {
    /// Lab whose loop has ended: it answers no command.
    pub(crate) fn new() -> Self {
        Self::with(Control::channel().0)
    }

    /// Lab whose page asks for a login.
    pub(crate) fn closed(self) -> Self {
        self.config.send_modify(|config| Arc::make_mut(config).http.anonymous = Anonymous::None);
        self
    }

    /// Cookie and CSRF token of somebody who logged in.
    pub(crate) async fn log_in(&self, role: Role) -> (String, String) {
        self.log_in_on(role, false).await
    }

    /// The same, with a cookie that is good over TLS or without.
    pub(crate) async fn log_in_on(&self, role: Role, over_tls: bool) -> (String, String) {
        let person = crate::accounts::Person { name: format!("a {}", role.as_str()), role };
        let link = self.state.accounts.link(person);
        let session = self
            .state
            .accounts
            .log_in_by_link(&link, Way { from: [127, 0, 0, 1].into(), over_tls })
            .await
            .expect("good once");
        let cookie = session.cookie.expose();
        (format!("{}={cookie}", self.state.cookie), session.csrf.expose().to_owned())
    }

    /// Lab whose loop answers like this.
    pub(crate) fn answering(answer: impl Fn(Command) -> Result<String, Refusal> + Send + 'static) -> Self {
        let (control, mut requests) = Control::channel();
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                let _ = request.reply.send(answer(request.command));
            }
        });
        Self::with(control)
    }

    fn with(control: Control) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let journal =
            Journal::open(&dir.path().join("journal.db"), std::time::Duration::from_hours(24)).expect("opens");
        let (snapshot, snapshots) = watch::channel(Arc::new(a_snapshot()));
        let (shutdown, stop) = watch::channel(false);
        let credential = Credential {
            name: "minio".into(),
            user: Some("labd".into()),
            secret: Secret::new("hunter2"),
            url: "http://127.0.0.1:9001".into(),
        };
        let mut open = Config::default();
        open.http.anonymous = Anonymous::Viewer;
        let (config, configs) = watch::channel(Arc::new(open));
        let inputs = plan::tests::inputs("", 2, 32);
        let (plan, sizes) = plan::make(&inputs).expect("it fits");
        let view = PlanView { node: inputs.node, gpus: inputs.gpus, sizes, plan };
        let listener = DoorView { port: Some(8601), trouble: None };
        let state = State {
            notify: crate::notify::Notifier::none(snapshots.clone(), configs.clone()),
            snapshot: snapshots,
            journal,
            control,
            logs: Arc::new(Silent),
            files: Arc::new(Silent),
            plan: watch::channel(Arc::new(view)).1,
            credentials: watch::channel(Arc::new(vec![credential])).1,
            jobs: crate::jobs::Ledger::none(),
            training: crate::training::Training::open(dir.path()).training,
            head: watch::channel(None).1,
            gpus: Gpus::none(),
            history: History::open(dir.path()).0,
            accounts: Accounts::open(dir.path()).expect("opens").accounts,
            cookie: "labd-test-lab".into(),
            feed: Feed::default(),
            second: Second { cookie: "labd_jupyter-test-lab".into(), listener: watch::channel(listener).1 },
            tls: watch::channel(Arc::default()).1,
            door: Door::closed(),
            doctor: Doctor::by("/bin/true".into(), [].into()),
            config: configs,
            turns: super::Turns::default(),
            host_names: Arc::new([]),
            shutdown: stop,
        };
        Self { state, snapshot, shutdown, config, _dir: dir }
    }
}

pub(crate) fn a_snapshot() -> Snapshot {
    let at = Timestamp::from_millis(1_795_492_872_123);
    let service = |name: &str, restarts| ServiceView {
        name: name.into(),
        state: ServiceState::Ready,
        since: at,
        restarts,
        last_reason: "answers".into(),
        progress: None,
        next_try: None,
        container: Some(format!("test-lab-{name}")),
        image: "labd/ray".into(),
        address: "198.18.0.2".into(),
        optional: false,
    };
    Snapshot {
        schema: SCHEMA,
        taken_at: at,
        labd: DaemonView { version: "0.1.0".into(), lab: "test-lab".into(), pid: 1, started_at: at, config: None },
        node: NodeView {
            hostname: "node".into(),
            address: "192.0.2.7".into(),
            cpus: 8,
            numa_nodes: 1,
            memory_bytes: 64 << 30,
            memory_available_bytes: 32 << 30,
            load_1m: 0.5,
            engine_data: "/var/lib/docker".into(),
            disks: vec![],
        },
        engine: EngineView::Reachable { version: "26.1.5".into(), api: "1.45".into() },
        services: vec![service("ray-head", 3), service("minio", 0)],
        gpus: vec![GpuView {
            id: "SIM-0".into(),
            name: "a \"fine\" GPU".into(),
            vendor: "simulated".into(),
            simulated: true,
            memory_bytes: 24 << 30,
            worker: Some("ray-worker-0".into()),
            state: GpuState::Ok,
            trouble: None,
            pci: None,
            numa_node: None,
            parent: None,
            partition: None,
            taken: None,
            reading: None,
            processes: Vec::new(),
        }],
        gpu_sources: Vec::new(),
        jobs: vec![JobView {
            submission_id: "raysubmit_1".into(),
            status: JobStatus::Running,
            run: None,
            entrypoint: "python train.py".into(),
            submitted_at: Some(at),
            ended_at: None,
            message: String::new(),
            outcome: None,
            attempt: Some(1),
            resubmission_of: None,
            resubmitted_as: None,
            waits_for: None,
            workers: Vec::new(),
            note: None,
            user: None,
        }],
        runs: vec![RunView {
            name: "food11".into(),
            submission_id: Some("raysubmit_1".into()),
            status: Some(RunStatus::Running),
            started_at: Some(at),
            attempts: 1,
            checkpoint: Some(CheckpointView { name: "checkpoint_1".into(), at, bytes: 350 << 20 }),
            checkpoints: 2,
            used_bytes: 700 << 20,
            looked_at: Some(at),
            note: None,
        }],
        resubmissions: 0,
        installs: Vec::new(),
        package_store_bytes: None,
        demands: vec![],
        incidents: vec![],
        links: vec![],
        tls: None,
        notices: vec![],
    }
}

/// Sends a request to `localhost`.
pub(crate) async fn ask(router: Router, method: &str, path: &str) -> Response {
    ask_as(router, "localhost:8080", method, path).await
}

/// Sends a request under a host name.
pub(crate) async fn ask_as(router: Router, host: &str, method: &str, path: &str) -> Response {
    let request = Request::builder().method(method).uri(path).header("host", host).body(Body::empty());
    router.oneshot(request.expect("a request")).await.expect("routers do not fail")
}

/// Sends a GET with one more header.
pub(crate) async fn ask_with(router: Router, path: &str, header: &str, value: &str) -> Response {
    let request = Request::builder().uri(path).header("host", "localhost").header(header, value).body(Body::empty());
    router.oneshot(request.expect("a request")).await.expect("routers do not fail")
}

pub(crate) async fn status_and_text(answer: Response) -> (StatusCode, String) {
    let status = answer.status();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.expect("a body");
    (status, String::from_utf8(body.to_vec()).expect("text"))
}

pub(crate) async fn json(answer: Response) -> serde_json::Value {
    let (status, text) = status_and_text(answer).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

/// Server-sent events as name and data.
pub(crate) struct Sse {
    body: BodyDataStream,
    text: String,
    id: Option<String>,
}

impl Sse {
    pub(crate) fn new(answer: Response) -> Self {
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { body: answer.into_body().into_data_stream(), text: String::new(), id: None }
    }

    /// Id of the last event that had one.
    pub(crate) fn last_id(&self) -> Option<String> {
        self.id.clone()
    }

    /// Next event; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<(String, String)> {
        loop {
            if let Some((message, rest)) = self.text.split_once("\n\n") {
                let field =
                    |name: &str| message.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim_start().to_owned());
                let found = field("event:").zip(field("data:"));
                self.id = field("id:").or(self.id.take());
                self.text = rest.to_owned();
                if found.is_some() {
                    return found;
                }
                continue;
            }
            let bytes = self.body.next().await?.expect("no error on the way");
            self.text.push_str(std::str::from_utf8(&bytes).expect("text"));
        }
    }
}

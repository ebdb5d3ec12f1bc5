//! Health checks: whether a running container fulfils its contract. One task per running container; it owns nothing and
//! reports health.
//!
//! Everything is asked through ports published on the host, never at bridge addresses: that also works with rootless
//! engines. A container that was ready is called failing only after three misses in a row, each with seconds to answer: a
//! busy one must not be called dead.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, header};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rusty_s3::{Bucket, Credentials, S3Action as _, UrlStyle};
use tokio::sync::watch;

use super::{decide::Health, gpu_check};
use crate::{
    engine::{Engine, ObservedContainer},
    minio::{self, Keys},
    ray::{Gcs, RayNode, RayView},
    secret::Secret,
    spec::{Probe, ServiceSpec},
    time::{Moment, Timestamp},
};

/// Interval between checks until it is ready for the first time.
const EAGER: Duration = Duration::from_millis(150);
/// Interval between checks while it is ready.
const CALM: Duration = Duration::from_secs(2);
/// Longest time one answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Number of misses in a row that make a ready one failing.
const MISSES: u32 = 3;
/// Longest time for which Ray's GCS may count a dead node as alive where nobody tells it.
const CALLED_DEAD: Duration = Duration::from_secs(25);
/// Tolerance between a Ray node's clock and the engine's, which are the same clock, read a moment apart.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// HTTP requests of the health checks: the one thing they need of the outside, so that supervision can run over a
/// simulated one.
pub trait Ask: Send + Sync {
    /// Status of the answer, or why there is none, in words that do not contain the URL: a signed one is a credential.
    /// `authorization` is the scheme and the secret.
    fn ask<'a>(
        &'a self,
        method: Method,
        url: &'a str,
        authorization: Option<(&'a str, &'a Secret)>,
    ) -> Pin<Box<dyn Future<Output = Result<u16, String>> + Send + 'a>>;

    /// A PUT with a body and headers of its own, answered likewise. A simulated store takes everything.
    fn put<'a>(
        &'a self,
        _url: &'a str,
        _headers: Vec<(&'static str, String)>,
        _body: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Result<u16, String>> + Send + 'a>> {
        Box::pin(std::future::ready(Ok(200)))
    }
}

/// HTTP client that asks real containers.
pub struct Http(Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>);

impl Http {
    /// A client that keeps no connections: a container that is replaced must not be asked through an old one.
    pub fn new() -> Self {
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http())
    }

    /// Sends the request and closes the connection unread: only the status matters.
    async fn status(&self, request: hyper::http::request::Builder, body: Bytes) -> Result<u16, String> {
        let request = request.body(Full::new(body)).map_err(|_| "the address to ask is not valid".to_owned())?;
        let answer = self.0.request(request).await.map_err(|_| "does not answer yet".to_owned())?;
        Ok(answer.status().as_u16())
    }
}

impl Default for Http {
    fn default() -> Self {
        Self::new()
    }
}

impl Ask for Http {
    fn ask<'a>(
        &'a self,
        method: Method,
        url: &'a str,
        authorization: Option<(&'a str, &'a Secret)>,
    ) -> Pin<Box<dyn Future<Output = Result<u16, String>> + Send + 'a>> {
        Box::pin(async move {
            let mut request = Request::builder().method(method).uri(url);
            if let Some((scheme, secret)) = authorization {
                request = request.header(header::AUTHORIZATION, format!("{scheme} {}", secret.expose()));
            }
            self.status(request, Bytes::new()).await
        })
    }

    fn put<'a>(
        &'a self,
        url: &'a str,
        headers: Vec<(&'static str, String)>,
        body: Vec<u8>,
    ) -> Pin<Box<dyn Future<Output = Result<u16, String>> + Send + 'a>> {
        Box::pin(async move {
            let request = Request::builder().method(Method::PUT).uri(url);
            let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
            self.status(request, body.into()).await
        })
    }
}

/// Checks forever, reporting every change of health; a GPU that is gone inside the container is the last report.
pub(super) async fn run<E: Engine>(
    engine: Arc<E>,
    ask: Arc<dyn Ask>,
    spec: Arc<ServiceSpec>,
    container: ObservedContainer,
    started_at: Timestamp,
    ray: watch::Receiver<Arc<RayView>>,
    tell: impl Fn(Health),
) {
    let prober = Prober {
        ask,
        spec,
        container,
        started_at,
        begun: Moment::now(),
        before: OnceLock::new(),
        user_told: AtomicBool::new(false),
    };
    tokio::select! {
        biased;
        (reason, since) = gpu_check::watch(&*engine, &prober.container.id, &prober.spec.container) => {
            tell(Health::Gone { reason, since });
        }
        () = contract(&prober, ray, &tell) => {}
    }
}

/// Asks forever whether the contract holds.
async fn contract(prober: &Prober, mut ray: watch::Receiver<Arc<RayView>>, tell: impl Fn(Health)) {
    let (mut last, mut misses) = (Answer::Unknown, 0);
    let (mut bad_since, mut joined): (Option<(Moment, bool)>, bool) = (None, false);
    let mut good_at = Moment::now();
    loop {
        let asked_at = Moment::now();
        let view = ray.borrow_and_update().clone();
        let answer = match prober.ask(&view).await {
            // The GCS answers before its own node has joined, so one that is still on its way in may be older than that.
            Answer::Lost(_) if !joined => failing("it has not joined the Ray cluster"),
            answer => answer,
        };
        joined |= answer == Answer::Passing;
        let was_passing = last == Answer::Passing;
        // How long it has been as bad as it is now.
        if let Answer::Failing(_) | Answer::Silent(_) = answer {
            let alive = matches!(answer, Answer::Silent(_));
            misses += 1;
            bad_since = bad_since.filter(|(_, before)| *before == alive).or_else(|| Some((Moment::now(), alive)));
        } else {
            misses = 0;
            bad_since = None;
        }
        if let Answer::Passing | Answer::Unknown = answer {
            good_at = asked_at;
        }
        let believed = !(was_passing && misses > 0 && misses < MISSES);
        if believed && answer != last {
            last = answer;
            let since = bad_since.map_or_else(Moment::now, |(since, _)| since);
            tell(match last.clone() {
                Answer::Unknown => Health::Unknown,
                Answer::Passing => Health::Passing,
                Answer::Failing(reason) => Health::Failing { reason, since, good_at, alive: false },
                Answer::Silent(reason) => Health::Failing { reason, since, good_at, alive: true },
                Answer::Lost(reason) => Health::Lost { reason, good_at },
            });
        }
        let pause = if last == Answer::Passing { CALM } else { EAGER };
        let is_node = matches!(prober.spec.probe, Probe::RayNode { .. });
        tokio::select! {
            biased;
            // A node that joins or leaves is seen at once.
            Ok(()) = ray.changed(), if is_node && last != Answer::Passing => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Answer to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// Nothing can be known now.
    Unknown,
    Passing,
    Failing(String),
    /// No answer, although somebody who should know counts it as alive.
    Silent(String),
    /// A failure that waiting cannot mend.
    Lost(String),
}

struct Prober {
    ask: Arc<dyn Ask>,
    spec: Arc<ServiceSpec>,
    container: ObservedContainer,
    started_at: Timestamp,
    /// Moment at which the checks began.
    begun: Moment,
    /// Node that was at the container's address when it was first looked for.
    before: OnceLock<Option<Vec<u8>>>,
    /// Whether this start of the store has been told of the user of jobs.
    user_told: AtomicBool,
}

impl Prober {
    /// Whether the node at the container's address is of this run whatever its clock says, since the clock may have been set
    /// back between the container's start and the node's: it was not there at the first look, or Ray has counted it as alive
    /// for longer than it does with one that is dead.
    fn is_new(&self, ray: &RayView) -> bool {
        let there = || ray.nodes.iter().find(|n| Some(n.address) == self.container.address).map(|n| n.id.clone());
        ray.gcs == Gcs::Reachable
            && (*self.before.get_or_init(there) != there() || Moment::now().since(self.begun) >= CALLED_DEAD)
    }

    async fn ask(&self, ray: &RayView) -> Answer {
        match &self.spec.probe {
            Probe::Http { port, path, authorization } => {
                let authorization = authorization.as_ref().map(|(scheme, secret)| (scheme.as_str(), secret));
                self.expect_ok(*port, path, authorization).await
            }
            Probe::Minio { port, bucket, region, user, root } => {
                match self.expect_ok(*port, "/minio/health/ready", None).await {
                    Answer::Passing => self.bucket(*port, bucket, region, user, root).await,
                    other => other,
                }
            }
            Probe::RayNode { agent_port } => match node(ray, &self.container, self.started_at, self.is_new(ray)) {
                Answer::Passing => match self.expect_ok(*agent_port, "/api/local_raylet_healthz", None).await {
                    Answer::Failing(reason) => {
                        Answer::Silent(format!("Ray counts the node as alive; its agent {reason}"))
                    }
                    other => other,
                },
                other => other,
            },
        }
    }

    async fn expect_ok(&self, port: u16, path: &str, authorization: Option<(&str, &Secret)>) -> Answer {
        let address = match self.address(port) {
            Ok(address) => address,
            Err(answer) => return answer,
        };
        match self.send(Method::GET, &format!("http://{address}{path}"), authorization).await {
            Ok(200) => Answer::Passing,
            Ok(status) => failing(format!("{path} is answered with HTTP status {status}")),
            Err(reason) => failing(reason),
        }
    }

    /// Checks the bucket, which is part of the contract as the user of jobs sees it, and makes what is missing. The
    /// user's rights are told once to each start of the store, as a newer labd may give others.
    async fn bucket(&self, port: u16, name: &str, region: &str, user: &Keys, root: &Keys) -> Answer {
        const VALID: Duration = Duration::from_mins(1);
        let address = match self.address(port) {
            Ok(address) => address,
            Err(answer) => return answer,
        };
        let endpoint = format!("http://{address}").parse().ok();
        let bucket = endpoint.and_then(|e| Bucket::new(e, UrlStyle::Path, name.to_owned(), region.to_owned()).ok());
        let Some(bucket) = bucket else { return failing(format!("bucket `{name}` has no valid address")) };
        let credentials = |keys: &Keys| Credentials::new(keys.access.expose(), keys.secret.expose());
        if !self.user_told.load(Ordering::Relaxed) {
            if let Err(reason) = self.tell_user(address, name, user, root).await {
                return failing(reason);
            }
            self.user_told.store(true, Ordering::Relaxed);
        }
        let look = bucket.head_bucket(Some(&credentials(user))).sign(VALID);
        match self.send(Method::HEAD, look.as_str(), None).await {
            Ok(200) => Answer::Passing,
            Ok(404) => {
                let make = bucket.create_bucket(&credentials(root)).sign(VALID);
                match self.send(Method::PUT, make.as_str(), None).await {
                    Ok(200) => Answer::Passing,
                    Ok(status) => failing(format!("bucket `{name}` cannot be made: HTTP status {status}")),
                    Err(reason) => failing(reason),
                }
            }
            Ok(403) => {
                // Somebody took the user or its policy away.
                self.user_told.store(false, Ordering::Relaxed);
                failing(format!("bucket `{name}` is not open to the user of jobs"))
            }
            Ok(status) => failing(format!("bucket `{name}` is answered with HTTP status {status}")),
            Err(reason) => failing(reason),
        }
    }

    /// Makes the user of jobs, or gives it its rights again.
    async fn tell_user(&self, address: SocketAddr, bucket: &str, user: &Keys, root: &Keys) -> Result<(), String> {
        let host = address.to_string();
        for put in minio::user_for_bucket(root, user, bucket, &rand::random()) {
            let headers = minio::signed(&put, &host, root, Timestamp::machines_now()).into();
            let url = format!("http://{host}{}", put.path);
            let asked = tokio::time::timeout(PATIENCE, self.ask.put(&url, headers, put.body)).await;
            match asked.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))? {
                200 => {}
                403 => return Err("the root credentials are refused; the volume was made with others".to_owned()),
                status => return Err(format!("the user of jobs cannot be made: HTTP status {status}")),
            }
        }
        Ok(())
    }

    /// Sends one question. Each has its own patience: a busy store that takes its time over two of them is not silent.
    async fn send(&self, method: Method, url: &str, authorization: Option<(&str, &Secret)>) -> Result<u16, String> {
        let answer = tokio::time::timeout(PATIENCE, self.ask.ask(method, url, authorization)).await;
        answer.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
    }

    fn address(&self, port: u16) -> Result<SocketAddr, Answer> {
        let published = self.spec.container.ports.iter().find(|p| p.container == port);
        let host_ip = published.and_then(|p| p.host_ip.parse().ok()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let host_port = self.container.ports.get(&port).copied();
        host_port
            .map(|p| SocketAddr::new(reached_at(host_ip), p))
            .ok_or_else(|| failing(format!("port {port} is not published")))
    }
}

/// Address at which something published on that address is reached from here: what is on every address is on loopback,
/// too.
pub(super) fn reached_at(published: IpAddr) -> IpAddr {
    if published.is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { published }
}

fn failing(reason: impl Into<String>) -> Answer {
    Answer::Failing(reason.into())
}

/// Whether the container's node is in the cluster since this start, by the clock or because it `is_new` there. Pure.
fn node(ray: &RayView, container: &ObservedContainer, started_at: Timestamp, is_new: bool) -> Answer {
    if ray.gcs != Gcs::Reachable {
        return Answer::Unknown;
    }
    let Some(address) = container.address else { return failing("it has no address on the lab's network") };
    let of_this_run = |n: &RayNode| n.started_at.plus(CLOCK_SLACK) >= started_at || (is_new && n.alive);
    let node = ray.nodes.iter().find(|n| n.address == address && of_this_run(n));
    match node {
        Some(n) if n.alive => Answer::Passing,
        Some(_) => failing("Ray counts the node as dead"),
        // A head that kept its state knows its nodes from the first answer on. One that did not has begun a new cluster:
        // the old one's nodes hold on to their GPUs for a minute and never join.
        None if ray.nodes.iter().any(|n| n.is_head && n.alive && n.started_at > started_at.plus(CLOCK_SLACK)) => {
            Answer::Lost("Ray's head was started again and does not know this node any more".to_owned())
        }
        None => failing("it has not joined the Ray cluster"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::RunState;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 100, 20);

    fn container() -> ObservedContainer {
        ObservedContainer {
            id: "c".into(),
            spec_hash: "h".into(),
            hard_hash: String::new(),
            run: RunState::Running { started_at: at(10_000) },
            last_end: None,
            pid: None,
            ports: BTreeMap::new(),
            address: Some(ADDRESS),
        }
    }

    fn node_at(started: i64, alive: bool) -> RayNode {
        RayNode {
            id: vec![1],
            address: ADDRESS,
            port: 0,
            alive,
            is_head: false,
            started_at: at(started),
            name: String::new(),
            resources: BTreeMap::new(),
            available: BTreeMap::new(),
            labels: BTreeMap::new(),
        }
    }

    /// Missing answer.
    struct Silence;

    impl Ask for Silence {
        fn ask<'a>(
            &'a self,
            _: Method,
            _: &'a str,
            _: Option<(&'a str, &'a Secret)>,
        ) -> Pin<Box<dyn Future<Output = Result<u16, String>> + Send + 'a>> {
            Box::pin(async { Err("does not answer yet".to_owned()) })
        }
    }

    #[tokio::test]
    async fn a_silent_agent_of_a_node_that_is_alive_is_told_from_a_node_that_is_dead() {
        let (plan, _) = crate::plan::make(&crate::plan::tests::inputs("", 1, 32)).expect("a plan");
        let spec = plan.service("ray-worker-0").expect("planned").clone();
        let Probe::RayNode { agent_port } = spec.probe else { panic!("a node") };
        let container = ObservedContainer { ports: BTreeMap::from([(agent_port, 1)]), ..container() };
        let (ask, begun, before) = (Arc::new(Silence), Moment::now(), OnceLock::new());
        let user_told = AtomicBool::new(false);
        let prober = Prober { ask, spec: Arc::new(spec), container, started_at: at(10_000), begun, before, user_told };
        let view = |alive| RayView { gcs: Gcs::Reachable, nodes: vec![node_at(11_000, alive)], ..RayView::default() };
        let reason = "Ray counts the node as alive; its agent does not answer yet";
        assert_eq!(prober.ask(&view(true)).await, Answer::Silent(reason.into()));
        assert_eq!(prober.ask(&view(false)).await, failing("Ray counts the node as dead"));
    }

    #[test]
    fn a_node_counts_from_this_start_on() {
        let container = container();
        let view = |gcs, nodes| RayView { gcs, nodes, ..RayView::default() };
        let ask = |view: &RayView| node(view, &container, at(10_000), false);
        assert_eq!(ask(&view(Gcs::Unknown, vec![])), Answer::Unknown);
        assert_eq!(ask(&view(Gcs::Unreachable { reason: "x".into() }, vec![node_at(11_000, true)])), Answer::Unknown);
        assert_eq!(ask(&view(Gcs::Reachable, vec![node_at(11_000, true)])), Answer::Passing);
        assert_eq!(ask(&view(Gcs::Reachable, vec![node_at(9_500, true)])), Answer::Passing, "clocks");
        assert!(matches!(ask(&view(Gcs::Reachable, vec![node_at(2_000, true)])), Answer::Failing(_)), "the one before");
        assert!(matches!(ask(&view(Gcs::Reachable, vec![node_at(11_000, false)])), Answer::Failing(_)));
        let head_at = |started: i64| RayNode {
            address: Ipv4Addr::new(198, 18, 100, 10),
            is_head: true,
            ..node_at(started, true)
        };
        assert!(matches!(ask(&view(Gcs::Reachable, vec![head_at(5_000)])), Answer::Failing(_)), "it may yet join");
        assert!(
            matches!(ask(&view(Gcs::Reachable, vec![head_at(50_000)])), Answer::Lost(_)),
            "a new head without the old state"
        );
        // The clock was set back between the container's start and its node's.
        let back = |alive| view(Gcs::Reachable, vec![node_at(2_000, alive)]);
        assert_eq!(node(&back(true), &container, at(10_000), true), Answer::Passing);
        assert!(matches!(node(&back(false), &container, at(10_000), true), Answer::Failing(_)));
    }
}

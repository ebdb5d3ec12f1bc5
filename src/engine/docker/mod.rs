//! The real engine, through bollard: Docker 20.10 or newer on a Unix socket.
//!
//! * `container`: our values to the engine's and back, pure.
//! * `doctor`: what only `labd doctor` asks.
//! * `first_process`: a container's end as the kernel reports it.
//! * `syscalls`: which system calls a container may make, pure.
//! * `explain`: the engine's errors as one line that ends in a fix, pure.
//! * `old_images`: images that labd built for earlier settings.
//!
//! A [`DockerEngine`] may be made before the engine runs, and lives through its restarts and upgrades: the connection is
//! made, and the API version agreed on, at the first call and again after any call that found nobody there.

mod container;
mod doctor;
pub(crate) mod explain;
mod first_process;
#[cfg(test)]
mod live;
mod old_images;
mod syscalls;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    container::LogOutput,
    errors::Error,
    exec::StartExecResults,
    models::{EventMessage, ExecConfig, Ipam, IpamConfig, NetworkCreateRequest, NetworkInspect},
    query_parameters::{
        CreateContainerOptions, DownloadFromContainerOptions, EventsOptions, KillContainerOptions,
        ListContainersOptions, ListNetworksOptions, LogsOptions, RemoveContainerOptions, StatsOptions,
        StopContainerOptions, UploadToContainerOptions,
    },
};
use bytes::Bytes;
use futures_util::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};

pub use doctor::{Setup, Standing};
pub use old_images::{OldImage, Removal};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    Engine, EngineError, EngineEvent, EngineEventKind, LABEL_LAB, LABEL_PARTS, LABEL_SERVICE, ListedContainer,
    Observed, ObservedContainer, Patience, Ran, data_root, events::Source,
};
use crate::{
    gpus::{attach::EngineDevices, cdi, simulate::Counters},
    snapshot::EngineView,
    spec::{ContainerSpec, NetworkSpec},
    time::{Timestamp, human},
};

/// Oldest API that has all labd uses (major, minor): Docker 20.10.
pub(crate) const MIN_API: (usize, usize) = (1, 41);

/// First API whose engines say which CDI devices they know: Docker 28.2.
const LISTS_DEVICES: (usize, usize) = (1, 50);

/// Longest wait for an answer. Creating and starting may be slow while images build on the same disk.
const ANSWER: Duration = Duration::from_mins(2);
/// Longest wait for a stop: longer than any stop timeout that makes sense.
const STOP: Duration = Duration::from_mins(15);
/// Longest wait for what may stay silent: a quiet log, a build. Bounded only so that arithmetic on it cannot overflow.
pub(crate) const SILENT: Duration = Duration::from_hours(365 * 24);
/// Largest number of bytes of an exec's output that are kept.
const EXEC_OUTPUT: usize = 1 << 20;

/// Container engine, seen by one lab. Cheap to clone.
#[derive(Clone)]
pub struct DockerEngine {
    inner: Arc<Inner>,
}

struct Inner {
    socket: String,
    lab: String,
    /// Client; absent until an engine answers and after it stops answering, so that the next call agrees on the version
    /// again.
    client: Mutex<Option<Docker>>,
    /// Whether the engine runs without root, as the last [`DockerEngine::check`] found.
    rootless: AtomicBool,
    /// Whether the engine's kernel filters system calls, as the last [`DockerEngine::check`] found.
    seccomp: AtomicBool,
    /// Directory of the engine's data, as the last [`DockerEngine::check`] found.
    data_root: watch::Sender<PathBuf>,
    /// Held while the network is looked for and made: the first services of a lab all want it at the same moment, and an
    /// engine that is asked for it twice says that it overlaps itself.
    network: tokio::sync::Mutex<()>,
}

/// Facts about the engine, as far as labd cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// Engine version, such as `28.2.2`.
    pub version: String,
    /// API version in use, such as `1.41`.
    pub api: String,
    /// Directory in which the engine keeps images, containers and volumes.
    pub root_dir: PathBuf,
    /// Whether containers outlive a restart of the engine.
    pub live_restore: bool,
    /// Whether it attaches devices by CDI name.
    pub cdi: bool,
    /// Whether it runs without root.
    pub rootless: bool,
    /// Whether its kernel filters system calls.
    pub seccomp: bool,
}

/// Network of the lab as the host's firewall sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabNetwork {
    /// Subnet in CIDR notation.
    pub(crate) subnet: String,
    /// Name of the host's interface on it.
    pub(crate) bridge: String,
}

impl fmt::Debug for DockerEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerEngine").field("socket", &self.inner.socket).field("lab", &self.inner.lab).finish()
    }
}

impl DockerEngine {
    /// Engine at `socket` (a path, or `unix://` and a path) for the lab called `lab`, whose name is also that of its
    /// network. Touches nothing: the engine need not run yet.
    ///
    /// Fails when `socket` is not a Unix socket's path.
    pub fn connect(socket: &str, lab: &str) -> Result<Self, EngineError> {
        let path = socket.strip_prefix("unix://").unwrap_or(socket);
        if !path.starts_with('/') {
            return Err(EngineError::Other(format!(
                "`{socket}` is not the path of an engine's socket; set `unix:///var/run/docker.sock` in labd.toml"
            )));
        }
        let inner = Inner {
            socket: path.to_owned(),
            lab: lab.to_owned(),
            client: Mutex::new(None),
            rootless: AtomicBool::new(false),
            seccomp: AtomicBool::new(true),
            data_root: watch::channel(data_root(None)).0,
            network: tokio::sync::Mutex::new(()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The lab's name.
    pub fn lab(&self) -> &str {
        &self.inner.lab
    }

    /// Directory in which the engine keeps images, containers and volumes, as it said in the last [`Self::check`]:
    /// whoever listens to its events checks it each time it is back.
    pub fn data_root(&self) -> watch::Receiver<PathBuf> {
        self.inner.data_root.subscribe()
    }

    /// Name of a service's container.
    pub fn container_name(&self, service: &str) -> String {
        container::name(&self.inner.lab, service)
    }

    /// Connects again, agrees on the API version and asks what the engine is.
    ///
    /// Fails in one line that ends in a fix: no engine, no permission, too old, Podman.
    pub async fn check(&self) -> Result<EngineInfo, EngineError> {
        let client = self.negotiate().await?;
        let version = client.version().await.map_err(|e| self.fail(&e))?;
        if version.components.iter().flatten().any(|part| part.name.contains("Podman")) {
            return Err(EngineError::Other(format!(
                "Podman answers at {}, which refuses the log driver `local` of labd's containers; install Docker with \
                 `apt-get install docker.io`",
                self.inner.socket
            )));
        }
        let info = client.info().await.map_err(|e| self.fail(&e))?;
        let options = info.security_options.unwrap_or_default();
        let rootless = doctor::has_option(&options, "rootless");
        let seccomp = doctor::has_option(&options, "seccomp");
        self.inner.rootless.store(rootless, Ordering::Relaxed);
        self.inner.seccomp.store(seccomp, Ordering::Relaxed);
        let root_dir = data_root(info.docker_root_dir);
        self.inner.data_root.send_if_modified(|known| {
            let moved = *known != root_dir;
            known.clone_from(&root_dir);
            moved
        });
        Ok(EngineInfo {
            version: version.version.unwrap_or_default(),
            api: client.client_version().to_string(),
            root_dir,
            live_restore: info.live_restore_enabled.unwrap_or(false),
            cdi: info.cdi_spec_dirs.is_some_and(|d| !d.is_empty()),
            rootless,
            seccomp,
        })
    }

    /// Devices that the engine can attach. Reads CDI specifications below `root`, where the engine's file system
    /// begins.
    pub async fn devices(&self, root: &Path) -> Result<EngineDevices, EngineError> {
        let client = self.client().await?;
        let info = client.info().await.map_err(|e| self.fail(&e))?;
        let api = client.client_version();
        // Engines have these in their answer only while CDI is on.
        let cdi_dirs = info.cdi_spec_dirs.unwrap_or_default();
        let cdi_devices = cdi::read(root, &cdi_dirs);
        let cdi_names = if (api.major_version, api.minor_version) >= LISTS_DEVICES {
            let listed = info.discovered_devices.unwrap_or_default().into_iter();
            listed.filter(|d| d.source.as_deref() == Some("cdi")).filter_map(|d| d.id).collect()
        } else {
            cdi_devices.iter().map(|d| d.name.clone()).collect()
        };
        Ok(EngineDevices {
            version: info.server_version.unwrap_or_default(),
            cdi_dirs,
            cdi_names,
            cdi_devices,
            runtimes: info.runtimes.unwrap_or_default().into_keys().collect(),
        })
    }

    /// Container events of this lab from `since` on, or from now. Ends when the connection drops: ask for [`Self::check`]
    /// and call again with the time of the last event.
    pub async fn events(&self, since: Option<Timestamp>) -> Result<BoxStream<'static, EngineEvent>, EngineError> {
        let client = self.client().await?;
        // Always a time: the request goes out when the stream is first polled, and nothing may be missed until then.
        let since = since.map_or_else(|| Timestamp::machines_now().as_millis(), Timestamp::as_told);
        let actions = ["create", "start", "die", "oom", "stop", "kill", "destroy", "pause", "unpause", "rename"];
        let options = EventsOptions {
            since: Some(format!("{}.{:03}000000", since.div_euclid(1000), since.rem_euclid(1000))),
            until: None,
            filters: Some(HashMap::from([
                ("type".to_owned(), vec!["container".to_owned()]),
                ("label".to_owned(), vec![self.lab_filter()]),
                // Without this every health check and `docker exec` would wake the loop three times.
                ("event".to_owned(), actions.map(str::to_owned).to_vec()),
            ])),
        };
        let events = client.with_timeout(SILENT).events(Some(options));
        Ok(events
            .take_while(|e| std::future::ready(e.is_ok()))
            .filter_map(|e| std::future::ready(e.ok().and_then(nudge)))
            .boxed())
    }

    /// Output of a service's container, newest `tail` lines first asked for (all of them without `tail`), then, with
    /// `follow`, what it prints from now on. The pieces are raw and need not end at line ends.
    pub fn logs(
        &self,
        service: &str,
        tail: Option<usize>,
        follow: bool,
    ) -> impl Stream<Item = Result<Bytes, EngineError>> + Send + Unpin + use<> {
        let engine = self.clone();
        let name = self.container_name(service);
        let options = LogsOptions {
            follow,
            stdout: true,
            stderr: true,
            tail: tail.map_or_else(|| "all".to_owned(), |n| n.to_string()),
            ..Default::default()
        };
        stream::once(async move {
            let client = engine.client().await?.with_timeout(SILENT);
            Ok::<_, EngineError>(
                client.logs(&name, Some(options)).map_ok(LogOutput::into_bytes).map_err(move |e| engine.fail(&e)),
            )
        })
        .try_flatten()
        .boxed()
    }

    /// Content of a file in a service's container, which need not run. Fails for what is no file, and for one of more than
    /// `largest` bytes.
    pub async fn file(&self, service: &str, path: &str, largest: usize) -> Result<Vec<u8>, EngineError> {
        let options = DownloadFromContainerOptions { path: path.to_owned() };
        let name = self.container_name(service);
        let client = self.client().await?;
        let mut pieces = client.download_from_container(&name, Some(options));
        let mut archive = Vec::new();
        while let Some(piece) = pieces.next().await {
            archive.extend_from_slice(&piece.map_err(|e| self.fail(&e))?);
            // Its header, and what fills its last block, are less than that.
            if archive.len() > largest + (64 << 10) {
                return Err(EngineError::Other(format!("{path} in {service} has more than {largest} bytes")));
            }
        }
        container::only_file(&archive).ok_or_else(|| EngineError::NotFound(format!("{path} in {service} is no file")))
    }

    /// Runs `argv` in a service's container and returns its exit code with what it printed, both streams mixed, at most
    /// 1 MiB of it. `argv` is visible to everyone on the machine while it runs: no secrets.
    ///
    /// Fails when the container does not run, and when the command takes longer than `timeout` (it then continues,
    /// unseen).
    pub async fn exec(&self, service: &str, argv: &[&str], timeout: Duration) -> Result<(i64, String), EngineError> {
        let words: Vec<String> = argv.iter().map(|&a| a.to_owned()).collect();
        match self.run(&self.container_name(service), &words, Patience::whole(timeout)).await? {
            Ran::Ended { code, output } => Ok((code, output)),
            Ran::NotBegun | Ran::Unfinished => {
                let program = argv.first().copied().unwrap_or_default();
                Err(EngineError::Other(format!("`{program}` in {service} did not finish within {}", human(timeout))))
            }
        }
    }

    /// CPU time and memory of a service's container so far.
    pub async fn counters(&self, service: &str) -> Result<Counters, EngineError> {
        let client = self.client().await?;
        // One look: without this the engine looks twice, a second apart.
        let options = StatsOptions { stream: false, one_shot: true };
        let mut stats = Box::pin(client.stats(&self.container_name(service), Some(options)));
        let found = stats.try_next().await.map_err(|e| self.fail(&e))?;
        found
            .and_then(|stats| container::counters(&stats))
            .ok_or_else(|| EngineError::Other(format!("the engine says nothing of what {service} uses")))
    }

    /// Every network of the engine with each of its subnets in CIDR notation, the lab's own left out: what a new subnet
    /// must not overlap.
    pub async fn networks(&self) -> Result<Vec<(String, String)>, EngineError> {
        let client = self.client().await?;
        let networks = client.list_networks(None::<ListNetworksOptions>).await.map_err(|e| self.fail(&e))?;
        let mut found = Vec::new();
        for network in networks {
            if self.is_ours(network.labels.as_ref()) {
                continue;
            }
            let name = network.name.unwrap_or_default();
            for config in network.ipam.and_then(|i| i.config).unwrap_or_default() {
                found.extend(config.subnet.map(|s| (name.clone(), s)));
            }
        }
        Ok(found)
    }

    /// Parts that the service's container was made of ([`ContainerSpec::parts`]); absent without one, and for one that
    /// an older labd made.
    pub async fn parts(&self, service: &str) -> Result<Option<BTreeMap<String, String>>, EngineError> {
        let client = self.client().await?;
        match client.inspect_container(&self.container_name(service), None).await {
            Ok(c) => Ok(c.config.and_then(|c| serde_json::from_str(c.labels?.get(LABEL_PARTS)?).ok())),
            Err(e) => match self.fail(&e) {
                EngineError::NotFound(_) => Ok(None),
                other => Err(other),
            },
        }
    }

    /// The subnet of the lab's network in CIDR notation, when labd made it.
    pub async fn own_subnet(&self) -> Result<Option<String>, EngineError> {
        let client = self.client().await?;
        let network = self.network(&client, self.lab()).await?.filter(|n| self.is_ours(n.labels.as_ref()));
        let configs = network.and_then(|n| n.ipam).and_then(|i| i.config).unwrap_or_default();
        Ok(configs.into_iter().find_map(|c| c.subnet))
    }

    /// Network of the lab, when labd made it and it exists.
    pub(crate) async fn lab_network(&self) -> Result<Option<LabNetwork>, EngineError> {
        let client = self.client().await?;
        let found = self.network(&client, self.lab()).await?.filter(|n| self.is_ours(n.labels.as_ref()));
        Ok(found.and_then(lab_network))
    }

    /// Client with an agreed API version.
    pub(crate) async fn client(&self) -> Result<Docker, EngineError> {
        let known = self.slot().clone();
        match known {
            Some(client) => Ok(client),
            None => self.negotiate().await,
        }
    }

    /// Puts the error in words; forgets the client when nobody is there, since another engine may come up instead.
    pub(crate) fn fail(&self, error: &Error) -> EngineError {
        let said = explain::explain(&self.inner.socket, error);
        if matches!(said, EngineError::Unreachable(_)) {
            *self.slot() = None;
        }
        said
    }

    async fn negotiate(&self) -> Result<Docker, EngineError> {
        let client = Docker::connect_with_unix(&self.inner.socket, ANSWER.as_secs(), API_DEFAULT_VERSION)
            .map_err(|e| self.fail(&e))?;
        let client = client.negotiate_version().await.map_err(|e| self.fail(&e))?;
        let api = client.client_version();
        if (api.major_version, api.minor_version) < MIN_API {
            let version = client.version().await.map_err(|e| self.fail(&e))?.version.unwrap_or_default();
            return Err(EngineError::Other(explain::too_old(&version, &api.to_string())));
        }
        *self.slot() = Some(client.clone());
        Ok(client)
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Docker>> {
        // Nothing can panic while it is held, and an `Option` is never half written.
        self.inner.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lab_filter(&self) -> String {
        format!("{LABEL_LAB}={}", self.lab())
    }

    fn is_ours(&self, labels: Option<&HashMap<String, String>>) -> bool {
        labels.and_then(|l| l.get(LABEL_LAB)).is_some_and(|l| l == self.lab())
    }

    /// Turns an answer with one of the `fine` statuses into success: what was asked for is already so.
    fn unless_status(&self, error: &Error, fine: &[u16]) -> Result<(), EngineError> {
        match error {
            Error::DockerResponseServerError { status_code, .. } if fine.contains(status_code) => Ok(()),
            other => Err(self.fail(other)),
        }
    }

    async fn network(&self, client: &Docker, name: &str) -> Result<Option<NetworkInspect>, EngineError> {
        match client.inspect_network(name, None).await {
            Ok(network) => Ok(Some(network)),
            Err(e) => match self.fail(&e) {
                EngineError::NotFound(_) => Ok(None),
                other => Err(other),
            },
        }
    }

    /// Removes a network of ours with another subnet, when nothing but ours is attached to it.
    async fn clear_network(&self, client: &Docker, name: &str, network: NetworkInspect) -> Result<(), EngineError> {
        let attached: Vec<String> = network.containers.unwrap_or_default().into_keys().collect();
        for id in &attached {
            let Ok(c) = client.inspect_container(id, None).await else { continue };
            if !self.is_ours(c.config.and_then(|c| c.labels).as_ref()) {
                let other = c.name.unwrap_or_default();
                return Err(EngineError::Conflict(format!(
                    "the network {name} must get another subnet and the container {} is attached to it; take it off with \
                     `docker network disconnect {name} {0}`",
                    other.trim_start_matches('/')
                )));
            }
        }
        // Ours would be replaced anyway: their addresses are part of what they are compared by.
        for id in attached {
            let remove = RemoveContainerOptions { force: true, ..Default::default() };
            client.remove_container(&id, Some(remove)).await.or_else(|e| self.unless_status(&e, &[404, 409]))?;
        }
        client.remove_network(name).await.or_else(|e| self.unless_status(&e, &[404]))
    }

    async fn upload(&self, client: &Docker, id: &str, spec: &ContainerSpec) -> Result<(), EngineError> {
        if spec.files.is_empty() {
            return Ok(());
        }
        let tar = container::files_tar(&spec.files, Timestamp::now())
            .map_err(|e| EngineError::Other(format!("a file cannot be put into the container: {e}")))?;
        let options = UploadToContainerOptions { path: "/".to_owned(), ..Default::default() };
        client.upload_to_container(id, Some(options), bollard::body_full(tar.into())).await.map_err(|e| self.fail(&e))
    }
}

impl Engine for DockerEngine {
    async fn observe(&self, service: &str) -> Result<Observed, EngineError> {
        let client = self.client().await?;
        match client.inspect_container(&self.container_name(service), None).await {
            Ok(c) => Ok(container::seen(self.lab(), service, c)),
            Err(e) => match self.fail(&e) {
                EngineError::NotFound(_) => Ok(Observed::Absent),
                other => Err(other),
            },
        }
    }

    async fn first_process_ended(&self, container: ObservedContainer) {
        first_process::ended(&container).await;
    }

    async fn list(&self) -> Result<Vec<ListedContainer>, EngineError> {
        let client = self.client().await?;
        let options = ListContainersOptions {
            all: true,
            filters: Some(HashMap::from([("label".to_owned(), vec![self.lab_filter()])])),
            ..Default::default()
        };
        let containers = client.list_containers(Some(options)).await.map_err(|e| self.fail(&e))?;
        Ok(containers.into_iter().filter_map(|c| container::listed(self.lab(), c)).collect())
    }

    async fn ensure_network(&self, network: &NetworkSpec) -> Result<(), EngineError> {
        let client = self.client().await?;
        let _alone = self.inner.network.lock().await;
        if let Some(found) = self.network(&client, &network.name).await? {
            if has_subnet(&found, network) {
                return Ok(());
            }
            if !self.is_ours(found.labels.as_ref()) {
                return Err(EngineError::Conflict(format!(
                    "a network called {0} that labd did not make is in the way; remove it with `docker network rm {0}` or \
                     set another lab.name in labd.toml",
                    network.name
                )));
            }
            self.clear_network(&client, &network.name, found).await?;
        }
        let request = NetworkCreateRequest {
            name: network.name.clone(),
            driver: Some("bridge".to_owned()),
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig {
                    subnet: Some(network.subnet.clone()),
                    gateway: Some(network.gateway.to_string()),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            labels: Some(HashMap::from([(LABEL_LAB.to_owned(), self.lab().to_owned())])),
            ..Default::default()
        };
        match client.create_network(request).await {
            Ok(_) => Ok(()),
            // 409: made in the meantime by another process.
            Err(e) => self.unless_status(&e, &[409]),
        }
    }

    async fn remove_network(&self) -> Result<(), EngineError> {
        let client = self.client().await?;
        let lab = self.lab();
        match self.network(&client, lab).await? {
            Some(n) if self.is_ours(n.labels.as_ref()) => {
                client.remove_network(lab).await.or_else(|e| self.unless_status(&e, &[404]))
            }
            _ => Ok(()),
        }
    }

    async fn create(&self, service: &str, spec: &ContainerSpec) -> Result<(), EngineError> {
        let client = self.client().await?;
        let options = CreateContainerOptions { name: Some(self.container_name(service)), ..Default::default() };
        let engine = container::Abilities {
            rootless: self.inner.rootless.load(Ordering::Relaxed),
            seccomp: self.inner.seccomp.load(Ordering::Relaxed),
        };
        let body = container::body(self.lab(), service, spec, engine);
        let id = client.create_container(Some(options), body).await.map_err(|e| self.fail(&e))?.id;
        if let Err(e) = self.upload(&client, &id, spec).await {
            // Half made is worse than absent: it would be started without its files.
            let remove = RemoveContainerOptions { force: true, ..Default::default() };
            if let Err(e) = client.remove_container(&id, Some(remove)).await {
                tracing::warn!(service, "a half-created container is left: {}", self.fail(&e));
            }
            return Err(e);
        }
        Ok(())
    }

    async fn start(&self, id: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        client.start_container(id, None).await.map_err(|e| self.fail(&e))
    }

    async fn stop(&self, id: &str) -> Result<(), EngineError> {
        let client = self.client().await?.with_timeout(STOP);
        client.stop_container(id, None::<StopContainerOptions>).await.map_err(|e| self.fail(&e))
    }

    async fn kill(&self, id: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        let options = KillContainerOptions { signal: "KILL".to_owned() };
        // 409: it does not run.
        client.kill_container(id, Some(options)).await.or_else(|e| self.unless_status(&e, &[409]))
    }

    async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let client = self.client().await?;
        let options = RemoveContainerOptions { force: true, v: false, link: false };
        // 409: its removal is under way.
        client.remove_container(id, Some(options)).await.or_else(|e| self.unless_status(&e, &[404, 409]))
    }

    async fn run(&self, container: &str, argv: &[String], patience: Patience) -> Result<Ran, EngineError> {
        let client = self.client().await?;
        let config = ExecConfig {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(argv.to_vec()),
            ..Default::default()
        };
        // Up to here a slow answer is the engine's, not the command's.
        let id = client.create_exec(container, config).await.map_err(|e| self.fail(&e))?.id;
        let mut begun = patience.begin.is_none();
        let mut until = Instant::now() + patience.begin.unwrap_or(patience.run);
        let late = |begun| Ok(if begun { Ran::Unfinished } else { Ran::NotBegun });
        let Ok(started) = timeout_at(until, client.start_exec(&id, None)).await else { return late(begun) };
        let mut out = Vec::new();
        if let StartExecResults::Attached { mut output, .. } = started.map_err(|e| self.fail(&e))? {
            loop {
                let Ok(piece) = timeout_at(until, output.try_next()).await else { return late(begun) };
                let Some(piece) = piece.map_err(|e| self.fail(&e))? else { break };
                if !begun {
                    (begun, until) = (true, Instant::now() + patience.run);
                }
                let piece = piece.into_bytes();
                let room = EXEC_OUTPUT.saturating_sub(out.len());
                out.extend_from_slice(&piece[..piece.len().min(room)]);
            }
        }
        // The command has ended: what is slow from here on is the engine.
        let code = client.inspect_exec(&id).await.map_err(|e| self.fail(&e))?.exit_code.unwrap_or(-1);
        Ok(Ran::Ended { code, output: String::from_utf8_lossy(&out).into_owned() })
    }
}

impl Source for DockerEngine {
    async fn view(&self) -> Result<EngineView, EngineError> {
        let info = self.check().await?;
        Ok(EngineView::Reachable { version: info.version, api: info.api })
    }

    async fn events(&self, since: Option<Timestamp>) -> Result<BoxStream<'static, EngineEvent>, EngineError> {
        Self::events(self, since).await
    }
}

/// Facts that the firewall needs of a network. Engines name a bridge after the network's id, unless they were told a
/// name.
fn lab_network(found: NetworkInspect) -> Option<LabNetwork> {
    let named = found.options.and_then(|mut options| options.remove("com.docker.network.bridge.name"));
    let bridge = named.or_else(|| Some(format!("br-{}", found.id?.get(..12)?)))?;
    let subnet = found.ipam?.config?.into_iter().find_map(|c| c.subnet)?;
    Some(LabNetwork { subnet, bridge })
}

fn has_subnet(found: &NetworkInspect, want: &NetworkSpec) -> bool {
    let configs = found.ipam.as_ref().and_then(|i| i.config.as_deref()).unwrap_or_default();
    let gateway = want.gateway.to_string();
    configs.iter().any(|c| {
        c.subnet.as_deref() == Some(&want.subnet)
            && c.gateway.as_deref().is_none_or(|g| g.split('/').next() == Some(&gateway))
    })
}

fn nudge(event: EventMessage) -> Option<EngineEvent> {
    let actor = event.actor?;
    let mut attributes = actor.attributes?;
    let service = attributes.remove(LABEL_SERVICE)?;
    let what = match event.action.as_deref() {
        Some("kill") => {
            EngineEventKind::Signal(attributes.get("signal").and_then(|s| s.parse().ok()).unwrap_or_default())
        }
        Some("stop") => EngineEventKind::Stopped,
        Some("oom") => EngineEventKind::OutOfMemory,
        _ => EngineEventKind::Other,
    };
    let ms = event.time_nano.map(|n| n / 1_000_000).or(event.time.map(|s| s * 1000)).unwrap_or_default();
    Some(EngineEvent { service, id: actor.id.unwrap_or_default(), what, at: Timestamp::told(ms) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connecting_needs_no_engine_but_a_path() {
        assert!(DockerEngine::connect("unix:///nowhere/x.sock", "lab").is_ok());
        assert!(DockerEngine::connect("tcp://1.2.3.4:2375", "lab").is_err());
    }

    #[tokio::test]
    async fn a_missing_socket_is_said_so() {
        let engine = DockerEngine::connect("/nowhere/x.sock", "lab").expect("a path");
        let Err(EngineError::Unreachable(line)) = engine.check().await else { panic!("something answered") };
        assert!(line.starts_with("no container engine answers at /nowhere/x.sock; start it"), "{line}");
    }

    #[tokio::test]
    async fn a_socket_nobody_listens_on_is_the_same() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("x.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        let engine = DockerEngine::connect(path.to_str().expect("ASCII"), "lab").expect("a path");
        let Err(EngineError::Unreachable(line)) = engine.observe("s").await else { panic!("something answered") };
        assert!(line.starts_with("no container engine answers at"), "{line}");
    }

    #[test]
    fn a_networks_bridge_is_named_after_it_unless_it_has_a_name() {
        let of = |options: &str| {
            let text = format!(
                r#"{{"Id": "0123456789abcdef0123", "IPAM": {{"Config": [{{"Subnet": "198.18.100.0/24"}}]}}, "Options": {options}}}"#
            );
            lab_network(serde_json::from_str(&text).expect("a network")).map(|n| (n.bridge, n.subnet))
        };
        assert_eq!(of("{}"), Some(("br-0123456789ab".into(), "198.18.100.0/24".into())));
        assert_eq!(of(r#"{"com.docker.network.bridge.name": "lab0"}"#).map(|n| n.0), Some("lab0".into()));
    }

    #[test]
    fn an_event_is_known_by_its_action() {
        let of = |action: &str, attributes: &str| {
            let text = format!(
                r#"{{"Action": "{action}", "Actor": {{"ID": "c1", "Attributes": {{"{LABEL_SERVICE}": "ray-driver"{attributes}}}}},
                   "time": 1795760253, "timeNano": 1795760253528027881}}"#
            );
            nudge(serde_json::from_str(&text).expect("an event"))
        };
        let told = of("oom", "").expect("of a service");
        assert_eq!(
            (told.service.as_str(), told.id.as_str(), told.what),
            ("ray-driver", "c1", EngineEventKind::OutOfMemory)
        );
        assert_eq!(told.at, Timestamp::from_millis(1_795_760_253_528));
        for (action, attributes, what) in [
            ("kill", r#", "signal": "15""#, EngineEventKind::Signal(15)),
            ("stop", "", EngineEventKind::Stopped),
            ("die", "", EngineEventKind::Other),
        ] {
            assert_eq!(of(action, attributes).map(|n| n.what), Some(what), "{action}");
        }
    }

    /// Engine that answers every request with `body`, until the test ends.
    fn fake(body: &'static str) -> (tempfile::TempDir, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("x.sock");
        let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
        tokio::spawn(async move {
            while let Ok((mut peer, _)) = listener.accept().await {
                let mut buffer = [0; 4096];
                let _ = peer.read(&mut buffer).await;
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = peer.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        let path = path.to_str().expect("ASCII").to_owned();
        (dir, path)
    }

    #[tokio::test]
    async fn an_old_engine_is_refused_with_its_version() {
        let (_dir, path) = fake(r#"{"Version":"19.03.15","ApiVersion":"1.40"}"#);
        let line = DockerEngine::connect(&path, "lab").expect("a path").check().await.expect_err("too old").to_string();
        assert!(line.starts_with("the container engine 19.03.15 (API 1.40) is too old"), "{line}");
    }

    #[tokio::test]
    async fn podman_is_refused_by_its_name() {
        let said =
            r#"{"Version":"4.3.1","ApiVersion":"1.41","Components":[{"Name":"Podman Engine","Version":"4.3.1"}]}"#;
        let (_dir, path) = fake(said);
        let line = DockerEngine::connect(&path, "lab").expect("a path").check().await.expect_err("Podman").to_string();
        assert!(line.starts_with("Podman answers at ") && line.contains("; install Docker with"), "{line}");
    }

    #[tokio::test]
    async fn the_engine_says_where_its_data_is() {
        for (said, is) in [
            (r#"{"Version":"28.2.2","ApiVersion":"1.50","DockerRootDir":"/data/docker"}"#, "/data/docker"),
            (r#"{"Version":"28.2.2","ApiVersion":"1.50"}"#, "/var/lib/docker"),
            (r#"{"Version":"28.2.2","ApiVersion":"1.50","DockerRootDir":""}"#, "/var/lib/docker"),
        ] {
            let (_dir, path) = fake(said);
            let engine = DockerEngine::connect(&path, "lab").expect("a path");
            let root = engine.data_root();
            assert_eq!(*root.borrow(), Path::new("/var/lib/docker"), "until it was asked");
            assert_eq!(engine.check().await.expect("answers").root_dir, Path::new(is));
            assert_eq!(*root.borrow(), Path::new(is), "{said}");
        }
    }

    #[tokio::test]
    async fn something_that_is_no_engine_is_not_understood() {
        let (_dir, path) = fake("hello");
        let line =
            DockerEngine::connect(&path, "lab").expect("a path").check().await.expect_err("no engine").to_string();
        assert!(line.contains("not understood"), "{line}");
    }
}

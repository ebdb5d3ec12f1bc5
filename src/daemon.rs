//! The daemon: reads the configuration whole, claims what it needs, then starts the tasks and waits for the end.
//!
//! What is in the way is said before anything else begins: a broken `labd.toml`, another labd. What may pass by itself is no
//! reason to end: an engine that is not there (yet), a taken port, a file system that does not answer. labd says so and goes
//! on when it has passed.

use std::{
    fs::{DirBuilder, File, TryLockError},
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{extract::Request, middleware::map_request};
use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use crate::{
    bug,
    checkpoints::{Checkpoints, Store},
    config::{self, Config, ConfigError, packages},
    control::{Command, Control},
    engine::{
        EngineError,
        docker::DockerEngine,
        images::{self, Images},
        listen,
    },
    files,
    http::{
        self, Credential, LogSource,
        door::{Door, installs},
    },
    incident::Incident,
    jobs,
    journal::{Entry, Journal, Kind},
    node::{
        self, NodeFacts, address,
        gpu::{
            Inventory,
            keeper::{self, Gpus},
            simulate,
        },
        guard, routes,
    },
    pins::{self, Pins},
    plan::{self, Inputs, PlanView},
    ray::{HttpJobs, Ray},
    secrets,
    snapshot::{DaemonView, EngineView, ServiceState, Snapshot},
    supervise::{self, DoorView, Parts, Scrapes, Wish},
    time::{Timestamp, human},
};

/// Between two tries to listen where it was not possible: on the lab's network, which exists once its first container
/// does, and at a taken port.
const LISTEN_RETRY: Duration = Duration::from_secs(2);
/// How long what `labd.toml` names on file systems may take to be read or made.
const WORKSPACE: Duration = Duration::from_secs(20);
/// How long GPUs are looked for before the first plan is made without them: a driver that nobody holds open takes some
/// seconds to wake its GPUs.
const FIRST_LOOK: Duration = Duration::from_secs(15);

/// What `labd run` was told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// The socket the command line speaks to.
    pub socket: PathBuf,
    /// Overrides `gpus.simulate`.
    pub simulate_gpus: Option<u32>,
}

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `labd.toml` is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What `labd.toml` asks for does not fit this machine.
    #[error("{}: {text}", path.display())]
    Plan {
        /// The configuration file.
        path: PathBuf,
        /// What does not fit.
        text: String,
    },
    /// Anything else in the way, in one line.
    #[error("{0}")]
    Other(String),
}

/// What is found out about the machine, once.
#[derive(Debug, Clone)]
pub struct Machine {
    /// CPUs, memory and so on, as the lab is planned for: those of the first start, until `labd.toml` is read again.
    pub facts: Arc<Mutex<NodeFacts>>,
    /// `--simulate-gpus`.
    pub simulate: Option<u32>,
    /// The lab's /24.
    pub subnet: [u8; 3],
    /// The GPUs, where none are simulated.
    pub gpus: watch::Receiver<Arc<Inventory>>,
}

impl Machine {
    /// A machine on which no GPU is looked for.
    pub fn without_gpus(facts: NodeFacts, simulate: Option<u32>, subnet: [u8; 3]) -> Self {
        Self { facts: Arc::new(Mutex::new(facts)), simulate, subnet, gpus: watch::channel(Arc::default()).1 }
    }

    fn planned(&self) -> MutexGuard<'_, NodeFacts> {
        // A value that is only ever replaced whole.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From a configuration to everything that follows. Reads the credentials; with `pretend`, writes nothing.
pub fn wish(config: Config, path: &Path, machine: &Machine, pretend: bool) -> Result<Wish, StartError> {
    let secrets = if pretend { secrets::load_or_pretend(&config) } else { secrets::load_or_make(&config) };
    let secrets = secrets.map_err(StartError::Other)?;
    let misfit = |text| StartError::Plan { path: path.to_owned(), text };
    let ca = images::read_ca(config.images.build.ca_bundle.as_deref()).map_err(misfit)?;
    let requirements = packages::read(config.images.build.requirements.as_deref()).map_err(misfit)?;
    let gpus = match machine.simulate.or(config.gpus.simulate) {
        Some(count) => simulate::gpus(count, &machine.planned().numa),
        None => machine.gpus.borrow().gpus(),
    };
    let inputs =
        Inputs { node: machine.planned().clone(), gpus, secrets, subnet: machine.subnet, ca, requirements, config };
    let (plan, sizes) = plan::make(&inputs).map_err(misfit)?;
    let Inputs { config, node, gpus, secrets, .. } = inputs;
    let view = PlanView { node, gpus, sizes, plan };
    let json = view.to_json();
    let credentials = credentials(&config, &secrets);
    let store = config.s3.as_ref().map(|s3| Store {
        endpoint: s3.endpoint.clone(),
        bucket: s3.bucket.clone(),
        region: s3.region.clone(),
        access_key: secrets.s3_access_key.clone(),
        secret_key: secrets.s3_secret_key.clone(),
    });
    let PlanView { gpus, plan, .. } = view;
    Ok(Wish {
        settings: config.images.build.settings(),
        config,
        plan,
        gpus,
        ray_token: secrets.ray_token,
        store,
        view: json,
        credentials,
    })
}

/// What the keeper of the GPUs hears of the rest.
struct Heard {
    engine_view: watch::Receiver<EngineView>,
    incidents: watch::Receiver<Arc<Vec<Incident>>>,
    loads: watch::Receiver<Arc<simulate::Loads>>,
}

/// Starts the keeper of the GPUs.
fn keep_gpus(
    facts: &NodeFacts,
    config: &watch::Receiver<Arc<Config>>,
    simulate: Option<u32>,
    engine: &DockerEngine,
    journal: Option<Journal>,
    heard: Heard,
) -> Gpus {
    let Heard { engine_view, incidents, loads } = heard;
    let engine = engine.clone();
    keeper::spawn(keeper::Parts {
        journal,
        dir: config.borrow().lab.data_dir.join("probes"),
        config: config.clone(),
        simulate,
        loads,
        numa: facts.numa.clone(),
        engine: Box::new(move || {
            let engine = engine.clone();
            async move { engine.devices(Path::new("/")).await.ok() }.boxed()
        }),
        engine_view,
        incidents,
        root: node::root(),
    })
}

/// Follows what the workers of simulated GPUs do, those that run.
async fn follow_loads(
    engine: DockerEngine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    tell: watch::Sender<Arc<simulate::Loads>>,
) {
    use ServiceState as S;
    let running = move || {
        let snapshot = snapshots.borrow();
        let simulated = snapshot.gpus.iter().filter(|g| g.simulated).filter_map(|g| g.worker.clone());
        let runs = |name: &String| {
            let state = snapshot.services.iter().find(|s| s.name == *name).map(|s| s.state);
            matches!(state, Some(S::Starting | S::Ready | S::Unhealthy | S::Stopping))
        };
        simulated.filter(runs).collect()
    };
    let ask = move |name: String| {
        let engine = engine.clone();
        async move { engine.counters(&name).await.ok() }
    };
    simulate::follow(running, ask, tell).await;
}

/// The GPUs as they are now, for who does not stay: found within some seconds, or not.
pub async fn look_at_gpus(
    facts: &NodeFacts,
    config: &Config,
    simulate: Option<u32>,
    engine: &DockerEngine,
) -> watch::Receiver<Arc<Inventory>> {
    let configs = watch::channel(Arc::new(config.clone())).1;
    let answers = match engine.check().await {
        Ok(info) => EngineView::Reachable { version: info.version, api: info.api },
        Err(_) => EngineView::Connecting,
    };
    let heard = Heard {
        engine_view: watch::channel(answers).1,
        incidents: watch::channel(Arc::default()).1,
        loads: watch::channel(Arc::default()).1,
    };
    let gpus = keep_gpus(facts, &configs, simulate, engine, None, heard);
    gpus.settled(FIRST_LOOK).await;
    gpus.watch()
}

fn credentials(config: &Config, secrets: &plan::Secrets) -> Vec<Credential> {
    let host = if config.network.publish.is_unspecified() {
        "localhost".to_owned()
    } else {
        config.network.publish.to_string()
    };
    let url = |port: u16| format!("http://{host}:{port}/");
    let one = |name: &str, user: Option<&str>, secret: &crate::secret::Secret, url: String| Credential {
        name: name.to_owned(),
        user: user.map(str::to_owned),
        secret: secret.clone(),
        url,
    };
    let mut all = vec![one("ray", None, &secrets.ray_token, url(config.ports.dashboard))];
    if config.services.minio.on() {
        all.push(one(
            "minio",
            Some(secrets.s3_access_key.expose()),
            &secrets.s3_secret_key,
            url(config.ports.s3_console),
        ));
    }
    all.push(one("jupyter", None, &secrets.jupyter_token, url(config.ports.jupyter)));
    all.push(one("grafana", Some("admin"), &secrets.grafana_password, url(config.ports.grafana)));
    all
}

/// The lab's /24: what `labd.toml` says, else what the lab's network already has, else the one it had, else a free one.
pub async fn subnet(config: &Config, engine: &DockerEngine, pins: &Pins) -> Result<[u8; 3], String> {
    if let Some(text) = &config.network.subnet {
        return config::parse_subnet(text);
    }
    let own = engine.own_subnet().await.map(|own| own.and_then(|text| config::parse_subnet(&text).ok()));
    let mut taken = routes::host();
    // One that does not answer is not waited for twice.
    let networks = if own.is_ok() { engine.networks().await.unwrap_or_default() } else { Vec::new() };
    for (_, subnet) in networks {
        taken.extend(routes::parse_cidr(&subnet));
    }
    choose_subnet(own.map_err(drop), pins.subnet, &taken).ok_or_else(|| routes::ALL_TAKEN.to_owned())
}

/// The lab's /24 where `labd.toml` names none. `own` is that of the lab's network as the engine says it, `kept` the one it had.
///
/// While the engine is away its bridges are still there, the lab's own among them: only the engine could say which is whose,
/// so the lab's last subnet is taken for its own. Another one would make every container outdated once the engine is back.
fn choose_subnet(own: Result<Option<[u8; 3]>, ()>, kept: Option<[u8; 3]>, taken: &[(u32, u32)]) -> Option<[u8; 3]> {
    match (own, kept) {
        (Ok(Some(own)), _) => Some(own),
        (Err(()), Some(kept)) => Some(kept),
        (Ok(None), Some(kept)) if !routes::overlaps(kept, taken) => Some(kept),
        _ => routes::free_subnet(taken),
    }
}

/// Runs until SIGTERM, SIGINT or `labd down`. SIGHUP reads `labd.toml` again. Containers outlive the daemon.
pub async fn run(options: Options) -> Result<(), StartError> {
    let other = |e: &dyn std::fmt::Display| StartError::Other(e.to_string());
    bug::end_with_the_first();
    let started_at = Timestamp::now();
    http::raise_open_files();
    let (config, found) = Config::load(&options.config)?;
    let socket = http::bind_unix(&options.socket).await.map_err(|e| other(&e))?;
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let root_user = rustix::process::geteuid().is_root();
    make_data_dir(&config)?;
    let _sole = claim(&config.lab.name, &locks(root_user, runtime.as_deref(), &config.lab.data_dir))?;
    let engine = DockerEngine::connect(&config.engine.socket, &config.lab.name).map_err(|e| other(&e))?;
    let lab = config.lab.name.clone();
    let facts = node::facts();
    let data_dir = config.lab.data_dir.clone();
    let mut pins = pins::load(&data_dir);
    let (subnet, address) =
        tokio::join!(subnet(&config, &engine, &pins), address::find(config.node.address.as_deref()));
    let journal = Journal::open(&data_dir.join("journal.db"), config.journal.retention()).map_err(|e| other(&e))?;
    let heard = journal.memory(supervise::EVENTS_HEARD).and_then(|ms| ms.parse().ok()).map(Timestamp::from_millis);
    let (engine_view, nudges) = listen::spawn(engine.clone(), heard);
    let (tell_config, configs) = watch::channel(Arc::new(config.clone()));
    let (incidents, all_incidents) = watch::channel(Arc::new(Vec::new()));
    let (looked_at, looks) = watch::channel(None);
    let (tell_loads, loads) = watch::channel(Arc::default());
    let gpus = keep_gpus(
        &facts,
        &configs,
        options.simulate_gpus,
        &engine,
        Some(journal.clone()),
        Heard { engine_view: engine_view.clone(), incidents: all_incidents.clone(), loads },
    );
    if gpus.watch().borrow().units.is_empty() {
        // The first start: found now, the workers are part of what `labd up` waits for.
        gpus.found(FIRST_LOOK).await;
    }
    let subnet = subnet.map_err(|e| other(&e))?;
    pins.subnet = Some(subnet);
    let planned = pins.machine.get_or_insert_with(|| facts.clone()).clone();
    pins::save(&data_dir, &pins);
    if let Some(line) = pins::drift(&planned, &facts) {
        note(&journal, "machine", &format!("the machine is another than the lab was planned for: {line}"));
    }
    let planned = Arc::new(Mutex::new(planned));
    let machine = Machine { facts: planned, simulate: options.simulate_gpus, subnet, gpus: gpus.watch() };
    let wish = wish(config, &options.config, &machine, false)?;
    if let Err(Late(line)) = in_time(WORKSPACE, "lab.workspace", workspace_maker(&wish.config)).await? {
        // JupyterLab alone needs it, and says so.
        tracing::error!("{line}");
        note(&journal, "workspace", &line);
    }
    make_door(&wish.config)?;
    let host_names = wish.config.lab.host_names.clone();
    let ledger = jobs::open(&data_dir).map_err(|e| other(&e))?;

    let (control, requests) = Control::channel();
    let (stop, stopped) = watch::channel(false);
    let images = Images::spawn(engine.clone(), wish.plan.images.clone(), wish.settings.clone());
    let places = vec![PathBuf::from("/"), data_dir];
    let node = node::watch_node(facts.clone(), address.clone(), places, engine.data_root());
    let daemon = DaemonView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        lab: wish.config.lab.name.clone(),
        pid: std::process::id(),
        started_at,
        config: found.map(|p| p.display().to_string()),
    };
    let (snapshot, snapshots) = watch::channel(Arc::new(empty(&daemon, &node)));
    tokio::spawn(follow_loads(engine.clone(), snapshots.clone(), tell_loads));
    let (plan, plans) = watch::channel(Arc::new(wish.view.clone()));
    let (credentials, all_credentials) = watch::channel(Arc::new(wish.credentials.clone()));
    let ray = Ray::spawn();
    let packages = ledger.packages.clone();
    let endpoint = ray.endpoint();
    let keeper = jobs::Parts {
        api: Box::new(move || endpoint.borrow().clone().map(HttpJobs::new)),
        ray: ray.watch(),
        follow: ray.follow(),
        incidents: all_incidents,
        looked_at: looks,
        snapshot: snapshots.clone(),
        config: configs.clone(),
        journal: journal.clone(),
    };
    let ledger = jobs::spawn(ledger, keeper);
    let host_names = [address, facts.hostname.clone()].into_iter().chain(host_names).collect();
    let state = http::State {
        snapshot: snapshots,
        journal: journal.clone(),
        control: control.clone(),
        logs: Arc::new(EngineLogs(engine.clone())),
        plan: plans,
        credentials: all_credentials,
        jobs: ledger.clone(),
        gpus: gpus.clone(),
        host_names,
        shutdown: stopped.clone(),
    };

    let (tell_scrapes, scrapes) = watch::channel(Scrapes::default());
    let mut servers = JoinSet::new();
    servers.spawn(http::serve_unix(socket, http::admin_router(state.clone()), stopped.clone()));
    let page_address = wish.config.lab.page;
    if !page_address.ip().is_unspecified() {
        let scrape = SocketAddr::from((wish.plan.network.gateway, page_address.port()));
        tell_scrapes.send_replace(Scrapes { address: Some(scrape), last: None });
        // Prometheus, and whoever is on this machine. The address is on a bridge, and hosts with a route to it would be heard.
        let prometheus = wish.plan.service("prometheus").map(|s| IpAddr::V4(s.container.address));
        let known = [Some(scrape.ip()), prometheus];
        let served =
            serve_scrapes(scrape, known.into_iter().flatten().collect(), state.clone(), tell_scrapes, stopped.clone());
        tokio::spawn(served);
    }
    let (tell_page, page_trouble) = watch::channel(None);
    servers.spawn(serve_page(page_address, http::public_router(state), tell_page, stopped.clone()));

    note(&journal, "started", &format!("labd {} (pid {})", daemon.version, daemon.pid));
    let replan = replan(options.config.clone(), machine.clone());
    let reread = reread(options.config, wish.config.clone(), machine);
    let door = Door::new(ledger.clone(), packages, ray.endpoint(), ray.watch(), wish.ray_token.clone());
    let (door_view, door_views) = watch::channel(DoorView::default());
    let (installs, all_installs) = installs::spawn(journal.clone());
    let front_door = http::door::router(door.clone()).merge(installs::router(door, installs));
    tokio::spawn(serve_door(configs, front_door.clone(), door_view, stopped.clone()));
    tokio::spawn(serve_relay(wish.config.door_dir().join(plan::door::SOCKET), front_door, stopped.clone()));
    if root_user {
        tokio::spawn(guard::keep(engine.clone()));
    }
    let checkpoints = Checkpoints::spawn(ray.watch());
    let supervision = tokio::spawn(supervise::run(Parts {
        engine: Arc::new(engine),
        ask: Arc::new(supervise::Http::new()),
        images,
        ray,
        checkpoints,
        journal: journal.clone(),
        wish,
        reread,
        daemon,
        requests,
        nudges,
        engine_view,
        node,
        gpus: gpus.watch(),
        replan,
        jobs: ledger.watch(),
        installs: all_installs,
        door: door_views,
        page: page_trouble,
        scrapes,
        config: tell_config,
        snapshot,
        incidents,
        looked_at,
        seed: rand::random(),
        plan,
        credentials,
        stop: stopped,
    }));
    tracing::info!(page = %format_args!("http://{page_address}/"), socket = %options.socket.display(), "labd is up");
    // Told to nobody when systemd did not start us.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let down = until_end(&control, &stop, supervision).await?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    if down && root_user {
        guard::take_down(&lab).await;
    }
    note(&journal, "stopped", if down { "the lab is down" } else { "containers go on running" });
    stop.send_replace(true);
    while servers.join_next().await.is_some() {}
    // A hanging disk must not keep the daemon.
    let _ = tokio::time::timeout(Duration::from_secs(2), journal.flush()).await;
    Ok(())
}

/// Where each daemon locks the file of its lab. A folder that only the daemon's user can write to: names that are anybody's
/// to take (abstract sockets, files in /tmp) let any local user keep labd from starting.
pub(crate) fn locks(root_user: bool, runtime: Option<&Path>, data_dir: &Path) -> PathBuf {
    match runtime {
        _ if root_user => PathBuf::from("/run/labd/labs"),
        Some(dir) => dir.join("labd/labs"),
        None => data_dir.to_owned(),
    }
}

/// One daemon per lab, whatever socket it listens on: two would undo each other's work. The lock goes with the process.
fn claim(lab: &str, dir: &Path) -> Result<File, StartError> {
    let path = dir.join(format!("{lab}.lock"));
    let broken = |e: std::io::Error| {
        StartError::Other(format!("cannot lock {}: {e}; run labd as root, or set XDG_RUNTIME_DIR", path.display()))
    };
    DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(broken)?;
    let file = files::open_private(&path).map_err(broken)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::Other(format!(
            "another labd runs the lab `{lab}`; stop that one, or set another `lab.name` in labd.toml"
        ))),
        Err(TryLockError::Error(e)) => Err(broken(e)),
    }
}

/// Waits for a signal or for the lab to be down; returns whether it is.
async fn until_end(
    control: &Control,
    stop: &watch::Sender<bool>,
    mut supervision: tokio::task::JoinHandle<bool>,
) -> Result<bool, StartError> {
    let catch = |kind| signal(kind).map_err(|e| StartError::Other(format!("cannot listen for signals: {e}")));
    let (mut term, mut int, mut hup) =
        (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?, catch(SignalKind::hangup())?);
    loop {
        tokio::select! {
            ended = &mut supervision => {
                return ended.map_err(|e| StartError::Other(format!("supervision ended by a bug, please report it: {e}")));
            }
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => match control.ask(Command::Reload).await {
                Ok(line) => tracing::info!("{line}"),
                Err(refusal) => tracing::error!("{refusal}"),
            },
        }
    }
    stop.send_replace(true);
    Ok(supervision.await.unwrap_or(false))
}

fn note(journal: &Journal, what: &str, reason: &str) {
    journal.record(Entry {
        at: Timestamp::now(),
        service: None,
        kind: Kind::Daemon,
        what: what.to_owned(),
        reason: reason.to_owned(),
    });
}

/// Before anything is in it: what labd keeps holds people's tokens.
fn make_data_dir(config: &Config) -> Result<(), StartError> {
    let dir = &config.lab.data_dir;
    match files::private_folder(dir) {
        Ok(true) => Ok(()),
        Ok(false) => {
            tracing::warn!(
                "{} holds files that are not labd's, so others can enter it; give labd a folder of its own (`lab.data_dir`)",
                dir.display()
            );
            Ok(())
        }
        Err(e) => Err(StartError::Other(format!(
            "cannot make {}: {e}; run labd as root, or set `lab.data_dir` in labd.toml",
            dir.display()
        ))),
    }
}

fn workspace_maker(config: &Config) -> impl FnOnce() -> Result<(), StartError> + Send + 'static {
    let dir = config.workspace();
    move || {
        let cannot = |e| format!("cannot make {}: {e}; set `lab.workspace` in labd.toml", dir.display());
        std::fs::create_dir_all(&dir).map_err(|e| StartError::Other(cannot(e)))
    }
}

/// Something that did not come to an end in time, in one line.
struct Late(String);

/// Does what reads or writes files, in a thread of its own: on a network file system that is dead it may never end, and
/// neither the loop nor the daemon's end may wait for it. `what` is the setting that names the files.
async fn in_time<T: Send + 'static, E: Send + 'static>(
    limit: Duration,
    what: &str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<Result<T, Late>, E> {
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done.map(Ok),
        Ok(Err(_)) => Ok(Err(Late(format!("what `{what}` names could not be looked at")))),
        Err(_) => Ok(Err(Late(format!(
            "what `{what}` names does not answer within {}: is it on a network file system whose server is away?",
            human(limit)
        )))),
    }
}

/// The folder that the relay sees: it must be there before the relay's container is made.
fn make_door(config: &Config) -> Result<(), StartError> {
    let dir = config.door_dir();
    // Closed by itself, too: the data directory is not where others have files in it.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|e| StartError::Other(format!("cannot make {}: {e}; set `lab.data_dir` in labd.toml", dir.display())))
}

/// What a running daemon cannot change, compared with what it was started with.
fn reread(path: PathBuf, first: Config, machine: Machine) -> supervise::Reread {
    let read = move || {
        let (config, _) = Config::load(&path).map_err(|e| e.to_string())?;
        for (key, same) in [
            ("lab.name", config.lab.name == first.lab.name),
            ("lab.data_dir", config.lab.data_dir == first.lab.data_dir),
            ("lab.host_names", config.lab.host_names == first.lab.host_names),
            ("lab.page", config.lab.page == first.lab.page),
            ("engine.socket", config.engine.socket == first.engine.socket),
            ("network.subnet", config.network.subnet == first.network.subnet),
            ("node.address", config.node.address == first.node.address),
        ] {
            if !same {
                return Err(format!(
                    "{}: `{key}` cannot change while labd runs; use `labd down`, change it, then `labd up`",
                    path.display()
                ));
            }
        }
        // The machine as it is now is what a person who asks for this wants to be planned for.
        let facts = node::facts();
        let now = Machine { facts: Arc::new(Mutex::new(facts.clone())), ..machine.clone() };
        let wish = wish(config, &path, &now, false).map_err(|e| e.to_string())?;
        workspace_maker(&wish.config)().map_err(|e| e.to_string())?;
        *machine.planned() = facts.clone();
        let dir = &wish.config.lab.data_dir;
        pins::save(dir, &Pins { machine: Some(facts), ..pins::load(dir) });
        Ok(wish)
    };
    let read = Arc::new(read);
    Box::new(move || {
        let read = read.clone();
        async move { in_time(WORKSPACE, "labd.toml", move || read()).await?.map_err(|Late(line)| line) }.boxed()
    })
}

/// Plans again with the GPUs as they are.
fn replan(path: PathBuf, machine: Machine) -> supervise::Replan {
    Box::new(move |config| {
        let (path, machine) = (path.clone(), machine.clone());
        let plan = move || wish(config, &path, &machine, false).map_err(|e| e.to_string());
        async move { in_time(WORKSPACE, "labd.toml", plan).await?.map_err(|Late(line)| line) }.boxed()
    })
}

/// Until the loop has looked at anything.
fn empty(daemon: &DaemonView, node: &watch::Receiver<crate::snapshot::NodeView>) -> Snapshot {
    Snapshot {
        schema: crate::snapshot::SCHEMA,
        taken_at: Timestamp::now(),
        labd: daemon.clone(),
        node: node.borrow().clone(),
        engine: EngineView::Connecting,
        services: Vec::new(),
        gpus: Vec::new(),
        gpu_sources: Vec::new(),
        jobs: Vec::new(),
        runs: Vec::new(),
        resubmissions: 0,
        installs: Vec::new(),
        package_store_bytes: None,
        demands: Vec::new(),
        incidents: Vec::new(),
        links: Vec::new(),
        notices: Vec::new(),
    }
}

/// Waits until a listener should be tried again; whether the daemon ends before that.
async fn ends_before_retry(stopped: &watch::Receiver<bool>) -> bool {
    let mut stop = stopped.clone();
    tokio::time::timeout(LISTEN_RETRY, stop.wait_for(|stop| *stop)).await.is_ok()
}

/// Listens where Prometheus reaches labd: on the host's address in the lab's network. Only `known` peers are heard.
async fn serve_scrapes(
    addr: SocketAddr,
    known: Vec<IpAddr>,
    state: http::State,
    tell: watch::Sender<Scrapes>,
    stopped: watch::Receiver<bool>,
) {
    let asked = move |request: Request| {
        tell.send_modify(|scrapes| scrapes.last = Some(Timestamp::now()));
        std::future::ready(request)
    };
    let router = http::scrape_router(state).layer(map_request(asked));
    loop {
        // Not there before the network is, and gone with it: both are ordinary.
        if let Ok(listener) = http::bind_tcp(addr, "lab.page").await {
            http::serve_tcp_to(known.clone(), listener, router.clone(), stopped.clone()).await;
        }
        if ends_before_retry(&stopped).await {
            return;
        }
    }
}

/// The status page. A taken port is said and tried again: everything else of the lab works without it.
async fn serve_page(
    addr: SocketAddr,
    router: axum::Router,
    trouble: watch::Sender<Option<String>>,
    stopped: watch::Receiver<bool>,
) {
    loop {
        match http::bind_tcp(addr, "lab.page").await {
            Ok(listener) => {
                trouble.send_replace(None);
                http::serve_tcp(listener, router.clone(), stopped.clone()).await;
            }
            Err(error) => {
                if trouble.send_replace(Some(error.to_string())).is_none() {
                    tracing::error!("{error}");
                }
            }
        }
        if ends_before_retry(&stopped).await {
            return;
        }
    }
}

/// The front door on the host, where the dashboard's port is published; moves when a reload says so. A taken port is said
/// and tried again: everything else of the lab works without it.
async fn serve_door(
    mut configs: watch::Receiver<Arc<Config>>,
    router: axum::Router,
    view: watch::Sender<DoorView>,
    stopped: watch::Receiver<bool>,
) {
    loop {
        let wanted = door_address(&configs.borrow_and_update());
        match http::bind_tcp(wanted, "ports.dashboard").await {
            Ok(listener) => {
                view.send_replace(DoorView { port: listener.local_addr().ok().map(|a| a.port()), trouble: None });
                tokio::select! {
                    () = http::serve_tcp(listener, router.clone(), stopped.clone()) => {}
                    () = moved(&mut configs, wanted) => continue,
                }
            }
            Err(e) => {
                view.send_replace(DoorView { port: None, trouble: Some(e.to_string()) });
            }
        }
        if ends_before_retry(&stopped).await {
            return;
        }
    }
}

fn door_address(config: &Config) -> SocketAddr {
    SocketAddr::new(config.network.publish, config.ports.dashboard)
}

/// Resolves once the front door is wanted elsewhere.
async fn moved(configs: &mut watch::Receiver<Arc<Config>>, from: SocketAddr) {
    // Without a sender nothing moves any more; the daemon ends then.
    if configs.wait_for(|config| door_address(config) != from).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The front door for the relay in the lab's network.
async fn serve_relay(path: PathBuf, router: axum::Router, stopped: watch::Receiver<bool>) {
    loop {
        match http::bind_unix(&path).await {
            Ok(socket) => http::serve_unix(socket, router.clone(), stopped.clone()).await,
            Err(error) => tracing::warn!(%error, "containers cannot reach the front door"),
        }
        if ends_before_retry(&stopped).await {
            return;
        }
    }
}

struct EngineLogs(DockerEngine);

impl LogSource for EngineLogs {
    fn logs(&self, service: &str, tail: usize, follow: bool) -> BoxStream<'static, Result<Bytes, String>> {
        let service = service.to_owned();
        let logs = self.0.logs(&service, Some(tail), follow).map(move |piece| {
            piece.map_err(|e| match e {
                EngineError::NotFound(_) => format!("{service} has no container now"),
                e => e.to_string(),
            })
        });
        stream::iter([]).chain(logs).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_that_do_not_answer_block_nothing_and_are_said() {
        let (_never, wait) = std::sync::mpsc::channel::<()>();
        let hangs = move || wait.recv().map_err(|e| e.to_string());
        let late = in_time(Duration::from_millis(50), "lab.workspace", hangs).await.expect("no failure of its own");
        let Err(Late(line)) = late else { panic!("it hangs") };
        assert!(line.starts_with("what `lab.workspace` names does not answer within 50 ms"), "{line}");
        let fails = in_time(Duration::from_secs(5), "x", || Err::<(), _>("no")).await;
        assert!(matches!(fails, Err("no")));
        assert!(matches!(in_time(Duration::from_secs(5), "x", || Ok::<_, ()>(7)).await, Ok(Ok(7))));
    }

    #[tokio::test]
    async fn a_taken_page_port_is_said_and_taken_once_it_is_free() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = taken.local_addr().expect("bound");
        let (tell, mut trouble) = watch::channel(None);
        let (_stop, stopped) = watch::channel(false);
        tokio::spawn(serve_page(addr, axum::Router::new(), tell, stopped));
        let said = trouble.wait_for(Option::is_some).await.expect("it goes on").clone().expect("said");
        assert!(said.contains("is taken by another program; set `lab.page` in labd.toml"), "{said}");
        drop(taken);
        tokio::time::timeout(LISTEN_RETRY * 2, trouble.wait_for(Option::is_none))
            .await
            .expect("in time")
            .expect("served");
        assert!(tokio::net::TcpStream::connect(addr).await.is_ok());
    }

    #[test]
    fn an_engine_that_is_away_does_not_move_the_lab_to_another_subnet() {
        let (first, second, third) = ([198, 18, 100], [198, 18, 101], [198, 18, 102]);
        let bridge = |n: u8| routes::parse_cidr(&format!("198.18.{n}.0/24")).expect("a subnet");
        // Its own bridge, and somebody else's.
        let taken = [bridge(101), bridge(100)];
        assert_eq!(choose_subnet(Err(()), Some(second), &taken), Some(second));
        assert_eq!(choose_subnet(Ok(Some(second)), Some(first), &taken), Some(second), "the engine knows best");
        assert_eq!(choose_subnet(Ok(None), Some(second), &[bridge(100)]), Some(second), "after `labd down`");
        assert_eq!(choose_subnet(Ok(None), Some(second), &taken), Some(third), "it has become somebody else's");
        assert_eq!(choose_subnet(Err(()), None, &taken), Some(third));
        assert_eq!(choose_subnet(Ok(None), None, &[]), Some(first));
    }
}

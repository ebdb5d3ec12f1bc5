//! The daemon: reads the configuration whole, claims what it needs, then starts the tasks and waits for the end.
//!
//! What is in the way is said before anything else begins: a broken `labd.toml`, another labd. What may pass by itself is no
//! reason to end: an engine that is not there (yet), a taken port, a file system that does not answer. labd says so and goes
//! on when it has passed.

mod listeners;
mod machine;
mod reload;
mod shutdown;

use std::{
    fs::{DirBuilder, File, TryLockError},
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use listeners::{EngineSource, serve_door, serve_page, serve_relay, serve_scrapes, serve_second};
use machine::{FIRST_LOOK, Heard, follow_loads, keep_gpus};
pub use machine::{Machine, look_at_gpus, subnet};
use reload::{Late, WORKSPACE, in_time, workspace_maker};
use shutdown::until_end;
use tokio::{sync::watch, task::JoinSet};

use crate::{
    accounts::{self, Accounts},
    bug,
    checkpoints::Checkpoints,
    config::{Config, ConfigError},
    control::Control,
    door::{Door, Upstreams},
    engine::{docker::DockerEngine, events, guard, images::Images},
    files,
    front_door::{self, FrontDoor, installs, reports},
    history::{self, History},
    http::{self, Secured},
    jobs,
    journal::{Entry, Journal, Kind},
    node::{self, address},
    notify, pins,
    ray::{HttpJobs, Ray},
    services,
    snapshot::{DaemonView, Snapshot},
    supervise::{self, DoorView, Parts, Scrapes},
    time::Timestamp,
    tls,
    training::{self, Training},
};

/// Options of `labd run`.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// The socket the command line speaks to.
    pub socket: PathBuf,
    /// Number of simulated GPUs that overrides `gpus.simulate`.
    pub simulate_gpus: Option<u32>,
}

/// Reason why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Error in `labd.toml`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Configuration that does not fit this machine.
    #[error("{}: {text}", path.display())]
    Plan {
        /// The configuration file.
        path: PathBuf,
        /// Text that says what does not fit.
        text: String,
    },
    /// Anything else in the way, in one line.
    #[error("{0}")]
    Other(String),
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
    let (engine_view, nudges) = events::spawn(engine.clone(), heard);
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
        note(&journal, "machine", &format!("the machine differs from the one that the lab was planned for: {line}"));
    }
    let planned = Arc::new(Mutex::new(planned));
    let machine = Machine { facts: planned, simulate: options.simulate_gpus, subnet, gpus: gpus.watch() };
    let desired = machine.resolve(config, &options.config, false)?;
    if let Err(Late(line)) = in_time(WORKSPACE, "lab.workspace", workspace_maker(&desired.config)).await? {
        // JupyterLab alone needs it, and says so.
        complain(&journal, "workspace", &line);
    }
    make_door(&desired.config)?;
    let accounts::Opened { accounts, note: trouble } = Accounts::open(&data_dir).map_err(|e| other(&e))?;
    if let Some(line) = trouble {
        complain(&journal, "accounts", &line);
    }
    let (gpu_history, trouble) = History::open(&data_dir);
    if let Some(line) = trouble {
        complain(&journal, "history", &line);
    }
    let training::Opened { training, note: trouble } = Training::open(&data_dir);
    if let Some(line) = trouble {
        complain(&journal, "training-curves", &line);
    }
    let host_names = desired.config.lab.host_names.clone();
    let ledger = jobs::open(&data_dir).map_err(|e| other(&e))?;

    let (control, requests) = Control::channel();
    let (stop, stopped) = watch::channel(false);
    let images = Images::spawn(engine.clone(), desired.plan.images.clone(), desired.config.images.build.clone());
    let places = vec![PathBuf::from("/"), data_dir];
    let node = node::watch_node(facts.clone(), address.clone(), places, engine.data_root());
    let daemon = DaemonView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        lab: desired.config.lab.name.clone(),
        pid: std::process::id(),
        started_at,
        config: found.map(|p| p.display().to_string()),
    };
    let (snapshot, snapshots) =
        watch::channel(Arc::new(Snapshot::unobserved(daemon.clone(), node.borrow().clone(), Timestamp::now())));
    tokio::spawn(follow_loads(engine.clone(), snapshots.clone(), tell_loads));
    let recording = tokio::spawn(history::follow(gpu_history.clone(), snapshots.clone(), stopped.clone()));
    let (plan, plans) = watch::channel(desired.view.clone());
    let (credentials, all_credentials) = watch::channel(Arc::new(desired.credentials.clone()));
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
    let notifier =
        notify::spawn(notify::Parts { snapshot: snapshots.clone(), config: configs.clone(), journal: journal.clone() });
    let (tell_second, second_view) = watch::channel(DoorView::default());
    let (tell_upstreams, upstreams) = watch::channel(Arc::new(Upstreams::default()));
    let host_names: Arc<[String]> = [address, facts.hostname.clone()].into_iter().chain(host_names).collect();
    for line in tls::open_without(&desired.config) {
        tracing::warn!("{line}");
    }
    let served = tls::spawn(tls::Parts {
        config: configs.clone(),
        path: options.config.clone(),
        hosts: host_names.to_vec(),
        journal: journal.clone(),
        stopped: stopped.clone(),
    })
    .await;
    let source = Arc::new(EngineSource(engine.clone()));
    let state = http::State {
        snapshot: snapshots,
        feed: http::Feed::default(),
        journal: journal.clone(),
        control: control.clone(),
        logs: source.clone(),
        files: source,
        plan: plans,
        credentials: all_credentials,
        jobs: ledger.clone(),
        training: training.clone(),
        head: ray.endpoint(),
        gpus: gpus.clone(),
        history: gpu_history,
        notify: notifier.clone(),
        accounts: accounts.clone(),
        cookie: format!("labd-{}", desired.config.lab.name).into(),
        second: http::Second {
            // Names of labs have no underscore: this is never the cookie of another one's page.
            cookie: format!("labd_jupyter-{}", desired.config.lab.name).into(),
            listener: second_view.clone(),
        },
        tls: served.clone(),
        door: Door::new(upstreams, desired.sign_ins.clone()),
        doctor: http::Doctor::new(&options.config, &options.socket),
        config: configs.clone(),
        turns: http::Turns::default(),
        host_names,
        shutdown: stopped.clone(),
    };

    let (tell_scrapes, scrapes) = watch::channel(Scrapes::default());
    let mut servers = JoinSet::new();
    servers.spawn(http::serve_unix(socket, http::admin_router(state.clone()), stopped.clone()));
    let page_address = desired.config.lab.page;
    let scrape = SocketAddr::from((desired.plan.network.gateway, page_address.port()));
    tell_scrapes.send_replace(Scrapes { address: Some(scrape), last: None });
    let prometheus = desired.plan.service(services::prometheus::DEF.name()).map(|s| IpAddr::V4(s.container.address));
    let mut by_page = None;
    if page_address.ip().is_unspecified() {
        // The page's own listener has the address as well.
        let router = listeners::scrapes(state.clone(), tell_scrapes);
        by_page = prometheus.map(|peer| http::Scraped { address: scrape.ip(), peer, router });
    } else {
        // Prometheus, and whoever is on this machine. The address is on a bridge, and hosts with a route to it would be heard.
        let known = [Some(scrape.ip()), prometheus];
        let served =
            serve_scrapes(scrape, known.into_iter().flatten().collect(), state.clone(), tell_scrapes, stopped.clone());
        tokio::spawn(served);
    }
    let (tell_page, page_trouble) = watch::channel(None);
    let to_https = http::to_https_router(Arc::clone(&state.host_names));
    let second = Secured::new(served.clone(), http::second_router(state.clone()), to_https.clone(), None);
    servers.spawn(serve_second(configs.clone(), second, tell_second, stopped.clone()));
    let page_link = services::page_url(&desired.config, &node.borrow().address, served.borrow().view.as_ref());
    let page = Secured::new(served.clone(), http::public_router(state), to_https, by_page);
    servers.spawn(serve_page(page_address, page, tell_page, stopped.clone()));

    note(&journal, "started", &format!("labd {} (pid {})", daemon.version, daemon.pid));
    let replan = reload::replan(options.config.clone(), machine.clone());
    let reload = reload::reload(options.config, desired.config.clone(), machine);
    let door = FrontDoor::new(ledger.clone(), packages, ray.endpoint(), ray.watch(), desired.ray_token.clone());
    let (door_view, door_views) = watch::channel(DoorView::default());
    let (installs, all_installs) = installs::spawn(journal.clone());
    let front_door = front_door::router(door.clone())
        .merge(reports::router(door.clone(), training.clone()))
        .merge(installs::router(door, installs));
    tokio::spawn(serve_door(configs, front_door.clone(), door_view, stopped.clone()));
    tokio::spawn(serve_relay(
        desired.config.door_dir().join(services::front_door::SOCKET),
        front_door,
        stopped.clone(),
    ));
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
        desired,
        reload,
        daemon,
        requests,
        nudges,
        engine_view,
        node,
        gpus: gpus.watch(),
        replan,
        jobs: ledger.watch(),
        installs: all_installs,
        notify: notifier.watch(),
        door: door_views,
        page: page_trouble,
        second: second_view,
        tls: served,
        scrapes,
        config: tell_config,
        upstreams: tell_upstreams,
        snapshot,
        incidents,
        looked_at,
        seed: rand::random(),
        plan,
        credentials,
        stop: stopped,
    }));
    tracing::info!(page = %page_link, socket = %options.socket.display(), "labd is up");
    // Told to nobody when systemd did not start us.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let down = until_end(&control, &stop, supervision).await?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    if down && root_user {
        guard::take_down(&lab).await;
    }
    note(&journal, "stopped", if down { "the lab is down" } else { "containers keep running" });
    stop.send_replace(true);
    while servers.join_next().await.is_some() {}
    // A hanging disk must not keep the daemon.
    let _ = tokio::time::timeout(Duration::from_secs(2), journal.flush()).await;
    let _ = tokio::time::timeout(Duration::from_secs(2), recording).await;
    let _ = tokio::time::timeout(Duration::from_secs(2), training.flush()).await;
    if let Ok(Err(line)) = tokio::time::timeout(Duration::from_secs(2), accounts.flush()).await {
        tracing::warn!("{line}");
    }
    Ok(())
}

/// Folder in which each daemon locks the file of its lab. Only the daemon's user can write to it: names that are
/// anybody's to take (abstract sockets, files in /tmp) let any local user keep labd from starting.
pub(crate) fn locks(root_user: bool, runtime: Option<&Path>, data_dir: &Path) -> PathBuf {
    match runtime {
        _ if root_user => PathBuf::from("/run/labd/labs"),
        Some(dir) => dir.join("labd/labs"),
        None => data_dir.to_owned(),
    }
}

/// Claims the lab for this daemon, whatever socket it listens on: two would undo each other's work. The lock goes with
/// the process.
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

/// Says what is wrong, in the log and in the journal.
fn complain(journal: &Journal, what: &str, line: &str) {
    tracing::error!("{line}");
    note(journal, what, line);
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

/// Makes the data directory, closed before anything is in it: what labd keeps holds people's tokens.
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

/// Makes the folder that the relay sees: it must be there before the relay's container is created.
fn make_door(config: &Config) -> Result<(), StartError> {
    let dir = config.door_dir();
    // Closed by itself, too: the data directory is not where others have files in it.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|e| StartError::Other(format!("cannot make {}: {e}; set `lab.data_dir` in labd.toml", dir.display())))
}

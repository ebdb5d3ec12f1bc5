//! Commands that need no daemon: they read `labd.toml`, look at the machine, and speak to the engine themselves.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use super::{
    args::{self, Global},
    exit::{Exit, Failure},
    out::Out,
    status::table,
};
use crate::{
    config::{Bytes, Config},
    daemon::{self, Machine, Options},
    engine::{
        Engine as _, EngineError, Seen,
        docker::DockerEngine,
        images::{ImageState, Images},
    },
    node::{self, guard},
    pins,
    plan::spec::{ImageName, ImageSource, ImageSpec, Kind},
    supervise::Wish,
    text::log_line,
    time::{Timestamp, human},
};

/// How long the engine may take to say which subnets it uses, when only the plan is looked at.
const ENGINE: Duration = Duration::from_secs(2);

/// The daemon, in the foreground.
pub(super) async fn run(global: &Global, args: &args::Run) -> Result<(), Failure> {
    let filter = std::env::var("LABD_LOG").unwrap_or_else(|_| "info".to_owned());
    let log = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(|| Lines)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        // The journal has times of its own.
        log.without_time().init();
    } else {
        log.init();
    }
    let options =
        Options { config: global.config.clone(), socket: global.socket.clone(), simulate_gpus: args.simulate_gpus };
    Ok(daemon::run(options).await?)
}

/// Where the daemon logs: standard error, each entry on one line of its own. The subscriber writes an entry at once.
struct Lines;

impl std::io::Write for Lines {
    fn write(&mut self, entry: &[u8]) -> std::io::Result<usize> {
        let line = log_line(&String::from_utf8_lossy(entry));
        std::io::stderr().lock().write_all(line.as_bytes())?;
        Ok(entry.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the daemon would want.
async fn wish(global: &Global, simulate: Option<u32>) -> Result<(Wish, DockerEngine), Failure> {
    let (config, _) = Config::load(&global.config)?;
    let engine = DockerEngine::connect(&config.engine.socket, &config.lab.name)
        .map_err(|e| Failure::new(Exit::Config, e.to_string()))?;
    let subnet =
        tokio::time::timeout(ENGINE, daemon::subnet(&config, &engine, &pins::load(&config.lab.data_dir))).await;
    let subnet = match subnet {
        Ok(found) => found.map_err(|e| Failure::new(Exit::Config, e))?,
        Err(_) => [198, 18, 100],
    };
    let facts = node::facts();
    let gpus = daemon::look_at_gpus(&facts, &config, simulate, &engine).await;
    let machine = Machine { facts, simulate, subnet, gpus };
    Ok((daemon::wish(config, &global.config, &machine, true)?, engine))
}

/// Prints what labd.toml and the machine come to.
pub(super) async fn plan(global: &Global, args: &args::Plan, out: &mut Out) -> Result<(), Failure> {
    let (wish, _) = wish(global, args.run.simulate_gpus).await?;
    if args.json.json {
        return out.json(&wish.view);
    }
    let n = &wish.view["node"];
    let sizes = &wish.view["sizes"];
    let size = |key: &str| Bytes::new(sizes[key].as_u64().unwrap_or(0)).to_string();
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
    out.line(&format!(
        "{} CPUs, {} NUMA nodes, {} of memory, {} of it left for the host; network {}",
        number(&n["cpus"]),
        number(&n["numa_nodes"]),
        Bytes::new(number(&n["memory_bytes"])),
        size("host"),
        wish.plan.network.subnet
    ))?;
    out.line(&format!("/dev/shm shared by all workers: {}", size("shared_memory")))?;
    out.line("")?;
    let rows: Vec<Vec<String>> = wish
        .plan
        .services
        .iter()
        .map(|s| {
            let (store, cpus) = match s.kind {
                Kind::RayHead => (size("head_object_store"), "0".to_owned()),
                Kind::RayDriver => (size("driver_object_store"), number(&sizes["driver_cpus"]).to_string()),
                Kind::RayWorker => (size("worker_object_store"), number(&sizes["worker_cpus"]).to_string()),
                _ => ("-".to_owned(), "-".to_owned()),
            };
            let ports: Vec<String> = s.container.ports.iter().filter_map(|p| p.host).map(|p| p.to_string()).collect();
            vec![
                s.name.clone(),
                if s.enabled { Bytes::new(s.container.memory_bytes).to_string() } else { "off".to_owned() },
                store,
                cpus,
                s.container.address.to_string(),
                if ports.is_empty() { "-".to_owned() } else { ports.join(",") },
            ]
        })
        .collect();
    out.text(&table(&["SERVICE", "MEMORY", "OBJECT STORE", "RAY CPUS", "ADDRESS", "PORTS"], &rows))
}

/// `labd config check|show`.
pub(super) fn config(global: &Global, command: args::Config, out: &mut Out) -> Result<(), Failure> {
    match command {
        args::Config::Check { file } => {
            let path = file.as_ref().unwrap_or(&global.config);
            let (config, found) = Config::load(path)?;
            // What fits this machine is part of what is right; the subnet does not matter for that.
            let machine = Machine::without_gpus(node::facts(), None, [198, 18, 100]);
            daemon::wish(config, path, &machine, true)?;
            match found {
                Some(path) => out.line(&format!("{}: no mistake found", path.display())),
                None => out.line(&format!("{} is not there: the defaults apply", path.display())),
            }
        }
        args::Config::Show(json) => {
            let (config, _) = Config::load(&global.config)?;
            if json.json {
                return out.json(&config);
            }
            let text = toml::to_string(&config).map_err(|e| Failure::new(Exit::Failure, e.to_string()))?;
            out.text(&text)
        }
    }
}

/// `labd images list|build|pull`.
pub(super) async fn images(global: &Global, command: args::Images, out: &mut Out) -> Result<(), Failure> {
    let (wish, engine) = wish(global, None).await?;
    engine.check().await.map_err(|e| Failure::new(Exit::Failure, e.to_string()))?;
    let (names, pull) = match command {
        args::Images::List(json) => return list(&wish, engine, json.json, out).await,
        args::Images::Build(names) => (names.names, false),
        args::Images::Pull(names) => (names.names, true),
    };
    let fits = |spec: &&ImageSpec| matches!(spec.source, ImageSource::Pull) == pull;
    for name in &names {
        let spec = wish.plan.images.iter().find(|s| s.name == *name);
        if spec.as_ref().is_none_or(|x| !fits(x)) {
            let line = match (spec, pull) {
                (None, _) => format!("the {} image is not needed: its service is off", name.word()),
                (_, true) => {
                    format!("the {} image is built, not pulled; name one in `[images]` of labd.toml", name.word())
                }
                (_, false) => format!("the {} image is pulled, not built", name.word()),
            };
            return Err(Failure::new(Exit::Usage, line));
        }
    }
    let wanted: Vec<ImageSpec> =
        wish.plan.images.iter().filter(|s| fits(s) && (names.is_empty() || names.contains(&s.name))).cloned().collect();
    make(engine, wanted, &wish, out).await
}

async fn list(wish: &Wish, engine: DockerEngine, json: bool, out: &mut Out) -> Result<(), Failure> {
    let images = Images::spawn(engine, wish.plan.images.clone(), wish.settings.clone());
    let mut states = images.watch();
    let known = |states: &BTreeMap<ImageName, ImageState>| {
        wish.plan.images.iter().all(|i| states.get(&i.name).is_some_and(|s| *s != ImageState::Unknown))
    };
    states.wait_for(known).await.map_err(|_| Failure::new(Exit::Failure, "the engine went away"))?;
    let rows = images.list();
    if json {
        return out.json(&rows);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|row| {
            let (state, size, age) = match row.state {
                ImageState::Present { size_bytes, built_at, .. } => {
                    ("present".to_owned(), Bytes::new(size_bytes).to_string(), human(now.since(built_at)))
                }
                ImageState::Unavailable { reason, .. } => (format!("unavailable: {reason}"), "-".into(), "-".into()),
                _ => ("missing".to_owned(), "-".to_owned(), "-".to_owned()),
            };
            let from = if row.built { "built" } else { "pulled" };
            vec![row.name.word().to_owned(), row.reference, from.to_owned(), size, age, state]
        })
        .collect();
    out.text(&table(&["IMAGE", "REFERENCE", "FROM", "SIZE", "AGE", "STATE"], &rows))
}

async fn make(engine: DockerEngine, wanted: Vec<ImageSpec>, wish: &Wish, out: &mut Out) -> Result<(), Failure> {
    let begun = Timestamp::now();
    let images = Images::spawn(engine, wanted.clone(), wish.settings.clone());
    let mut states = images.watch();
    let looked = |states: &BTreeMap<ImageName, ImageState>| {
        wanted.iter().all(|i| states.get(&i.name).is_some_and(|s| *s != ImageState::Unknown))
    };
    let gone = |_| Failure::new(Exit::Failure, "the engine went away");
    states.wait_for(looked).await.map_err(gone)?;
    for spec in &wanted {
        images.force(spec.name);
    }
    let mut said: BTreeMap<ImageName, String> = BTreeMap::new();
    let mut begun_at: BTreeMap<ImageName, Timestamp> = BTreeMap::new();
    let mut failed = Vec::new();
    let mut open: Vec<ImageName> = wanted.iter().map(|s| s.name).collect();
    while !open.is_empty() {
        let now = states.borrow_and_update().clone();
        open.retain(|name| match now.get(name) {
            Some(ImageState::Preparing { detail, .. }) => {
                begun_at.entry(*name).or_insert_with(Timestamp::now);
                if said.get(name) != Some(detail) {
                    said.insert(*name, detail.clone());
                    // A closed pipe must not stop a build of minutes.
                    let _ = out.line(&format!("{}: {detail}", name.word()));
                }
                true
            }
            Some(ImageState::Present { size_bytes, built_at, .. })
                if begun_at.contains_key(name) || *built_at >= begun =>
            {
                let took = human(Timestamp::now().since(begun));
                let _ = out.line(&format!("{}: done, {} in {took}", name.word(), Bytes::new(*size_bytes)));
                false
            }
            Some(ImageState::Unavailable { reason, .. }) => {
                failed.push(format!("{}: {reason}", name.word()));
                false
            }
            _ => true,
        });
        if !open.is_empty() {
            states.changed().await.map_err(gone)?;
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::new(Exit::Failure, failed.join("; "))) }
}

/// Removes the lab's containers and network without a daemon; returns how many containers there were.
pub(super) async fn down(global: &Global) -> Result<usize, Failure> {
    let (config, _) = Config::load(&global.config)?;
    let failed = |e: EngineError| Failure::new(Exit::Failure, e.to_string());
    let engine = DockerEngine::connect(&config.engine.socket, &config.lab.name).map_err(failed)?;
    let names = match engine.list().await {
        Ok(names) => names,
        // Without an engine nothing runs.
        Err(EngineError::Unreachable(_)) => return Ok(0),
        Err(e) => return Err(failed(e)),
    };
    // Ray's nodes first: without their head they would wait for it until they are killed.
    let (last, first): (Vec<&String>, Vec<&String>) =
        names.iter().partition(|n| matches!(n.as_str(), "ray-head" | "minio"));
    for group in [first, last] {
        let stops = group.into_iter().map(|name| {
            let engine = engine.clone();
            async move {
                if let Seen::Ours(container) = engine.observe(name).await? {
                    engine.stop(&container.id).await?;
                    engine.remove(&container.id).await?;
                }
                Ok::<_, EngineError>(())
            }
        });
        futures_util::future::try_join_all(stops).await.map_err(failed)?;
    }
    engine.remove_network().await.map_err(failed)?;
    guard::take_down(&config.lab.name).await;
    Ok(names.len())
}

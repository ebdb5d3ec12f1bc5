//! Commands that need no daemon: they read `labd.toml`, look at the machine, and speak to the engine themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::IsTerminal as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    args::{self, Global},
    client::Client,
    exit::{Exit, Failure},
    log::Lines,
    status::table,
    text::Out,
};
use crate::{
    config::{Bytes, Config, mounts, tls},
    daemon::{self, Machine, Options},
    desired::DesiredState,
    engine::{
        Engine as _, EngineError, ListedContainer, Observed, RunState,
        docker::{DockerEngine, OldImage, Removal},
        guard,
        images::{ImageState, Images},
    },
    node, pins,
    plan::images::base_reference,
    services,
    snapshot::Snapshot,
    spec::{ImageName, ImageSource, ImageSpec, Kind, ServiceSpec},
    supervise::decide::rollout,
    time::{Timestamp, human},
};

/// Longest wait for the engine to say which subnets it uses, when only the plan is shown.
const ENGINE: Duration = Duration::from_secs(2);

/// Runs the daemon, in the foreground.
pub(super) async fn run(global: &Global, args: &args::Run) -> Result<(), Failure> {
    let filter = std::env::var("LABD_LOG").unwrap_or_else(|_| "info".to_owned());
    let lines = Lines::new(&global.socket);
    let log = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(move || lines.clone())
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

/// Desired state as the daemon would have it, and the machine's changes since the lab was planned for it.
async fn desired(
    global: &Global,
    simulate: Option<u32>,
) -> Result<(DesiredState, DockerEngine, Option<String>), Failure> {
    let (config, _) = Config::load(&global.config)?;
    let engine = DockerEngine::connect(&config.engine.socket, &config.lab.name)
        .map_err(|e| Failure::new(Exit::Config, e.to_string()))?;
    let simulate = match simulate {
        None => simulated(global).await,
        some => some,
    };
    let pins = pins::load(&config.lab.data_dir);
    let subnet = tokio::time::timeout(ENGINE, daemon::subnet(&config, &engine, &pins)).await;
    let subnet = match subnet {
        Ok(found) => found.map_err(|e| Failure::new(Exit::Config, e))?,
        Err(_) => pins.subnet.unwrap_or([198, 18, 100]),
    };
    let facts = node::facts();
    let gpus = daemon::look_at_gpus(&facts, &config, simulate, &engine).await;
    let drift = pins.machine.as_ref().and_then(|planned| pins::drift(planned, &facts));
    // What a daemon is, or would be, planned for.
    let facts = Arc::new(Mutex::new(pins.machine.unwrap_or(facts)));
    let machine = Machine { facts, simulate, subnet, gpus };
    Ok((machine.resolve(config, &global.config, true)?, engine, drift))
}

/// Number of GPUs that the daemon simulates, where one runs: it may have been told so by its own argument.
async fn simulated(global: &Global) -> Option<u32> {
    let asked = tokio::time::timeout(ENGINE, Client::new(global).json::<Snapshot>("/api/v1/snapshot")).await;
    let count = asked.ok()?.ok()?.gpus.iter().filter(|gpu| gpu.simulated).count();
    u32::try_from(count).ok().filter(|&count| count > 0)
}

/// Prints the plan that follows from labd.toml and the machine.
pub(super) async fn plan(global: &Global, args: &args::Plan, out: &mut Out) -> Result<(), Failure> {
    let (desired, ..) = desired(global, args.run.simulate_gpus).await?;
    let view = desired.view.to_json();
    if args.json.json {
        return out.json(&view);
    }
    let n = &view["node"];
    let sizes = &view["sizes"];
    let size = |key: &str| Bytes::new(sizes[key].as_u64().unwrap_or(0)).to_string();
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
    out.line(&format!(
        "{} CPUs, {} NUMA nodes, {} of memory, {} of it left for the host; network {}",
        number(&n["cpus"]),
        number(&n["numa_nodes"]),
        Bytes::new(number(&n["memory_bytes"])),
        size("host"),
        desired.plan.network.subnet
    ))?;
    out.line(&format!("/dev/shm shared by all workers: {}", size("shared_memory")))?;
    out.line("")?;
    let rows: Vec<Vec<String>> = desired
        .plan
        .services
        .iter()
        .map(|s| {
            let (store, cpus) = match s.kind {
                Kind::RAY_HEAD => (size("head_object_store"), "0".to_owned()),
                Kind::RAY_DRIVER => (size("driver_object_store"), number(&sizes["driver_cpus"]).to_string()),
                Kind::RAY_WORKER => (size("worker_object_store"), number(&sizes["worker_cpus"]).to_string()),
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

/// Container that differs from the wanted one.
#[derive(Debug, Serialize)]
struct Difference {
    service: String,
    /// Time at which it is recreated.
    when: String,
    /// Parts that differ, in the words of [`ContainerSpec::parts`].
    ///
    /// [`ContainerSpec::parts`]: crate::spec::ContainerSpec::parts
    why: Vec<String>,
}

/// Prints which containers labd.toml and the machine would change, when and why.
pub(super) async fn diff(global: &Global, args: &args::Plan, out: &mut Out) -> Result<(), Failure> {
    let (desired, engine, drift) = desired(global, args.run.simulate_gpus).await?;
    let failed = |e: EngineError| Failure::new(Exit::Failure, e.to_string());
    let mut all = Vec::new();
    for spec in &desired.plan.services {
        let seen = engine.observe(&spec.name).await.map_err(failed)?;
        let parts = engine.parts(&spec.name).await.map_err(failed)?;
        all.extend(difference(spec, &seen, parts.as_ref(), desired.config.lab.change_window.get()));
    }
    let planned = |name: &String| desired.plan.service(name).is_some();
    let left = services_of(engine.list().await.map_err(failed)?).into_iter().filter(|name| !planned(name));
    all.extend(left.map(|service| Difference { service, when: "removed now".into(), why: vec!["not planned".into()] }));
    if args.json.json {
        return out.json(&all);
    }
    if all.is_empty() {
        out.line("every container is up to date")?;
    } else {
        let rows: Vec<Vec<String>> = all.into_iter().map(|d| vec![d.service, d.when, shortened(&d.why)]).collect();
        out.text(&table(&["SERVICE", "WHEN", "WHY"], &rows))?;
    }
    match drift {
        Some(line) => out.line(&format!("the machine differs from the one that the lab was planned for: {line}")),
        None => Ok(()),
    }
}

/// Difference between a service's container and the wanted one, if there is any. `parts` is what it was made of, where
/// that is known. Pure.
fn difference(
    spec: &ServiceSpec,
    seen: &Observed,
    parts: Option<&BTreeMap<String, String>>,
    window: Duration,
) -> Option<Difference> {
    let said = |when: String, why: Vec<String>| Some(Difference { service: spec.name.clone(), when, why });
    match seen {
        Observed::Foreign { .. } => said("not at all".into(), vec!["somebody else's container has its name".into()]),
        Observed::Absent => spec.enabled.then(|| said("made now".into(), vec!["it has no container".into()])).flatten(),
        Observed::Ours(_) if !spec.enabled => said("removed now".into(), vec!["switched off".into()]),
        Observed::Ours(c) => {
            let change = c.change(&spec.container.hash(), &spec.container.hard_hash())?;
            let wanted = spec.container.parts();
            let why = parts.map_or_else(
                || vec!["an older labd made it".to_owned()],
                |parts| {
                    let names: BTreeSet<&String> = parts.keys().chain(wanted.keys()).collect();
                    names.into_iter().filter(|n| parts.get(*n) != wanted.get(*n)).cloned().collect()
                },
            );
            let runs = matches!(c.run, RunState::Running { .. } | RunState::Paused);
            let when = if runs { rollout::waits_for(spec.recreate, change, window) } else { "now".to_owned() };
            said(when, why)
        }
    }
}

/// First reasons of many.
fn shortened(why: &[String]) -> String {
    const SHOWN: usize = 4;
    let more = why.len().saturating_sub(SHOWN);
    let shown = why.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// Runs `labd config check|show`.
pub(super) fn config(global: &Global, command: args::Config, out: &mut Out) -> Result<(), Failure> {
    match command {
        args::Config::Check { file } => {
            let path = file.as_ref().unwrap_or(&global.config);
            let (config, found) = Config::load(path)?;
            // What fits this machine is part of what is right; the subnet does not matter for that.
            let machine = Machine::without_gpus(node::facts(), None, [198, 18, 100]);
            machine.resolve(config.clone(), path, true)?;
            for warning in mounts::check(&config, path)?.into_iter().chain(tls::check(&config, path, Timestamp::now())?)
            {
                out.line(&format!("warning: {warning}"))?;
            }
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

/// Runs `labd images list|build|pull|prune`.
pub(super) async fn images(global: &Global, command: args::Images, out: &mut Out) -> Result<(), Failure> {
    let (desired, engine, _) = desired(global, None).await?;
    engine.check().await.map_err(|e| Failure::new(Exit::Failure, e.to_string()))?;
    let (names, pull) = match command {
        args::Images::List(json) => return list(global, &desired, engine, json.json, out).await,
        args::Images::Prune(json) => return prune(global, &desired, &engine, json.json, out).await,
        args::Images::Build(names) => (names.names, false),
        args::Images::Pull(names) => (names.names, true),
    };
    let fits = |spec: &&ImageSpec| matches!(spec.source, ImageSource::Pull) == pull;
    for name in &names {
        let spec = desired.plan.images.iter().find(|s| s.name == *name);
        if spec.as_ref().is_none_or(|x| !fits(x)) {
            let line = match (spec, pull) {
                (None, _) => format!("the {} image is not needed: its service is off", name.as_str()),
                (_, true) => {
                    format!("the {} image is built, not pulled; name one in `[images]` of labd.toml", name.as_str())
                }
                (_, false) => format!("the {} image is pulled, not built", name.as_str()),
            };
            return Err(Failure::new(Exit::Usage, line));
        }
    }
    let wanted: Vec<ImageSpec> = desired
        .plan
        .images
        .iter()
        .filter(|s| fits(s) && (names.is_empty() || names.contains(&s.name)))
        .cloned()
        .collect();
    make(engine, wanted, &desired, out).await
}

/// References that must stay: what `labd.toml` wants as it is now, and what the running daemon wants, which may
/// simulate other GPUs or not have read the file again.
async fn wanted(global: &Global, desired: &DesiredState) -> Result<BTreeSet<String>, Failure> {
    let mut wanted: BTreeSet<String> = desired.plan.images.iter().map(|image| image.reference.clone()).collect();
    wanted.insert(base_reference());
    match Client::new(global).json::<PlannedImages>("/api/v1/plan").await {
        Ok(running) => wanted.extend(running.plan.images.into_iter().map(|image| image.reference)),
        Err(failure) if failure.exit == Exit::NotRunning => {}
        Err(failure) => return Err(failure),
    }
    Ok(wanted)
}

/// Part of the running daemon's plan that is read.
#[derive(Deserialize)]
struct PlannedImages {
    plan: PlannedList,
}

#[derive(Deserialize)]
struct PlannedList {
    images: Vec<PlannedImage>,
}

#[derive(Deserialize)]
struct PlannedImage {
    reference: String,
}

/// Report that `labd images prune --json` prints.
#[derive(Debug, Default, Serialize)]
struct Pruned {
    /// Images that were removed.
    removed: Vec<OldImage>,
    /// Images that turned out to be used.
    kept: Vec<OldImage>,
}

async fn prune(
    global: &Global,
    desired: &DesiredState,
    engine: &DockerEngine,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let failed = |e: EngineError| Failure::new(Exit::Failure, e.to_string());
    let mut pruned = Pruned::default();
    for image in engine.old_images(&wanted(global, desired).await?).await.map_err(failed)? {
        match engine.remove_image(&image.reference).await.map_err(failed)? {
            Removal::Removed => pruned.removed.push(image),
            Removal::InUse => pruned.kept.push(image),
        }
    }
    if json {
        return out.json(&pruned);
    }
    for (image, what) in pruned.removed.iter().map(|i| (i, "removed")).chain(pruned.kept.iter().map(|i| (i, "in use")))
    {
        out.line(&format!("{}: {what}, {}", image.reference, Bytes::new(image.size_bytes)))?;
    }
    if pruned.removed.is_empty() && pruned.kept.is_empty() {
        out.line("no image of earlier settings is left")?;
    }
    Ok(())
}

/// Line about images of earlier settings, if there are any.
fn say_old(old: &[OldImage]) -> Option<String> {
    let bytes: u64 = old.iter().map(|image| image.size_bytes).sum();
    let images = match old.len() {
        0 => return None,
        1 => "1 image of earlier settings holds".to_owned(),
        n => format!("{n} images of earlier settings hold"),
    };
    Some(format!("{images} at most {} of the disk: `labd images prune` removes what nothing uses", Bytes::new(bytes)))
}

async fn list(
    global: &Global,
    desired: &DesiredState,
    engine: DockerEngine,
    json: bool,
    out: &mut Out,
) -> Result<(), Failure> {
    let images = Images::spawn(engine.clone(), desired.plan.images.clone(), desired.config.images.build.clone());
    let mut states = images.watch();
    let known = |states: &BTreeMap<ImageName, ImageState>| {
        desired.plan.images.iter().all(|i| states.get(&i.name).is_some_and(|s| *s != ImageState::Unknown))
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
            vec![row.name.as_str().to_owned(), row.reference, from.to_owned(), size, age, state]
        })
        .collect();
    out.text(&table(&["IMAGE", "REFERENCE", "FROM", "SIZE", "AGE", "STATE"], &rows))?;
    // The list is right without it: a daemon that is not for this user may want some of them.
    let Ok(wanted) = wanted(global, desired).await else { return Ok(()) };
    match engine.old_images(&wanted).await.ok().as_deref().and_then(say_old) {
        Some(line) => out.line(&format!("\n{line}")),
        None => Ok(()),
    }
}

async fn make(
    engine: DockerEngine,
    wanted: Vec<ImageSpec>,
    desired: &DesiredState,
    out: &mut Out,
) -> Result<(), Failure> {
    let begun = Timestamp::now();
    let images = Images::spawn(engine, wanted.clone(), desired.config.images.build.clone());
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
                    let _ = out.line(&format!("{}: {detail}", name.as_str()));
                }
                true
            }
            Some(ImageState::Present { size_bytes, built_at, .. })
                if begun_at.contains_key(name) || *built_at >= begun =>
            {
                let took = human(Timestamp::now().since(begun));
                let _ = out.line(&format!("{}: done, {} in {took}", name.as_str(), Bytes::new(*size_bytes)));
                false
            }
            Some(ImageState::Unavailable { reason, .. }) => {
                failed.push(format!("{}: {reason}", name.as_str()));
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

/// Services that these containers are of.
fn services_of(found: Vec<ListedContainer>) -> BTreeSet<String> {
    found.into_iter().map(|c| c.service).collect()
}

/// Removes the lab's containers and network without a daemon; returns how many containers there were.
pub(super) async fn down(global: &Global) -> Result<usize, Failure> {
    let (config, _) = Config::load(&global.config)?;
    let failed = |e: EngineError| Failure::new(Exit::Failure, e.to_string());
    let engine = DockerEngine::connect(&config.engine.socket, &config.lab.name).map_err(failed)?;
    let names = match engine.list().await {
        Ok(found) => services_of(found),
        // Without an engine nothing runs.
        Err(EngineError::Unreachable(_)) => return Ok(0),
        Err(e) => return Err(failed(e)),
    };
    // Ray's nodes first: without their head they would wait for it until they are killed.
    let (last, first): (Vec<&String>, Vec<&String>) =
        names.iter().partition(|n| services::of(n).is_some_and(|def| def.stops_last));
    for group in [first, last] {
        let stops = group.into_iter().map(|name| {
            let engine = engine.clone();
            async move {
                if let Observed::Ours(container) = engine.observe(name).await? {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::ObservedContainer, plan, plan::tests::inputs};

    #[test]
    fn images_of_earlier_settings_are_said_with_what_they_hold() {
        let old = |gib: u64| OldImage {
            reference: "labd/ray:000000000001".into(),
            size_bytes: gib << 30,
            built_at: Timestamp::default(),
        };
        assert_eq!(say_old(&[]), None);
        let said = say_old(&[old(10), old(14)]).expect("two");
        assert!(said.starts_with("2 images of earlier settings hold at most 24.0 GiB"), "{said}");
        assert!(said.contains("`labd images prune`"), "{said}");
    }

    #[test]
    fn a_daemons_plan_names_its_images() {
        let (plan, sizes) = plan::make(&inputs("", 1, 32)).expect("a plan");
        let inputs = inputs("", 1, 32);
        let view = plan::PlanView { node: inputs.node, gpus: inputs.gpus, sizes, plan: plan.clone() };
        let json = serde_json::to_string(&view).expect("serialises");
        let read: PlannedImages = serde_json::from_str(&json).expect("understood");
        let references: Vec<String> = read.plan.images.into_iter().map(|i| i.reference).collect();
        assert_eq!(references, plan.images.iter().map(|i| i.reference.clone()).collect::<Vec<_>>());
    }

    #[test]
    fn a_plans_difference_says_when_and_why() {
        let specs = |toml: &str, gpu: &str| {
            let mut inputs = inputs(toml, 1, 32);
            gpu.clone_into(&mut inputs.gpus[0].id);
            plan::make(&inputs).expect("a plan").0
        };
        let (old, day) = (specs("", "SIM-0"), Duration::from_hours(24));
        let said = |name: &str, new: &crate::spec::Plan, run: RunState| {
            let (was, is) = (&old.service(name).expect("planned").container, new.service(name).expect("planned"));
            let seen = Observed::Ours(ObservedContainer {
                id: "c".into(),
                spec_hash: was.hash(),
                hard_hash: was.hard_hash(),
                run,
                last_end: None,
                pid: None,
                ports: BTreeMap::new(),
                address: None,
            });
            difference(is, &seen, Some(&was.parts()), day).map(|d| (d.when, d.why.join(" ")))
        };
        let runs = RunState::Running { started_at: Timestamp::default() };
        let pair = |when: &str, why: &str| Some((when.to_owned(), why.to_owned()));
        assert_eq!(said("ray-worker-0", &old, runs.clone()), None);
        let env = specs("[ray]\nenv = { A = \"b\" }", "SIM-0");
        assert_eq!(said("ray-worker-0", &env, runs.clone()), pair("when nothing runs on it", "env A"));
        assert_eq!(said("ray-head", &env, runs.clone()), pair("when no job runs, at the latest after 1 d", "env A"));
        assert_eq!(said("jupyter", &env, runs.clone()), pair("at its next stop, because of its kernels", "env A"));
        assert_eq!(said("ray-worker-0", &env, RunState::Created), pair("now", "env A"));
        let other = said("ray-worker-0", &specs("", "SIM-7"), runs.clone()).expect("another GPU");
        assert_eq!(other.0, "now, one worker at a time");
        let port = specs("[ports]\njupyter = 9999", "SIM-0");
        assert_eq!(said("jupyter", &port, runs), pair("now", "ports"));
        let absent = difference(&old.services[0], &Observed::Absent, None, day).expect("not made");
        assert_eq!(absent.when, "made now");
    }
}

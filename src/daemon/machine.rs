//! Facts about the machine that are found out before anything is planned: its facts, its GPUs, the lab's subnet.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::sync::watch;

use super::StartError;
use crate::{
    config::{self, Config},
    desired::{self, DesiredState, Unresolved},
    engine::docker::DockerEngine,
    gpus::{Inventory, handle::Gpus, manager, simulate},
    incident::Incident,
    journal::Journal,
    node::{self, NodeFacts, routes},
    pins::Pins,
    snapshot::{EngineView, ServiceState, Snapshot},
};

/// Longest wait for GPUs before the first plan is made without them: a driver that nobody holds open takes some seconds
/// to wake its GPUs.
pub(super) const FIRST_LOOK: Duration = Duration::from_secs(15);

/// Machine, as it was found out once.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Facts such as CPUs and memory, as the lab is planned for: those of the first start, until `labd.toml` is read
    /// again.
    pub facts: Arc<Mutex<NodeFacts>>,
    /// Number of simulated GPUs by `--simulate-gpus`.
    pub simulate: Option<u32>,
    /// The lab's /24.
    pub subnet: [u8; 3],
    /// GPUs, where none are simulated.
    pub gpus: watch::Receiver<Arc<Inventory>>,
}

impl Machine {
    /// Machine on which no GPU is looked for.
    pub fn without_gpus(facts: NodeFacts, simulate: Option<u32>, subnet: [u8; 3]) -> Self {
        Self { facts: Arc::new(Mutex::new(facts)), simulate, subnet, gpus: watch::channel(Arc::default()).1 }
    }

    /// Desired state of a configuration, read from `path`, on this machine; with `pretend`, nothing is written.
    pub fn resolve(&self, config: Config, path: &Path, pretend: bool) -> Result<DesiredState, StartError> {
        let facts = self.planned().clone();
        let gpus = match self.simulate.or(config.gpus.simulate) {
            Some(count) => simulate::gpus(count, &facts.numa),
            None => self.gpus.borrow().gpus(),
        };
        desired::resolve(config, facts, gpus, self.subnet, pretend).map_err(|e| match e {
            Unresolved::Credentials(line) => StartError::Other(line),
            Unresolved::Misfit(text) => StartError::Plan { path: path.to_owned(), text },
        })
    }

    pub(super) fn planned(&self) -> MutexGuard<'_, NodeFacts> {
        // A value that is only ever replaced whole.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Inputs of the GPUs' manager.
pub(super) struct Heard {
    pub(super) engine_view: watch::Receiver<EngineView>,
    pub(super) incidents: watch::Receiver<Arc<Vec<Incident>>>,
    pub(super) loads: watch::Receiver<Arc<simulate::Loads>>,
}

/// Starts the GPUs' manager.
pub(super) fn keep_gpus(
    facts: &NodeFacts,
    config: &watch::Receiver<Arc<Config>>,
    simulate: Option<u32>,
    engine: &DockerEngine,
    journal: Option<Journal>,
    heard: Heard,
) -> Gpus {
    let Heard { engine_view, incidents, loads } = heard;
    let engine = engine.clone();
    manager::spawn(manager::Parts {
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

/// Follows the loads of those workers of simulated GPUs that run.
pub(super) async fn follow_loads(
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

/// GPUs as they are now, for a process that does not stay: found within some seconds, or not.
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

#[cfg(test)]
mod tests {
    use super::*;

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

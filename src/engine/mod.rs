//! The container engine behind one trait, so that supervision can run over a simulated one.
//!
//! * [`docker`]: the real engine, through bollard.
//! * [`events`]: whether it answers, and what it says of the lab's containers.
//! * [`images`]: builds and pulls, with progress.
//! * [`guard`]: the firewall's rule that keeps other hosts out of the lab's subnet.
//!
//! An engine does what it is told and reports what it sees. It has no opinions: whether a container should run is
//! decided in [`crate::supervise`].

pub mod docker;
pub mod events;
pub(crate) mod guard;
pub mod images;

use std::{collections::BTreeMap, future::Future, net::Ipv4Addr, path::PathBuf, time::Duration};

use crate::{
    spec::{Change, ContainerSpec, NetworkSpec},
    time::Timestamp,
};

/// Default directory in which an engine keeps images, containers and volumes. It names another in `DockerRootDir`,
/// which can be any, such as `/data/docker`.
const DEFAULT_DATA_ROOT: &str = "/var/lib/docker";

/// Directory in which an engine keeps its data, given what it said; the default while it was not asked, or said
/// nothing.
pub(crate) fn data_root(said: Option<String>) -> PathBuf {
    said.filter(|path| path.starts_with('/')).unwrap_or_else(|| DEFAULT_DATA_ROOT.to_owned()).into()
}

/// Label that carries the lab's name on everything labd makes.
pub const LABEL_LAB: &str = "dev.labd.lab";
/// Label that carries the service's name.
pub const LABEL_SERVICE: &str = "dev.labd.service";
/// Label that carries [`ContainerSpec::hash`].
pub const LABEL_SPEC: &str = "dev.labd.spec";
/// Label that carries [`ContainerSpec::hard_hash`].
pub const LABEL_HARD: &str = "dev.labd.hard";
/// Label that carries [`ContainerSpec::parts`] as JSON.
pub const LABEL_PARTS: &str = "dev.labd.parts";
/// Label that carries the fingerprint of what an image was made of.
pub const LABEL_INPUTS: &str = "dev.labd.inputs";

/// Container of a service as the engine reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedContainer {
    /// The engine's id.
    pub id: String,
    /// The value of [`LABEL_SPEC`].
    pub spec_hash: String,
    /// The value of [`LABEL_HARD`]; empty for a container that an older labd made.
    pub hard_hash: String,
    /// Run state.
    pub run: RunState,
    /// End of the run before this one, while it runs; absent in its first.
    pub last_end: Option<Timestamp>,
    /// Id of its first process, by this machine's count, while it runs.
    pub pid: Option<i32>,
    /// Published ports: container port -> host port.
    pub ports: BTreeMap<u16, u16>,
    /// Its address on the lab's network, when it has one.
    pub address: Option<Ipv4Addr>,
}

/// State of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// Created, never started.
    Created,
    /// Running.
    Running {
        /// Time at which it was started.
        started_at: Timestamp,
    },
    /// Ending: its first process has ended, and with it all others; the engine clears up and does not say so yet. No
    /// engine tells this: supervision sees it in the kernel ([`Engine::first_process_ended`]).
    Ending,
    /// Paused by somebody.
    Paused,
    /// Ended.
    Exited {
        /// Exit code; 137 is SIGKILL.
        code: i64,
        /// True when the kernel killed it for memory.
        oom: bool,
        /// Time at which it ended.
        finished_at: Timestamp,
        /// The engine's own error, when it could not start it.
        error: String,
    },
    /// Being removed by the engine.
    Removing,
    /// The engine began to remove it and could not: it cannot be started any more, only removed again.
    Dead,
}

/// Container of the lab in the engine's list of all: what an observation tells of it, but for when a run began and how it
/// ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedContainer {
    /// Name of the service that it is of.
    pub service: String,
    /// Whether it has the name that the service's container has.
    pub named: bool,
    /// The engine's id.
    pub id: String,
    /// The engine's word for its state.
    pub state: String,
    /// Published ports: container port -> host port.
    pub ports: BTreeMap<u16, u16>,
    /// Its address on the lab's network, when it has one.
    pub address: Option<Ipv4Addr>,
}

/// Observation of the place where a service's container belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// No container.
    Absent,
    /// A container of this lab.
    Ours(ObservedContainer),
    /// A container with the wanted name that labd did not make.
    Foreign {
        /// Id of the container.
        id: String,
    },
}

/// Error of an engine call, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Nobody listens on the engine's socket.
    #[error("{0}")]
    Unreachable(String),
    /// The container, image or network does not exist (any more).
    #[error("{0}")]
    NotFound(String),
    /// Refused because of what is there: a name or a port that is taken.
    #[error("{0}")]
    Conflict(String),
    /// Anything else, in the engine's own words.
    #[error("{0}")]
    Other(String),
}

/// Engine event that makes supervision observe again. The state is always read again; an event only adds what cannot be
/// read afterwards: that somebody stopped the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineEvent {
    /// Service whose container it concerns.
    pub service: String,
    /// Id of the container.
    pub id: String,
    /// What happened.
    pub what: EngineEventKind,
    /// Time at which it happened, by the engine's clock.
    pub at: Timestamp,
}

/// Kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineEventKind {
    /// Signal sent to the container through the engine: the beginning of `docker stop`, or of `docker kill`.
    Signal(i32),
    /// Stop through the engine: by `docker stop` or `labd stop`, or because the engine itself ends.
    Stopped,
    /// Stop after which the engine lives on: somebody wanted it.
    StoppedByHand,
    /// Kill of one of the container's processes by the kernel for memory, its first one or another.
    OutOfMemory,
    /// Anything else: `start`, `die`, `destroy`, ...
    Other,
}

/// Result of a command in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ran {
    /// The command ended.
    Ended {
        /// Its exit code.
        code: i64,
        /// Output, both streams mixed, at most 1 MiB.
        output: String,
    },
    /// The command had not printed anything in time: a busy machine starts it slowly. It continues, unseen.
    NotBegun,
    /// The command had not ended in time. It continues, unseen.
    Unfinished,
}

/// Patience with a command in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Longest time from its start to its first output. Where this is given, `run` counts from that output on: how long a
    /// busy machine takes to start a process says nothing of what the process does. Absent where only the whole counts.
    pub begin: Option<Duration>,
    /// Longest time to its end.
    pub run: Duration,
}

impl ListedContainer {
    /// Whether it is as it was observed.
    pub fn is_still(&self, seen: &ObservedContainer) -> bool {
        self.named
            && self.id == seen.id
            && Some(self.state.as_str()) == seen.run.word()
            && self.ports == seen.ports
            && self.address == seen.address
    }
}

impl RunState {
    /// The engine's word for it; absent where it has none.
    pub fn word(&self) -> Option<&'static str> {
        match self {
            Self::Created => Some("created"),
            Self::Running { .. } => Some("running"),
            Self::Ending => None,
            Self::Paused => Some("paused"),
            Self::Exited { .. } => Some("exited"),
            Self::Removing => Some("removing"),
            Self::Dead => Some("dead"),
        }
    }
}

impl ObservedContainer {
    /// Difference between the container and the wanted one. Of what an older labd made no more is known than that it
    /// differs: it works.
    pub fn change(&self, hash: &str, hard_hash: &str) -> Option<Change> {
        let hard = !self.hard_hash.is_empty() && self.hard_hash != hard_hash;
        (self.spec_hash != hash).then_some(if hard { Change::Hard } else { Change::Soft })
    }
}

impl Patience {
    /// Patience with a command as a whole.
    pub const fn whole(run: Duration) -> Self {
        Self { begin: None, run }
    }
}

/// Container engine, as far as supervision needs one.
pub trait Engine: Send + Sync + 'static {
    /// Observation of the place where `service`'s container belongs.
    fn observe(&self, service: &str) -> impl Future<Output = Result<Observed, EngineError>> + Send;
    /// Waits until the first process of a running container has ended, some tenths of a second before the engine says
    /// so. Waits forever where it cannot be seen.
    fn first_process_ended(&self, container: ObservedContainer) -> impl Future<Output = ()> + Send;
    /// All containers with this lab's label, of planned services or not.
    fn list(&self) -> impl Future<Output = Result<Vec<ListedContainer>, EngineError>> + Send;
    /// Makes the lab's network when it is missing. Idempotent.
    fn ensure_network(&self, network: &NetworkSpec) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Removes the lab's network when labd made it. Idempotent; a conflict while containers are attached.
    fn remove_network(&self) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Makes the service's container and puts its files in; does not start it.
    fn create(&self, service: &str, spec: &ContainerSpec) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Starts a container by id.
    fn start(&self, id: &str) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Stops a container: SIGTERM, then SIGKILL after its own stop timeout.
    fn stop(&self, id: &str) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Sends SIGKILL to a container.
    fn kill(&self, id: &str) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Removes a container, never its volumes.
    fn remove(&self, id: &str) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Runs a command in a running container, by id or name, and waits for its end, not longer than `patience` says. `argv`
    /// is visible to everyone on the machine while it runs: no secrets.
    fn run(
        &self,
        id: &str,
        argv: &[String],
        patience: Patience,
    ) -> impl Future<Output = Result<Ran, EngineError>> + Send;
}

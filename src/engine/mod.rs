//! The container engine behind one trait, so that supervision can run over a simulated one.
//!
//! * [`docker`]: the real engine, through bollard.
//! * [`images`]: builds and pulls, with progress.
//! * [`listen`]: whether it answers, and its events.
//!
//! An engine does what it is told and reports what it sees. It has no opinions: whether a container should run is
//! decided in [`crate::supervise`].

pub mod docker;
pub mod images;
pub mod listen;

use std::{collections::BTreeMap, future::Future, net::Ipv4Addr, path::PathBuf, time::Duration};

use crate::{
    plan::spec::{Change, ContainerSpec, NetworkSpec},
    time::Timestamp,
};

/// Where an engine keeps images, containers and volumes unless it says otherwise. It says so in `DockerRootDir`: the place
/// can be any, such as `/data/docker`.
const DEFAULT_DATA_ROOT: &str = "/var/lib/docker";

/// Where an engine keeps its data, given what it said; the default while it was not asked, or said nothing.
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

/// What the engine says of one service's container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSeen {
    /// The engine's id.
    pub id: String,
    /// The value of [`LABEL_SPEC`].
    pub spec_hash: String,
    /// The value of [`LABEL_HARD`]; empty for a container that an older labd made.
    pub hard_hash: String,
    /// What it is doing.
    pub run: RunState,
    /// When its run before this one ended, while it runs; absent in its first.
    pub last_end: Option<Timestamp>,
    /// Its first process, by this machine's count, while it runs.
    pub pid: Option<i32>,
    /// Published ports as they are: container port -> host port.
    pub ports: BTreeMap<u16, u16>,
    /// Its address on the lab's network, when it has one.
    pub address: Option<Ipv4Addr>,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// Made, never started.
    Created,
    /// Running since.
    Running {
        /// When it was started.
        started_at: Timestamp,
    },
    /// Its first process has ended, and with it all others; the engine clears up and does not say so yet. No engine tells
    /// this: supervision sees it in the kernel ([`Engine::first_process_ended`]).
    Ending,
    /// Paused by somebody.
    Paused,
    /// Ended.
    Exited {
        /// Exit code; 137 is SIGKILL.
        code: i64,
        /// True when the kernel killed it for memory.
        oom: bool,
        /// When it ended.
        finished_at: Timestamp,
        /// The engine's own error, when it could not start it.
        error: String,
    },
    /// The engine is removing it.
    Removing,
    /// The engine began to remove it and could not: it cannot be started any more, only removed again.
    Dead,
}

/// What stands where a service's container belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Absent,
    /// A container of this lab.
    Ours(ContainerSeen),
    /// A container with the wanted name that labd did not make.
    Foreign {
        /// Its id.
        id: String,
    },
}

/// Why an engine call failed, in words for a person.
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

/// An engine event that makes supervision look again. What stands there is always read anew; an event only adds what
/// cannot be read afterwards: that somebody stopped it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nudge {
    /// The service whose container it concerns.
    pub service: String,
    /// The container.
    pub id: String,
    /// What happened.
    pub what: Happened,
    /// When it happened, by the engine's clock.
    pub at: Timestamp,
}

/// What an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// A signal was sent to it through the engine: the beginning of `docker stop`, or of `docker kill`.
    Signal(i32),
    /// It was stopped through the engine: by `docker stop` or `labd stop`, or because the engine itself ends.
    Stopped,
    /// It was stopped, and the engine lives on: somebody wanted it stopped.
    StoppedByHand,
    /// The kernel killed one of its processes for memory, its first one or another.
    OutOfMemory,
    /// Anything else: `start`, `die`, `destroy`, ...
    Other,
}

/// What became of a command in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ran {
    /// It ended.
    Ended {
        /// Its exit code.
        code: i64,
        /// What it printed, both streams mixed, at most 1 MiB.
        output: String,
    },
    /// It had not printed anything in time: a busy machine starts it slowly. It goes on, unseen.
    NotBegun,
    /// It had not ended in time. It goes on, unseen.
    Unfinished,
}

/// How long a command in a container may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Longest time from its start to its first output. Where this is given, `run` counts from that output on: how long a
    /// busy machine takes to start a process says nothing of what the process does. Absent where only the whole counts.
    pub begin: Option<Duration>,
    /// Longest time to its end.
    pub run: Duration,
}

impl ContainerSeen {
    /// How the container differs from what is wanted. What an older labd made says no more than that it does: it works.
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

/// What supervision needs of a container engine.
pub trait Engine: Send + Sync + 'static {
    /// What stands where `service`'s container belongs.
    fn observe(&self, service: &str) -> impl Future<Output = Result<Seen, EngineError>> + Send;
    /// Waits until the first process of a running container has ended, some tenths of a second before the engine says so.
    /// For ever where it cannot be seen.
    fn first_process_ended(&self, container: ContainerSeen) -> impl Future<Output = ()> + Send;
    /// Names of all services that have a container with this lab's label, planned or not.
    fn list(&self) -> impl Future<Output = Result<Vec<String>, EngineError>> + Send;
    /// Makes the lab's network when it is missing. Idempotent.
    fn ensure_network(&self, network: &NetworkSpec) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Removes the lab's network when labd made it. Idempotent; a conflict while containers are attached.
    fn remove_network(&self) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Makes the service's container and puts its files in; does not start it.
    fn create(&self, service: &str, spec: &ContainerSpec) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// Starts a container by id.
    fn start(&self, id: &str) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// SIGTERM, then SIGKILL after the container's own stop timeout.
    fn stop(&self, id: &str) -> impl Future<Output = Result<(), EngineError>> + Send;
    /// SIGKILL.
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

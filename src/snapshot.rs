//! The one typed view of everything: what `labd status`, the page and `/metrics` render, and what `labd status --json`
//! prints as it is. Nothing that shows the lab asks a service itself.
//!
//! The schema is versioned by [`Snapshot::schema`]: fields are added freely, and a field that changes its meaning or
//! goes away raises the number.

pub use labd_gpu::Reading;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{incident::Incident, time::Timestamp};

/// The number in [`Snapshot::schema`].
pub const SCHEMA: u32 = 1;

/// The whole lab at one moment.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Snapshot {
    /// Version of this schema, [`SCHEMA`].
    pub schema: u32,
    /// Time at which this view was put together.
    pub taken_at: Timestamp,
    /// The daemon itself.
    pub labd: DaemonView,
    /// The machine.
    pub node: NodeView,
    /// Whether the container engine answers.
    pub engine: EngineView,
    /// Every service of the plan, in the order they are started.
    pub services: Vec<ServiceView>,
    /// Every GPU, simulated ones marked.
    pub gpus: Vec<GpuView>,
    /// Sources of their readings; empty when all are simulated.
    #[serde(default)]
    pub gpu_sources: Vec<GpuSource>,
    /// Jobs that Ray knows, newest first, at most 50.
    pub jobs: Vec<JobView>,
    /// Training runs and what is kept of them, newest first, at most 50.
    #[serde(default)]
    pub runs: Vec<RunView>,
    /// Lost jobs that labd submitted again, since the ledger began.
    pub resubmissions: u64,
    /// Packages that nodes install for jobs now, or did a moment ago, oldest first.
    #[serde(default)]
    pub installs: Vec<InstallView>,
    /// Size of the lab's package store in bytes; absent until a node reported it.
    #[serde(default)]
    pub package_store_bytes: Option<u64>,
    /// Demands on Ray that cannot be met now.
    pub demands: Vec<DemandView>,
    /// Incidents, newest first, at most 20.
    #[serde(default)]
    pub incidents: Vec<Incident>,
    /// Links that lead a person on.
    pub links: Vec<Link>,
    /// Certificate with which the page is served; absent where that is without TLS.
    #[serde(default)]
    pub tls: Option<TlsView>,
    /// Notices for a person, worst first.
    pub notices: Vec<Notice>,
}

impl Snapshot {
    /// Snapshot of a lab of which nothing was observed yet.
    pub fn unobserved(labd: DaemonView, node: NodeView, taken_at: Timestamp) -> Self {
        Self {
            schema: SCHEMA,
            taken_at,
            labd,
            node,
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
            tls: None,
            notices: Vec::new(),
        }
    }

    /// Services that are still on their way by themselves. One that waits for a service that only a person can help is
    /// not.
    pub fn on_their_way(&self) -> Vec<&ServiceView> {
        use ServiceState as S;
        let open: Vec<&ServiceView> = self.services.iter().filter(|s| !s.state.is_settled()).collect();
        let stuck = self.services.iter().any(|s| matches!(s.state, S::Held | S::Blocked | S::CrashLoop));
        if stuck && open.iter().all(|s| s.state == S::Waiting) { Vec::new() } else { open }
    }
}

/// The running daemon.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct DaemonView {
    /// Version of labd.
    pub version: String,
    /// The lab's name (`lab.name` in `labd.toml`).
    pub lab: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Time at which the daemon started.
    pub started_at: Timestamp,
    /// The configuration file in use; absent when there is none and defaults apply.
    pub config: Option<String>,
}

/// The machine as measured at start-up; loads are refreshed.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct NodeView {
    /// Host name.
    pub hostname: String,
    /// Address used in links.
    pub address: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// NUMA nodes, at least 1.
    pub numa_nodes: u32,
    /// Physical memory in bytes.
    pub memory_bytes: u64,
    /// Memory that can still be taken, in bytes.
    pub memory_available_bytes: u64,
    /// One-minute load average.
    pub load_1m: f64,
    /// Directory in which the engine keeps images, containers and volumes, as it said when it was last reached.
    #[serde(default)]
    pub engine_data: String,
    /// The file systems that matter to the lab (root, data directory, the engine's store).
    pub disks: Vec<DiskView>,
}

/// One file system.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct DiskView {
    /// Mount point.
    pub mount: String,
    /// Size in bytes.
    pub total_bytes: u64,
    /// Free for use, in bytes.
    pub available_bytes: u64,
    /// Number of its device, by which one that is mounted twice is known; for labd itself.
    #[serde(skip)]
    pub device: Option<u64>,
}

/// The container engine as last seen.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum EngineView {
    /// Not asked yet.
    Connecting,
    /// Answering.
    Reachable {
        /// Engine version, such as `28.2.2`.
        version: String,
        /// API version in use, such as `1.41`.
        api: String,
    },
    /// Not answering; containers may well be running.
    Unreachable {
        /// Time since which it has not answered.
        since: Timestamp,
        /// Reason, in one line that ends in a fix.
        reason: String,
    },
}

/// The closed set of states a service can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// Switched off in `labd.toml`.
    Off,
    /// Its image cannot be had; what does not need it runs.
    Unavailable,
    /// Its image is being built or pulled.
    Preparing,
    /// Waits for a service it needs.
    Waiting,
    /// Its container is being created, or runs and does not answer yet.
    Starting,
    /// Runs and fulfils its contract.
    Ready,
    /// Runs, was ready, and does not answer now.
    Unhealthy,
    /// Is being stopped, to be held or to be started again.
    Stopping,
    /// Failed; is started again shortly.
    Backoff,
    /// Failed 5 times in 10 minutes; is tried once a minute.
    CrashLoop,
    /// Stopped by a person; stays down until `labd start`.
    Held,
    /// Something in the way that labd must not touch, such as a foreign container with this name.
    Blocked,
}

impl ServiceState {
    /// The word used in JSON, on the page and in the terminal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Unavailable => "unavailable",
            Self::Preparing => "preparing",
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unhealthy => "unhealthy",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::CrashLoop => "crash-loop",
            Self::Held => "held",
            Self::Blocked => "blocked",
        }
    }

    /// Every state, in the order above: `/metrics` shows one series for each.
    pub const ALL: [Self; 12] = [
        Self::Off,
        Self::Unavailable,
        Self::Preparing,
        Self::Waiting,
        Self::Starting,
        Self::Ready,
        Self::Unhealthy,
        Self::Stopping,
        Self::Backoff,
        Self::CrashLoop,
        Self::Held,
        Self::Blocked,
    ];

    /// Whether nothing more is expected to happen without a person: `labd up` stops waiting for such a service.
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Off | Self::Unavailable | Self::Ready | Self::Held | Self::Blocked | Self::CrashLoop)
    }
}

/// View of one service.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ServiceView {
    /// Name, such as `ray-worker-0`.
    pub name: String,
    /// State.
    pub state: ServiceState,
    /// Time since which it is in this state.
    pub since: Timestamp,
    /// Number of times that labd started it again after a failure, over the journal's whole memory.
    pub restarts: u32,
    /// Reason of the last action or change of state, in one line.
    pub last_reason: String,
    /// Progress of what is going on, such as `step 4/12`; absent when nothing is.
    pub progress: Option<String>,
    /// Time of the next try, in `backoff` and `crash-loop`.
    pub next_try: Option<Timestamp>,
    /// Name of its container; absent while there is none.
    pub container: Option<String>,
    /// Image reference.
    pub image: String,
    /// Address on the lab's network.
    pub address: String,
    /// Whether the lab does without it where its image cannot be had.
    #[serde(default)]
    pub optional: bool,
}

impl ServiceView {
    /// Whether it cannot be had, and the rest of the lab runs without it.
    pub fn is_done_without(&self) -> bool {
        self.state == ServiceState::Unavailable && self.optional
    }
}

/// View of one GPU, or of one partition of it that a worker gets like a GPU.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct GpuView {
    /// Stable identifier: the vendor's UUID, or `SIM-0` and so on.
    pub id: String,
    /// Product name.
    pub name: String,
    /// `nvidia`, `amd` or `simulated`.
    pub vendor: String,
    /// True when there is no such hardware.
    pub simulated: bool,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Service that has it; absent when none does.
    pub worker: Option<String>,
    /// State: whether it can be used.
    #[serde(default)]
    pub state: GpuState,
    /// Trouble because of which it cannot be used; absent for a healthy one.
    #[serde(default)]
    pub trouble: Option<GpuTrouble>,
    /// PCI address such as `0000:41:00.0`, by which the slot is found.
    #[serde(default)]
    pub pci: Option<String>,
    /// NUMA node it is attached to.
    #[serde(default)]
    pub numa_node: Option<u32>,
    /// The GPU it is a partition of, by id.
    #[serde(default)]
    pub parent: Option<String>,
    /// Kind of partition, such as `1g.10gb`.
    #[serde(default)]
    pub partition: Option<String>,
    /// Share of it that Ray has given to tasks and actors, a notebook's and Tune's among them: 0 to 1; absent while Ray does
    /// not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<f64>,
    /// Present reading; absent when nothing tells. Its processes are in [`Self::processes`].
    #[serde(default)]
    pub reading: Option<Reading>,
    /// Processes on it.
    #[serde(default)]
    pub processes: Vec<GpuProcess>,
}

/// State of a GPU: whether it can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuState {
    /// Usable.
    #[default]
    Ok,
    /// Missing: not there yet after a boot, or not any more. Its worker waits for it.
    Missing,
    /// Quarantined: kept from work until a person releases it.
    Quarantined,
}

impl GpuState {
    /// Word for the state on the screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Quarantined => "quarantined",
        }
    }

    /// Every state: `/metrics` shows one series for each.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Missing, Self::Quarantined];
}

/// Trouble of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct GpuTrouble {
    /// Row of the fault table, such as `xid-79`.
    pub code: String,
    /// Meaning of the fault, in one line.
    pub meaning: String,
    /// Remedy for a person, in one line.
    pub remedy: String,
    /// Time since which it has the fault.
    pub since: Timestamp,
}

/// A process on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Its id on the host.
    pub pid: u32,
    /// The service in whose container it runs; absent for one outside of the lab.
    pub service: Option<String>,
    /// GPU memory it holds, in bytes.
    pub memory_bytes: Option<u64>,
}

/// Source of the GPUs' readings.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct GpuSource {
    /// The source, such as `NVML`.
    pub name: String,
    /// Version of the kernel's driver.
    pub driver: Option<String>,
    /// Version of the vendor's library.
    pub library: Option<String>,
    /// Time since which it has said nothing; absent while it does.
    pub stale_since: Option<Timestamp>,
    /// Reason why it gives no readings, in one line.
    pub trouble: Option<String>,
}

/// View of one job: what Ray reports of it, and what the ledger knows beyond that.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct JobView {
    /// Ray's submission id.
    pub submission_id: String,
    /// Status that Ray reports; `PENDING` for one that waits in the ledger for the head.
    pub status: JobStatus,
    /// Name of its Ray Train run, once it has one.
    pub run: Option<String>,
    /// The command line, as submitted.
    pub entrypoint: String,
    /// Time at which it was submitted.
    pub submitted_at: Option<Timestamp>,
    /// Time at which it ended.
    pub ended_at: Option<Timestamp>,
    /// Outcome by the ledger, or else Ray's message, in one line.
    pub message: String,
    /// Outcome by the ledger; absent while it runs, and for one that did not come through labd's front door.
    pub outcome: Option<JobOutcome>,
    /// Number of the attempt: 1 for a person's submission, 2 for its first resubmission, and so on; absent when it did
    /// not come through labd's front door: such a job is never resubmitted.
    pub attempt: Option<u32>,
    /// Submission of a person that this one resubmits.
    pub resubmission_of: Option<String>,
    /// Submission that took this one's place after it was lost.
    pub resubmitted_as: Option<String>,
    /// Reason why it waits, in one line; absent when it does not wait, or nothing tells.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// GPU workers that it runs on now, such as `ray-worker-0`.
    #[serde(default)]
    pub workers: Vec<String>,
    /// Note for its owner about its run, in one line, such as that its id was used before.
    #[serde(default)]
    pub note: Option<String>,
    /// User that its submission names (metadata `labd.user`), in one line; absent when it names none.
    #[serde(default)]
    pub user: Option<String>,
}

impl JobView {
    /// Whether it runs, and on this worker: then it holds the worker's GPU.
    pub fn runs_on(&self, worker: &str) -> bool {
        self.status == JobStatus::Running && self.workers.iter().any(|name| name == worker)
    }
}

/// Status of a job, as Ray reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobStatus {
    /// Waiting for its driver's place.
    Pending,
    /// Running: its driver does.
    Running,
    /// Stopped by a person.
    Stopped,
    /// Succeeded: its driver ended with 0.
    Succeeded,
    /// Failed, whoever's fault that is.
    Failed,
}

impl JobStatus {
    /// Ray's word for the status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Stopped => "STOPPED",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
        }
    }

    /// Whether nothing more happens to it.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Succeeded | Self::Failed)
    }
}

/// Outcome of a job: the meaning of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobOutcome {
    /// It succeeded.
    Succeeded,
    /// A person stopped it.
    Stopped,
    /// It failed by its own error: it is not resubmitted.
    Failed,
    /// It was lost to what happened around it: it is resubmitted, unless that is switched off or was tried too often.
    Lost,
}

/// View of one training run: what Ray reports of it and what the S3 store has of it. A run that was submitted again is
/// the same run.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct RunView {
    /// Name; with the folders above it when it is not at the top of the bucket.
    pub name: String,
    /// Job that ran it last; absent when Ray does not know it.
    pub submission_id: Option<String>,
    /// Status; absent when Ray does not know it, only the store.
    pub status: Option<RunStatus>,
    /// Time at which it was started last; absent when Ray does not know it.
    pub started_at: Option<Timestamp>,
    /// Number of worker groups it had so far, over all jobs that ran it: one more than it was interrupted.
    pub attempts: u32,
    /// Checkpoint it would resume from; absent when there is none, or none that labd looks for.
    pub checkpoint: Option<CheckpointView>,
    /// Number of checkpoints that are kept.
    pub checkpoints: u32,
    /// Size of everything that the store keeps of it, in bytes.
    pub used_bytes: u64,
    /// Time at which the store was last listed; absent when it was not yet, or is not for this run.
    pub looked_at: Option<Timestamp>,
    /// Note for a person, in one line.
    pub note: Option<String>,
}

/// One checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct CheckpointView {
    /// Its name, such as `checkpoint_2026-11-24_03-41-12.123456`.
    pub name: String,
    /// Time at which its last file was written.
    pub at: Timestamp,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Ray's states of a training run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum RunStatus {
    /// Is being set up.
    Initializing,
    /// Waits for its workers.
    Scheduling,
    /// Trains.
    Running,
    /// Recovers from a failure.
    Restarting,
    /// Changes the number of its workers.
    Resizing,
    /// Trained to the end.
    Finished,
    /// Failed in its workers.
    Errored,
    /// Ended with its driver.
    Aborted,
    /// State that this labd does not know.
    #[serde(other)]
    Unknown,
}

impl RunStatus {
    /// Ray's word for the status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "INITIALIZING",
            Self::Scheduling => "SCHEDULING",
            Self::Running => "RUNNING",
            Self::Restarting => "RESTARTING",
            Self::Resizing => "RESIZING",
            Self::Finished => "FINISHED",
            Self::Errored => "ERRORED",
            Self::Aborted => "ABORTED",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// Whether it has not ended.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Initializing | Self::Scheduling | Self::Running | Self::Restarting | Self::Resizing)
    }
}

/// Installation of the packages of one job's environment on one node.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct InstallView {
    /// Service of the node, such as `ray-worker-0`.
    pub node: String,
    /// Job that needs them; empty when the node does not know.
    pub job: String,
    /// Phase that it is in.
    pub phase: InstallPhase,
    /// Time at which it began.
    pub since: Timestamp,
    /// Time at which it was over.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// Number of bytes written so far.
    pub bytes: u64,
    /// Number of packages; 0 while that is not known.
    pub packages: u32,
    /// Reason why it failed, or whatever else is special about it, in one line.
    pub reason: Option<String>,
}

/// Packages as nodes report them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InstallsView {
    /// Installations under way or just over, oldest first.
    pub installs: Vec<InstallView>,
    /// Size of the lab's package store in bytes, as a node reported it last.
    pub store_bytes: Option<u64>,
}

/// Phase of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstallPhase {
    /// Packages are being chosen.
    Resolving,
    /// Packages are fetched and written.
    Installing,
    /// Another node writes the same packages.
    Waiting,
    /// Packages are there.
    Done,
    /// Packages could not be installed.
    Failed,
}

impl InstallPhase {
    /// The word in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resolving => "resolving",
            Self::Installing => "installing",
            Self::Waiting => "waiting",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// Demand on Ray that cannot be met now.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct DemandView {
    /// Resources that one request asks for, such as `4 GPU, 8 CPU`.
    pub asks_for: String,
    /// Number of such requests that wait.
    pub count: u64,
    /// Whether no node of this lab could ever satisfy it.
    pub infeasible: bool,
    /// Resources of the largest node, such as `1 GPU, 8 CPU`.
    pub node_has: String,
    /// Resources of the whole lab, such as `2 GPU`, where [`Self::asks_for`] is what is asked for at once on several nodes and is
    /// more than that; empty otherwise.
    #[serde(default)]
    pub lab_has: String,
}

/// A link for people. Never carries a credential.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Link {
    /// Name of what it leads to.
    pub name: String,
    /// Address.
    pub url: String,
}

/// Certificate with which the page is served over TLS.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct TlsView {
    /// SHA-256 fingerprint, as browsers and `openssl x509 -fingerprint` show it.
    pub fingerprint: String,
    /// Whether labd made it.
    pub self_signed: bool,
    /// Time until which it is valid.
    pub expires_at: Timestamp,
    /// Name for links, where the certificate is not for the address that they would name.
    #[serde(default)]
    pub host: Option<String>,
}

/// Severity of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Will hurt later.
    Warning,
    /// Hurts now.
    Error,
}

/// Notice for a person.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Notice {
    /// Severity.
    pub severity: Severity,
    /// One line: what is wrong, and what would mend it.
    pub text: String,
}

/// Entry of the journal, as the API and `labd events` show it.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Event {
    /// Running number, without gaps unless history was dropped.
    pub seq: i64,
    /// Time at which it happened.
    pub at: Timestamp,
    /// Service it concerns; absent for the daemon itself.
    pub service: Option<String>,
    /// Kind of entry: `state`, `action`, `incident`, `job`, `daemon`, `image`, `config`.
    pub kind: String,
    /// The state entered or the action taken, such as `ready` or `start`.
    pub what: String,
    /// Reason, in one line.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn what_scripts_read_of_the_lab_stays_as_it_was_released() {
        golden::holds::<Snapshot>(
            &serde_json::from_str(include_str!("../tests/data/golden/snapshot.json")).expect("a snapshot"),
        );
        for event in golden::array(include_str!("../tests/data/golden/events.json")) {
            golden::holds::<Event>(&event);
        }
    }
}

//! Incidents: what died, why, and how long each step back took. Values only.
//!
//! The supervision loop opens an incident when a service ends or hangs, and fills in the way back as it sees it; what
//! concerns training is filled in from what Ray and the checkpoint store say. The job ledger reads incidents to tell a job
//! that was lost to infrastructure from one that failed by its own error. For that an end that somebody asked for
//! ([`Cause::Asked`]) is an incident like any other; it is told quietly, and in no list of what died.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Number of incidents kept in memory and shown by the API; the journal has all of them.
pub const KEPT: usize = 100;

/// Beginning of the reason of every [`Cause::OomInside`]: the job ledger, which keeps reasons only, recognises it by
/// this.
pub const OOM_INSIDE: &str = "out of memory: a process in it was killed";

/// Death of one service and its way back.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Incident {
    /// Name of the service, such as `ray-worker-0`.
    pub service: String,
    /// Cause of the end.
    pub cause: Cause,
    /// Cause in one line, such as `container exited 137 (SIGKILL)` or `restarted by hand`.
    pub why: String,
    /// Time of the end, by the engine's clock; for a hang, when it last answered; on request, when the request
    /// came: the container ends up to its stop timeout later.
    pub died_at: Timestamp,
    /// Time at which labd knew.
    pub noticed_at: Timestamp,
    /// Time at which its container ran again.
    pub running_at: Option<Timestamp>,
    /// Time at which it fulfilled its contract again: for a Ray node, ALIVE in the GCS.
    pub ready_at: Option<Timestamp>,
    /// Training runs that it interrupted.
    pub training: Vec<Interrupted>,
    /// Place in the order in which labd learnt of things.
    #[serde(skip)]
    pub order: Order,
}

/// Place of an incident in the order in which this labd learnt of beginnings and ends, counted from 1: a clock can be set
/// so that what is long over seems to be still to come, and then to happen a second time. 0 is what an earlier labd learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Order {
    /// Place of its beginning.
    pub begun: u64,
    /// Place of its end, when its service was ready again.
    pub over: u64,
}

impl Order {
    /// Newest place that any of these incidents has; 0 where there is none.
    pub fn newest(incidents: &[Incident]) -> u64 {
        incidents.iter().map(|incident| incident.order.begun.max(incident.order.over)).max().unwrap_or_default()
    }
}

/// Cause of a service's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Exit by itself, or a kill.
    Exit,
    /// Kill by the kernel for memory.
    Oom,
    /// Kill of a process in its container by the kernel for memory, which the container survives.
    OomInside,
    /// Hang: it ran and did not answer, or had lost its GPU, so labd killed it.
    Hang,
    /// Container that was gone: removed, or lost with the engine.
    Gone,
    /// GPU that cannot be used.
    Gpu,
    /// Request of a person, or new settings.
    Asked,
}

impl Cause {
    /// Every cause: `/metrics` shows one series for each.
    pub const ALL: [Self; 7] = [Self::Exit, Self::Oom, Self::OomInside, Self::Hang, Self::Gone, Self::Gpu, Self::Asked];

    /// Whether the service's container ended by it.
    pub const fn ends(self) -> bool {
        !matches!(self, Self::OomInside)
    }

    /// The word in JSON, in the journal and in `/metrics`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Oom => "oom",
            Self::OomInside => "oom-inside",
            Self::Hang => "hang",
            Self::Gone => "gone",
            Self::Gpu => "gpu",
            Self::Asked => "asked",
        }
    }
}

/// Share of one training run in an incident.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Interrupted {
    /// Name of the Ray Train run.
    pub run: String,
    /// Time at which its training loop ran again; absent until then.
    pub training_at: Option<Timestamp>,
    /// Name of the checkpoint it resumed from; absent when it started from the beginning or has not resumed yet.
    pub checkpoint: Option<String>,
    /// Time between that checkpoint and the death, in milliseconds: work that is done again. Of a GPU that was quarantined, the
    /// time to when its worker's group ended: it is drained, and works on until then.
    pub lost_ms: Option<u64>,
}

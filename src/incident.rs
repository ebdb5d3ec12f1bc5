//! What died, why, and how long each step back took. Values only.
//!
//! The supervision loop opens an incident when a service ends or hangs, and fills in the way back as it sees it; what
//! concerns training is filled in from what Ray and the checkpoint store say. The job ledger reads incidents to tell a job
//! that was lost to infrastructure from one that failed by its own error. For that an end that somebody asked for
//! ([`Cause::Asked`]) is an incident like any other; it is told quietly, and in no list of what died.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Incidents kept in memory and shown by the API; the journal has all of them.
pub const KEPT: usize = 100;

/// How the reason of every [`Cause::OomInside`] begins: the job ledger, which keeps reasons only, knows it again by this.
pub const OOM_INSIDE: &str = "out of memory: a process in it was killed";

/// Setting of a service's memory limit; absent where there is none.
pub fn memory_setting(service: &str) -> Option<String> {
    match service {
        crate::plan::door::NAME => None,
        worker if worker.starts_with("ray-worker-") => Some("services.ray-worker.memory".to_owned()),
        other => Some(format!("services.{other}.memory")),
    }
}

/// One service's death and its way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    /// The service, such as `ray-worker-0`.
    pub service: String,
    /// What ended it.
    pub cause: Cause,
    /// The cause in one line, such as `container exited 137 (SIGKILL)` or `restarted by hand`.
    pub why: String,
    /// When it ended, by the engine's clock; for a hang, when it first did not answer; when it was asked for, when that
    /// was: the container ends up to its stop timeout later.
    pub died_at: Timestamp,
    /// When labd knew.
    pub noticed_at: Timestamp,
    /// When its container ran again.
    pub running_at: Option<Timestamp>,
    /// When it fulfilled its contract again: for a Ray node, ALIVE in the GCS.
    pub ready_at: Option<Timestamp>,
    /// The training runs it interrupted.
    pub training: Vec<Interrupted>,
}

/// What ended a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// It ended by itself or was killed.
    Exit,
    /// The kernel killed it for memory.
    Oom,
    /// The kernel killed a process in its container for memory, and the container lives on.
    OomInside,
    /// It ran and did not answer, or had lost its GPU, so labd killed it.
    Hang,
    /// Its container was gone: removed, or lost with the engine.
    Gone,
    /// Its GPU cannot be worked with.
    Gpu,
    /// A person or new settings asked for it.
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
    pub const fn word(self) -> &'static str {
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

/// One training run's share of an incident.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupted {
    /// Name of the Ray Train run.
    pub run: String,
    /// When its training loop ran again; absent until then.
    pub training_at: Option<Timestamp>,
    /// Name of the checkpoint it resumed from; absent when it began anew or has not resumed yet.
    pub checkpoint: Option<String>,
    /// Time between that checkpoint and the death, in milliseconds: work that is done again.
    pub lost_ms: Option<u64>,
}

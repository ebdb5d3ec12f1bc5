//! The supervisor, which keeps the lab as it should be.
//!
//! One task owns every service: `supervisor`. Whatever happens (an engine event, a health check's result, a command, a list of
//! all containers that says otherwise) only makes it observe again: it observes through the engine, decides, takes one step per
//! service, and observes again. Observations and steps are tasks of their own, at most one per service, so that no slow engine
//! call delays another service or a person's command. These modules are that one task; where a module starts others, it says so.
//!
//! | module | what it does |
//! |---|---|
//! | `supervisor` | the loop, and what it owns |
//! | `service` | one service of it |
//! | `observe` | what is seen of containers; starts a health check for each that runs |
//! | `health_check` | whether a running container fulfils its contract; a task each |
//! | [`gpu_check`] | whether its GPU is still there inside it; part of that task |
//! | `inputs` | what else a decision is made from |
//! | [`decide`] | the decision. Pure |
//! | `act` | the step that follows |
//! | `follow` | a death, until the service is back and training again |
//! | `incidents` | deaths in words. Pure |
//! | `oom` | memory that ran out inside containers. Pure |
//! | `segments` | what ended processes left in shared memory; a task after a return |
//! | `commands` | what people ask for, a new configuration, other GPUs |
//! | `publish` | what is shown |
//! | `view` | the snapshot. Pure |
//! | `memory` | what the journal keeps for the next labd |
//! | `sim` | all of this over simulated days, with a seed |

mod act;
mod commands;
pub mod decide;
mod follow;
pub mod gpu_check;
mod health_check;
mod incidents;
mod inputs;
mod memory;
mod observe;
mod oom;
mod publish;
mod segments;
mod service;
#[cfg(test)]
mod sim;
mod supervisor;
mod view;

pub use health_check::{Ask, Http};
pub use memory::EVENTS_HEARD;
pub use supervisor::{DoorView, Parts, RESYNC, Reload, Replan, Scrapes, run};
pub use view::METRICS_MISSING;

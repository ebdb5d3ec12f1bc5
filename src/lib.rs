//! labd runs a lab's GPU machine: Ray, MinIO, metrics and Jupyter as containers that are up and stay up.
//!
//! One direction, no cycles:
//!
//! ```text
//! labd.toml ----.
//!               +--> plan (pure) --> ServiceSpec per service --> supervise: one loop
//! node facts ---'                                                 decide(situation, memory, now) (pure)
//!                                                                    |            ^
//! engine (bollard): events, inspect ---> Seen -----------------------'            |
//! health probes, Ray's GCS ------------> Health --------------------------------->'
//! GPU probes (processes), /dev/kmsg --> inventory: slots, quarantine (pure) --> plan, Wanted, snapshot
//! submissions ---> front door ---> job ledger: decide(Ray's word, incidents) (pure) ---> Ray's job API
//! every transition ---> journal (SQLite, one writer thread)
//! current state   ----> one Snapshot (watch channel) ---> http: API, SSE, page, /metrics ---> cli
//! ```
//!
//! | task | owns | hears | tells |
//! |---|---|---|---|
//! | [`supervise`] loop | every service's memory | nudges, probe results, commands (`mpsc`) | the snapshot and the incidents (`watch`) |
//! | prober, one per running container | nothing | the container it probes | health (`mpsc`) |
//! | [`engine::listen`] | the connection for events | the engine | whether it answers (`watch`), nudges (`mpsc`) |
//! | [`engine::images`] | image builds and pulls | which images are wanted | their state (`watch`) |
//! | [`probe`], one per vendor | the probe's process | its lines | devices and readings (`watch`) |
//! | [`node::gpu::keeper`] | which worker has which GPU, quarantines | probes, the kernel's log, the engine, people | the inventory (`watch`) |
//! | [`jobs`] keeper | the job ledger | the front door (`mpsc`), Ray's word, incidents | the jobs (`watch`) |
//! | [`ray`] watcher | connection to the GCS and the job API | the head's ports | nodes, jobs (`watch`) |
//! | [`checkpoints`] watcher | what it saw | the store's address, whether a run trains | runs' checkpoints (`watch`) |
//! | [`probe`] watcher, one per vendor | the GPU probe's process | the probe's lines | what GPUs there are and do (`watch`) |
//! | [`journal`] writer thread | the database | entries (`mpsc`) | events (`broadcast`), its health (`watch`) |
//! | [`http`] servers | listeners | requests | commands (`mpsc`) |

pub mod bug;
pub mod checkpoints;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
mod db;
pub mod doctor;
pub mod engine;
mod files;
#[doc(hidden)]
pub mod fuzz;
#[cfg(test)]
mod golden;
pub mod http;
pub mod incident;
pub mod install;
pub mod jobs;
pub mod journal;
pub mod minio;
pub mod node;
pub mod pins;
pub mod plan;
pub mod probe;
pub mod ray;
pub mod recovery;
pub mod secret;
pub mod secrets;
pub mod snapshot;
pub mod supervise;
mod text;
pub mod time;

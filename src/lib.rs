//! labd runs a lab's GPU machine: Ray, MinIO, metrics and Jupyter as containers that are up and stay up.
//!
//! `ARCHITECTURE.md` in the repository says where to start reading: how the parts work together, which task owns what, and in
//! which layer each of the modules below stands.

pub mod accounts;
pub mod backoff;
pub mod bug;
pub mod checkpoints;
pub mod cli;
pub mod config;
pub mod control;
pub mod credentials;
pub mod daemon;
mod db;
pub mod desired;
pub mod doctor;
pub mod door;
pub mod engine;
mod files;
pub mod findings;
pub mod front_door;
#[doc(hidden)]
pub mod fuzz;
#[cfg(test)]
mod golden;
pub mod gpus;
pub mod history;
pub mod http;
pub mod incident;
pub mod install;
pub mod jobs;
pub mod journal;
pub mod minio;
pub mod node;
pub mod notify;
pub mod pins;
pub mod plan;
pub mod ray;
pub mod recovery;
pub mod secret;
pub mod services;
pub mod snapshot;
pub mod spec;
pub mod supervise;
mod text;
pub mod time;
pub mod tls;
pub mod training;

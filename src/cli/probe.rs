//! `labd probe`: the probes that need no vendor's library, in a process of their own all the same: a driver that hangs takes
//! whoever reads its files along.
//!
//! * `smi`: `nvidia-smi`, once a second.

mod smi;

use std::io;

use super::{
    args::Probe,
    exit::{Exit, Failure},
};

/// Prints lines until standard input ends or nobody reads any more; both are ordinary ends.
pub(super) async fn run(source: Probe) -> Result<(), Failure> {
    let kernel = || labd_gpu::kernel::run(&crate::node::root(), &mut io::stdout());
    match source {
        Probe::Kernel => match tokio::task::spawn_blocking(kernel).await {
            Ok(written) => Ok(written?),
            Err(e) => Err(Failure::new(Exit::Failure, format!("the probe broke off: {e}"))),
        },
        Probe::NvidiaSmi => Ok(smi::run().await?),
    }
}

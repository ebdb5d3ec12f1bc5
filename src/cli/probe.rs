//! `labd probe`: the probes that need no vendor's library, in a process of their own all the same: a driver that hangs takes
//! whoever reads its files along.

use std::{io, path::Path};

use super::{
    args::Probe,
    exit::{Exit, Failure},
};

/// Prints lines until standard input ends or nobody reads any more; both are ordinary ends.
pub(super) async fn run(source: Probe) -> Result<(), Failure> {
    let probed = tokio::task::spawn_blocking(move || match source {
        Probe::Kernel => labd_gpu::kernel::run(Path::new("/"), &mut io::stdout()),
    });
    match probed.await {
        Ok(written) => Ok(written?),
        Err(e) => Err(Failure::new(Exit::Failure, format!("the probe broke off: {e}"))),
    }
}

//! AMD's GPUs as the kernel itself shows them, where ROCm is not on the host: only files are read, so nothing can
//! crash, and everything is pure over a root path, `/` on a real machine.
//!
//! * `nodes`: which GPUs there are, and which device nodes belong to each.
//! * `readings`: their present readings.
//! * `names`: their product names.
//!
//! A driver that hangs makes reads of its files hang too, so [`run`] is a probe of its own like the others.

mod names;
mod nodes;
mod readings;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Read, Write},
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

pub use self::readings::GONE;
use crate::{
    Device, Reading, Vendor, files,
    line::{Hello, Line, Source, Trouble},
    pci,
};

/// Time between two readings.
const PERIOD: Duration = Duration::from_secs(1);

/// Code of [`Trouble`] when there are AMD GPUs and the kernel's driver runs none of them.
pub const NO_DRIVER: &str = "amdgpu-not-loaded";

/// AMD GPUs, and partitions of them, that containers can be given, by PCI address. The partitions of one GPU have the
/// first's id as `parent`, the first one too.
pub fn inventory(root: &Path) -> Vec<Device> {
    nodes::nodes(root).into_iter().map(|n| n.device).collect()
}

/// Present readings of `devices`, in their order. One that the kernel no longer has says so in its `error` ([`GONE`]).
pub fn readings(root: &Path, devices: &[Device]) -> Vec<Reading> {
    let nodes = nodes::nodes(root);
    devices
        .iter()
        .map(|device| match nodes.iter().find(|n| n.device.id == device.id) {
            Some(node) => readings::reading(root, node),
            None => readings::gone(&device.id),
        })
        .collect()
}

/// Whether an AMD GPU is there that no driver has, and that the lab would use. Beside another vendor's GPU, graphics of a
/// CPU and cards that may be there for the picture alone are none.
pub fn lacks_driver(root: &Path) -> bool {
    let bus = pci::bus(root);
    let beside = bus.iter().any(|g| g.vendor != Vendor::Amd);
    let wanted = |g: &pci::BusGpu| g.vendor == Vendor::Amd && (!beside || !(g.integrated || g.vga));
    bus.iter().any(|g| wanted(g) && g.driver.is_none() && !g.share)
}

/// Version of the driver: the module's own where it has one (AMD's packaged driver), else the kernel's release.
fn driver(root: &Path) -> Option<String> {
    files::text(&root.join("sys/module/amdgpu/version"))
        .or_else(|| files::text(&root.join("proc/sys/kernel/osrelease")))
}

/// Runs the probe: prints the lines of [`crate::line`] on `out` once a second. Ends without an error when its standard
/// input ends, and with one when nobody reads any more.
pub fn run(root: &Path, out: &mut impl Write) -> io::Result<()> {
    run_until(root, io::stdin(), out, PERIOD)
}

fn run_until(root: &Path, input: impl Read + Send + 'static, out: &mut impl Write, period: Duration) -> io::Result<()> {
    let ended = end_of(input);
    Line::Hello(Hello { source: Source::Kernel, driver: driver(root), library: None }).write(out)?;
    let mut told: Option<Vec<Device>> = None;
    loop {
        // One look for both: a GPU that goes away in between is told as lost once.
        let nodes = nodes::nodes(root);
        let found: Vec<Device> = nodes.iter().map(|n| n.device.clone()).collect();
        if told.as_ref() != Some(&found) {
            let lost = told.iter().flatten().filter(|d| !found.iter().any(|f| f.id == d.id));
            let lost: Vec<Reading> = lost.map(|d| readings::gone(&d.id)).collect();
            if !lost.is_empty() {
                Line::Readings(lost).write(out)?;
            }
            Line::Inventory(found.clone()).write(out)?;
        }
        Line::Readings(nodes.iter().map(|n| readings::reading(root, n)).collect()).write(out)?;
        // The last word of each round: readings, even of nothing, would be the end of it.
        if found.is_empty() && lacks_driver(root) {
            let text = "the kernel runs no AMD GPU that is there; `modprobe amdgpu` loads its driver".to_owned();
            Line::Trouble(Trouble { code: NO_DRIVER.to_owned(), text }).write(out)?;
        }
        told = Some(found);
        if ended.recv_timeout(period) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
    }
}

/// Channel that tells when `input` has ended. Its thread is left behind where it never does: the process ends before
/// it.
fn end_of(mut input: impl Read + Send + 'static) -> mpsc::Receiver<()> {
    let (tell, ended) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(1..) = input.read(&mut buffer) {}
        let _ = tell.send(());
    });
    ended
}

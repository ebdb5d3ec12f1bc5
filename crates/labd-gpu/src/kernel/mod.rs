//! AMD's GPUs as the kernel itself shows them, where ROCm is not on the host: only files are read, so nothing can
//! crash, and everything is pure over a root path, `/` on a real machine.
//!
//! * `nodes`: which GPUs there are, and which device nodes belong to each.
//! * `readings`: their present readings.
//! * `metrics`: whether they are throttled.
//! * `names`: their product names.
//!
//! A driver that hangs makes reads of its files hang too, so [`run`] is a probe of its own like the others.

mod metrics;
mod names;
mod nodes;
mod readings;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

pub use self::readings::GONE;
use crate::{
    Device, Reading, Throttle, Vendor, files,
    line::{Hello, Line, Source, Trouble},
    pci, rocm,
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

/// Reader of GPUs' present values. It remembers counters from one look to the next.
#[derive(Default)]
pub struct Reader {
    throttling: metrics::Throttling,
}

impl Reader {
    /// Present readings of `devices`, in their order. One that the kernel no longer has says so in its `error` ([`GONE`]).
    pub fn readings(&mut self, root: &Path, devices: &[Device]) -> Vec<Reading> {
        let nodes = nodes::nodes(root);
        let found: Vec<_> = devices.iter().map(|d| nodes.iter().find(|n| n.device.id == d.id)).collect();
        let mut known = self.of_nodes(root, found.iter().copied().flatten()).into_iter();
        devices
            .iter()
            .zip(found)
            .map(|(device, node)| node.and_then(|_| known.next()).unwrap_or_else(|| readings::gone(&device.id)))
            .collect()
    }

    fn of_nodes<'a>(&mut self, root: &Path, nodes: impl Iterator<Item = &'a nodes::Node>) -> Vec<Reading> {
        // What is told of a GPU is told of all its partitions: they are slowed down together.
        let mut told: BTreeMap<&str, Vec<Throttle>> = BTreeMap::new();
        let all = nodes
            .map(|node| {
                let reading = readings::reading(root, node);
                let Some(pci) = node.device.pci.as_deref().filter(|_| !reading.asleep && reading.error.is_none())
                else {
                    return reading;
                };
                let reasons = told.entry(pci);
                let reasons = reasons.or_insert_with(|| self.throttling.reasons(pci, &pci::directory(root, pci)));
                Reading { throttled: reasons.clone(), ..reading }
            })
            .collect();
        self.throttling.keep(|pci| told.contains_key(pci));
        all
    }
}

/// Whether an AMD GPU is there that no driver has, and that the lab would use: any, where no other vendor's is beside it.
pub fn lacks_driver(root: &Path) -> bool {
    let (own, others): (Vec<_>, Vec<_>) = pci::bus(root).into_iter().partition(|gpu| gpu.vendor == Vendor::Amd);
    own.iter().any(|gpu| gpu.lacks_driver(others.is_empty()))
}

/// Version of the driver: the module's own where it has one (AMD's packaged driver), else the kernel's release.
fn driver(root: &Path) -> Option<String> {
    files::text(&root.join("sys/module/amdgpu/version"))
        .or_else(|| files::text(&root.join("proc/sys/kernel/osrelease")))
}

/// Library that the host has and that is too old to be asked, in words for a person: why these files are, instead.
fn not_asked(root: &Path) -> Option<String> {
    let Some(rocm::Library::TooOld(version)) = rocm::find(root) else { return None };
    let version = version.map_or_else(|| "ROCm SMI".to_owned(), |version| format!("ROCm {version}"));
    Some(format!("{version} (not asked: older than 6.0)"))
}

/// Runs the probe: prints the lines of [`crate::line`] on `out` once a second. Ends without an error when its standard
/// input ends, and with one when nobody reads any more.
pub fn run(root: &Path, out: &mut impl Write) -> io::Result<()> {
    run_until(root, io::stdin(), out, PERIOD)
}

fn run_until(root: &Path, input: impl Read + Send + 'static, out: &mut impl Write, period: Duration) -> io::Result<()> {
    let ended = end_of(input);
    Line::Hello(Hello { source: Source::Kernel, driver: driver(root), library: not_asked(root) }).write(out)?;
    let mut told: Option<Vec<Device>> = None;
    let mut reader = Reader::default();
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
        Line::Readings(reader.of_nodes(root, nodes.iter())).write(out)?;
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

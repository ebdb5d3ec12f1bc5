//! labd's probe for NVIDIA's GPUs: asks NVML once a second and prints [`labd_gpu::line`]s, until nobody reads them or its
//! standard input closes. It may hang or die in the library: that is what it is a process of its own for.
//!
//! * `nvml`: the calls.
//! * `convert`: what is made of the answers. Pure.
//! * here: the rounds, and when the library is opened again.

mod convert;
mod nvml;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::{self, ExitCode},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use labd_gpu::{
    Device, Reading, Vendor,
    line::{Hello, LIBRARY_MISSING, Line, Source, Trouble},
    nvidia_driver,
    pci::{self, Power},
};
use nvml_wrapper::{Nvml, error::NvmlError};

/// Variable that names a folder in place of `/`, for tests.
const ROOT: &str = "LABD_SYS_ROOT";

/// Time between two rounds: a probe prints a line at least once a second.
const PERIOD: Duration = Duration::from_secs(1);

/// Time between two tries to open a library that does not start, or that knows no GPU.
const RETRY: Duration = Duration::from_secs(3);

/// Time between two tries to see a GPU again that does not answer. A library that is open may never see it again; but
/// opening it again also stops and starts, for some seconds, every GPU that nothing else uses.
const REOPEN: Duration = Duration::from_mins(1);

/// Longest time that a call may go on after the input has ended.
const LAST_CALL: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let root = env::var_os(ROOT).map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let driver = nvidia_driver::version(&root);
    let hello = Hello { source: Source::Nvml, driver, library: None };
    let mut probe =
        Probe { root, told: Told::new(hello), ended: end_of_input(), inventory: Vec::new(), bus: BTreeSet::new() };
    match probe.run() {
        Err(End::LibraryMissing | End::Unread) => ExitCode::FAILURE,
        Ok(()) | Err(End::Input) => ExitCode::SUCCESS,
    }
}

/// Reason why the probe ends.
enum End {
    /// End of the input: labd is gone, or wants no more.
    Input,
    /// Output that nobody reads.
    Unread,
    /// Missing library: something else may be asked.
    LibraryMissing,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Unread
    }
}

struct Probe {
    root: PathBuf,
    told: Told,
    ended: mpsc::Receiver<()>,
    /// Inventory that was printed last.
    inventory: Vec<Device>,
    /// Addresses that were on the bus then.
    bus: BTreeSet<String>,
}

impl Probe {
    fn run(&mut self) -> Result<(), End> {
        self.told.hello()?;
        loop {
            match nvml::open() {
                Ok(nvml) => {
                    self.told.versions(nvml::hello(&nvml))?;
                    if let Err(e) = self.watch(&nvml)? {
                        drop(nvml);
                        self.complain(&e)?;
                    }
                }
                Err(e @ NvmlError::LibloadingError(_)) => {
                    self.told.trouble(&e)?;
                    return Err(End::LibraryMissing);
                }
                Err(e) => self.complain(&e)?,
            }
        }
    }

    /// Runs rounds, until the library must be opened again: an error where it no longer answers at all.
    fn watch(&mut self, nvml: &Nvml) -> Result<Result<(), NvmlError>, End> {
        let (opened, bus) = (Instant::now(), on_the_bus(&self.root));
        let mut seen = None;
        loop {
            let start = Instant::now();
            let off = if self.bus == bus { off(&self.inventory, &self.root) } else { BTreeMap::new() };
            // Indices are those of the inventory as long as there are as many of them.
            let known = self.inventory.iter().map(|d| d.index).collect::<BTreeSet<_>>().len();
            let sleeps = |index, count| off.contains_key(&index) && usize::try_from(count) == Ok(known);
            let slots = match nvml::look(nvml, sleeps, || self.told.alive())? {
                Ok(slots) => slots,
                Err(e) => return Ok(Err(e)),
            };
            let sight = sight(&slots);
            if seen.as_ref() != Some(&sight) {
                self.tell(devices(&slots, &self.inventory, &bus, &self.root))?;
                self.bus.clone_from(&bus);
                seen = Some(sight);
            }
            let (mut readings, mut failing) = (Vec::new(), false);
            for slot in &slots {
                let known = self.inventory.iter().filter(|d| d.index == slot.index);
                match &slot.found {
                    Some(Ok(found)) => {
                        let own = found.readings();
                        failing |= own.iter().any(|r| r.error.is_some());
                        readings.extend(own);
                    }
                    Some(Err(e)) => {
                        let symbol = convert::symbol(e);
                        failing = true;
                        readings.extend(known.map(|d| Reading::of_failed(&d.id, &symbol)));
                    }
                    // A library that is opened again cannot wake it either.
                    None if off.get(&slot.index) == Some(&Power::Failed) => {
                        readings.extend(known.map(|d| Reading::of_failed(&d.id, pci::POWER_FAILED)));
                    }
                    None => readings.extend(known.map(|d| Reading::of_sleeping(&d.id))),
                }
                self.told.alive()?;
            }
            self.told.line(&Line::Readings(readings))?;
            if failing {
                // What could not be described is when it answers again.
                seen = None;
            }
            if reopens(opened.elapsed(), slots.is_empty(), failing, on_the_bus(&self.root) != bus) {
                return Ok(Ok(()));
            }
            self.pause(PERIOD.saturating_sub(start.elapsed()))?;
        }
    }

    /// Prints a new inventory, after last readings of the GPUs that are gone.
    fn tell(&mut self, devices: Vec<Device>) -> Result<(), End> {
        let gone = self.inventory.iter().filter(|d| !devices.iter().any(|new| new.id == d.id));
        let gone: Vec<Reading> =
            gone.map(|d| Reading::of_failed(&d.id, &convert::symbol(&NvmlError::NotFound))).collect();
        if !gone.is_empty() {
            self.told.line(&Line::Readings(gone))?;
        }
        if devices != self.inventory || !self.told.inventory {
            self.told.line(&Line::Inventory(devices.clone()))?;
            self.told.inventory = true;
        }
        self.inventory = devices;
        Ok(())
    }

    /// Prints the error once a second until it is time to try again.
    fn complain(&mut self, error: &NvmlError) -> Result<(), End> {
        for _ in 0..RETRY.as_secs() {
            self.told.trouble(error)?;
            self.pause(PERIOD)?;
        }
        Ok(())
    }

    fn pause(&self, time: Duration) -> Result<(), End> {
        match self.ended.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(End::Input),
        }
    }
}

/// Whether the library is opened again: it knows only the GPUs that were there when it was.
fn reopens(open_for: Duration, empty: bool, failing: bool, bus_changed: bool) -> bool {
    bus_changed || (empty && open_for >= RETRY) || (failing && open_for >= REOPEN)
}

/// GPUs that there are, to notice a change.
type Sight = Vec<(u32, Option<Result<(bool, Vec<String>), String>>)>;

fn sight(slots: &[nvml::Slot<'_>]) -> Sight {
    let of = |found: &nvml::Found<'_>| (found.divided(), found.ids().map(str::to_owned).collect());
    let seen = |answer: &convert::Answer<nvml::Found<'_>>| answer.as_ref().map(of).map_err(convert::symbol);
    slots.iter().map(|s| (s.index, s.found.as_ref().map(seen))).collect()
}

/// GPUs that are not to be asked, by index: the kernel has put them to sleep, or failed to.
fn off(inventory: &[Device], root: &Path) -> BTreeMap<u32, Power> {
    let power = |d: &Device| Some((d.index, pci::power(root, d.pci.as_deref()?)));
    inventory.iter().filter_map(power).filter(|(_, power)| *power != Power::On).collect()
}

/// Inventory. A GPU that sleeps or does not answer is what it was before; one that never did is known by the PCI address that is
/// left over.
fn devices(slots: &[nvml::Slot<'_>], before: &[Device], bus: &BTreeSet<String>, root: &Path) -> Vec<Device> {
    let described = |slot: &nvml::Slot<'_>| slot.found.as_ref()?.as_ref().ok()?.devices(slot.index, root, before).ok();
    let (answering, silent): (Vec<_>, Vec<_>) = slots.iter().map(|s| (s, described(s))).partition(|(_, d)| d.is_some());
    let mut all: Vec<Device> = answering.into_iter().filter_map(|(_, devices)| devices).flatten().collect();
    for (slot, _) in silent {
        let new = |d: &&Device| d.index == slot.index && !all.iter().any(|a| a.id == d.id);
        let mut known: Vec<Device> = before.iter().filter(new).cloned().collect();
        if known.is_empty() {
            let left = bus.iter().find(|pci| !all.iter().any(|d| d.pci.as_ref() == Some(pci)));
            let unseen = nvidia_driver::unseen(root, slot.index, left.cloned());
            let id = match &slot.found {
                Some(Ok(found)) => found.id.clone(),
                _ => unseen.id.clone(),
            };
            known.push(Device { id, ..unseen });
        }
        all.extend(known);
    }
    all.sort_by_key(|d| d.index);
    all
}

fn on_the_bus(root: &Path) -> BTreeSet<String> {
    pci::gpus(root).into_iter().filter(|(_, vendor)| *vendor == Vendor::Nvidia).map(|(pci, _)| pci).collect()
}

/// Lines that were printed, and when.
struct Told {
    hello: Hello,
    /// Whether there was an inventory.
    inventory: bool,
    last: Instant,
}

impl Told {
    fn new(hello: Hello) -> Self {
        Self { hello, inventory: false, last: Instant::now() }
    }

    fn line(&mut self, line: &Line) -> Result<(), End> {
        line.write(&mut io::stdout().lock())?;
        self.last = Instant::now();
        Ok(())
    }

    fn hello(&mut self) -> Result<(), End> {
        self.line(&Line::Hello(self.hello.clone()))
    }

    /// Prints the versions if they are others than before.
    fn versions(&mut self, hello: Hello) -> Result<(), End> {
        if self.hello == hello {
            return Ok(());
        }
        self.hello = hello;
        self.hello()
    }

    /// Shows that the calls return, when they take longer than usual together: a hello changes nothing.
    fn alive(&mut self) -> Result<(), End> {
        if self.last.elapsed() >= PERIOD { self.hello() } else { Ok(()) }
    }

    fn trouble(&mut self, error: &NvmlError) -> Result<(), End> {
        let code = convert::symbol(error);
        let text = match code.as_str() {
            LIBRARY_MISSING => format!("{error}; install NVIDIA's driver, or its package with libnvidia-ml.so.1"),
            "NVML_ERROR_LIB_RM_VERSION_MISMATCH" => {
                "the driver that runs and its library have different versions; reboot to run the installed driver"
                    .to_owned()
            }
            "NVML_ERROR_DRIVER_NOT_LOADED" => {
                "the kernel's driver is not loaded; see `modprobe nvidia` and `dmesg | grep NVRM`".to_owned()
            }
            _ => format!("{error}; see what `nvidia-smi` says"),
        };
        self.line(&Line::Trouble(Trouble { code, text }))
    }
}

/// Channel that tells when the standard input has ended. A call that then does not return is not waited for: the
/// process is aborted, which runs nothing of the library's, as an ordinary exit would.
fn end_of_input() -> mpsc::Receiver<()> {
    let (tell, ended) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while matches!(io::stdin().read(&mut buffer), Ok(n) if n > 0) {}
        drop(tell);
        thread::sleep(LAST_CALL);
        process::abort();
    });
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_opened_again_when_it_may_see_more() {
        let (soon, later) = (Duration::ZERO, REOPEN);
        assert!(reopens(soon, false, false, true), "the bus changed");
        assert!(!reopens(soon, true, false, false) && reopens(RETRY, true, false, false), "no GPU at all");
        assert!(!reopens(RETRY, false, true, false) && reopens(later, false, true, false), "a GPU does not answer");
        assert!(!reopens(later, false, false, false), "all is well");
    }
}

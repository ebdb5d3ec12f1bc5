//! labd's probe for AMD's GPUs: asks ROCm SMI once a second and prints [`labd_gpu::line`]s, until nobody reads them or its
//! standard input closes. It may hang or die in the library: that is what it is a process of its own for.
//!
//! * `rsmi.rs`: the library. It finds its GPUs once, so a change of them is answered by becoming a new process.
//! * `overlay.rs`: the library's answers and the kernel's own files, put together. Pure.

mod overlay;
mod rsmi;

use std::{
    env,
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, exit},
    thread,
    time::{Duration, Instant},
};

use labd_gpu::{
    Device, Reading, Vendor,
    kernel::{self, NO_DRIVER},
    line::{Hello, Line, Source, Trouble},
    pci,
};

/// Time between two prints of readings.
const PERIOD: Duration = Duration::from_secs(1);

/// Number of seconds without a GPU of the library's after which a new process tries again, where the kernel has one.
const TRY_AGAIN_AFTER: u32 = 5;

/// Variable that makes the library's locks its own. By default they lie in `/dev/shm`, shared with everything else that
/// asks: whoever hangs while holding one hangs all the others. No GPU is hidden by it, as by the variables of ROCR and
/// HIP.
const OWN_LOCKS: &str = "RSMI_MUTEX_THREAD_ONLY";

/// Variable that names a folder in place of `/`, for tests.
const ROOT: &str = "LABD_SYS_ROOT";

fn main() -> ExitCode {
    if env::var_os(OWN_LOCKS).is_none() {
        become_new();
    }
    end_with_input();
    let root = env::var_os(ROOT).map_or_else(|| PathBuf::from("/"), PathBuf::from);
    // It returns only when nobody reads, which is how a probe ends.
    match run(&root, &mut io::stdout().lock()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Ok(()) | Err(_) => ExitCode::FAILURE,
    }
}

/// Prints lines forever.
fn run(root: &Path, to: &mut impl Write) -> io::Result<()> {
    let listed = kernel::inventory(root);
    let mut library = match rsmi::Library::start() {
        Ok(library) => library,
        Err(code) => {
            Line::Hello(Hello { source: Source::RocmSmi, driver: None, library: None }).write(to)?;
            let text = "ROCm SMI does not start; see what `rocm-smi` says";
            return complain(root, to, &listed, &Trouble { code: rsmi::symbol(code).into(), text: text.into() });
        }
    };
    Line::Hello(library.hello()).write(to)?;
    if let Some(trouble) = nothing(root, &listed, library.count()) {
        return complain(root, to, &listed, &trouble);
    }

    let cards: Vec<_> = (0..library.count()).map(|index| library.card(index)).collect();
    let devices = overlay::devices(listed.clone(), &cards);
    if !devices.is_empty() && devices.iter().all(|(_, index)| index.is_none()) {
        let text = "ROCm SMI's GPUs and the kernel's do not match by render node or PCI address";
        return complain(root, to, &listed, &Trouble { code: NO_DEVICE.into(), text: text.into() });
    }
    Line::Inventory(devices.iter().map(|(device, _)| device.clone()).collect()).write(to)?;
    let mut reader = kernel::Reader::default();
    every_second(|| {
        let kernel = reader.readings(root, &listed).into_iter().zip(&devices);
        let kernel = kernel.map(|(reading, (device, _))| Reading { id: device.id.clone(), ..reading });
        if kernel::inventory(root) != listed {
            // The last word on one that is gone.
            Line::Readings(kernel.collect()).write(to)?;
            become_new();
            return Ok(());
        }
        let readings = devices.iter().zip(kernel).map(|((device, index), kernel)| {
            // The library reads the driver's files, which wakes a GPU that sleeps, and one that cannot be woken fails.
            let off = kernel.asleep || kernel.error.as_deref() == Some(pci::POWER_FAILED);
            let said = index.filter(|_| !off).map(|index| library.reading(index)).unwrap_or_default();
            overlay::reading(device, said, kernel)
        });
        Line::Readings(readings.collect()).write(to)
    })
}

/// Code of [`Trouble`] when there is no GPU.
const NO_DEVICE: &str = "no-device";

/// Reason why there is nothing to read, when the kernel lists `listed` and the library counts `known`.
fn nothing(root: &Path, listed: &[Device], known: u32) -> Option<Trouble> {
    if listed.is_empty()
        && !kernel::lacks_driver(root)
        && pci::gpus(root).iter().any(|(_, vendor)| *vendor != Vendor::Amd)
    {
        // Graphics of a CPU beside another vendor's GPUs.
        return None;
    }
    let (code, text) = match (listed.len(), known) {
        (0, 0) if !root.join("sys/module/amdgpu").exists() => {
            (NO_DRIVER, "the kernel's driver `amdgpu` is not loaded; load it with `modprobe amdgpu`".to_owned())
        }
        (0, 0) => (NO_DEVICE, "the driver `amdgpu` has no GPU that computes; see `dmesg | grep amdgpu`".to_owned()),
        (0, known) => {
            (NO_DEVICE, format!("ROCm SMI has {known} GPUs, the kernel lists none in /sys/class/kfd/kfd/topology"))
        }
        // The crate drops what the library's start answered; a library that started has the kernel's GPUs.
        (listed, 0) => (
            rsmi::symbol(rocm_smi_lib::RocmErr::RsmiStatusInitError),
            format!("the kernel lists {listed} GPUs, ROCm SMI none: it did not start; see what `rocm-smi` says"),
        ),
        _ => return None,
    };
    Some(Trouble { code: code.into(), text })
}

/// Prints the trouble once a second, until the kernel's list is another one or, where the kernel has GPUs, it is time
/// to try again. Those GPUs compute without ROCm SMI: they are listed and read as well as the kernel can.
fn complain(root: &Path, to: &mut impl Write, listed: &[Device], trouble: &Trouble) -> io::Result<()> {
    if !listed.is_empty() {
        Line::Inventory(listed.to_vec()).write(to)?;
    }
    let mut rounds = 0;
    let mut reader = kernel::Reader::default();
    every_second(|| {
        rounds += 1;
        if kernel::inventory(root) != listed || (rounds > TRY_AGAIN_AFTER && !listed.is_empty()) {
            become_new();
            rounds = 0;
        }
        if !listed.is_empty() {
            Line::Readings(reader.readings(root, listed)).write(to)?;
        }
        // The last word of each second, so that it is not taken for over.
        Line::Trouble(trouble.clone()).write(to)
    })
}

/// Calls `round` once a second until it fails.
fn every_second(mut round: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        let start = Instant::now();
        round()?;
        thread::sleep(PERIOD.saturating_sub(start.elapsed()));
    }
}

/// Replaces this process by a new one of the same program, which keeps its number and its pipes. Returns only if it cannot.
fn become_new() {
    // What failed shows in that nothing changes; there is nobody to tell.
    let _ = Command::new("/proc/self/exe").args(env::args_os().skip(1)).env(OWN_LOCKS, "1").exec();
}

/// Ends this process when its standard input does: then labd is gone.
fn end_with_input() {
    thread::spawn(|| {
        let mut buffer = [0; 64];
        while matches!(io::stdin().read(&mut buffer), Ok(n) if n > 0) {}
        exit(0);
    });
}

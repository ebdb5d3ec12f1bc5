//! What can be asked about a vendor's GPUs on this machine, best first, and whether it has any. Looks at files only; `root` is
//! `/`, but for tests.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use labd_gpu::{Vendor, line::Source};

use super::program::{Launch, Program};

/// `labd-probe-nvidia`, built for a glibc of its own; empty in a build without probes.
const NVIDIA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/labd-probe-nvidia"));
/// `labd-probe-amd`, likewise.
const AMD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/labd-probe-amd"));

/// What the AMD probe is linked with. The name with a version differs with each ROCm.
const ROCM_SMI: &str = "librocm_smi64.so";

/// Whether a GPU of this vendor is plugged in, driver or not: display controllers (PCI class 03) and accelerators (12).
pub fn present(root: &Path, vendor: Vendor) -> bool {
    let id = match vendor {
        Vendor::Nvidia => "0x10de",
        Vendor::Amd => "0x1002",
        Vendor::Simulated => return false,
    };
    let devices = fs::read_dir(root.join("sys/bus/pci/devices")).into_iter().flatten().flatten();
    devices.map(|d| d.path()).any(|device| {
        let is = |file: &str, starts: &[&str]| {
            fs::read_to_string(device.join(file)).is_ok_and(|text| starts.iter().any(|s| text.starts_with(s)))
        };
        is("class", &["0x03", "0x12"]) && is("vendor", &[id])
    })
}

/// The vendor's sources, best first; absent where it cannot be started now. `dir` is a folder of our own.
pub(super) fn launches(root: &Path, dir: &Path, vendor: Vendor) -> Vec<Option<Launch>> {
    let beside = std::env::current_exe().ok().and_then(|labd| Some(labd.parent()?.to_owned()));
    match vendor {
        Vendor::Nvidia => vec![
            program("labd-probe-nvidia", NVIDIA, beside.as_deref()).map(|program| launch(Source::Nvml, program)),
            Some(labd(Source::NvidiaSmi, "nvidia-smi")),
        ],
        Vendor::Amd => vec![
            rocm(root, dir, program("labd-probe-amd", AMD, beside.as_deref())),
            Some(labd(Source::Kernel, "kernel")),
        ],
        Vendor::Simulated => Vec::new(),
    }
}

fn launch(source: Source, program: Program) -> Launch {
    Launch { source, program, args: Vec::new(), env: Vec::new() }
}

/// labd itself as a probe, since what it asks needs no library.
fn labd(source: Source, word: &str) -> Launch {
    Launch { args: vec!["probe".into(), word.into()], ..launch(source, Program::Labd) }
}

/// The embedded executable; in a development build the one that cargo put beside labd.
fn program(name: &'static str, bytes: &'static [u8], beside: Option<&Path>) -> Option<Program> {
    if !bytes.is_empty() {
        return Some(Program::Embedded { name, bytes });
    }
    beside.map(|dir| dir.join(name)).filter(|path| path.is_file()).map(Program::Path)
}

/// The AMD probe where its library is.
fn rocm(root: &Path, dir: &Path, program: Option<Program>) -> Option<Launch> {
    let (program, library) = (program?, rocm_library(root)?);
    match link(&dir.join("rocm"), &library) {
        Ok(path) => Some(Launch { env: vec![("LD_LIBRARY_PATH", path.into())], ..launch(Source::RocmSmi, program) }),
        Err(error) => {
            tracing::warn!(%error, library = %library.display(), "cannot be linked, so ROCm is not asked");
            None
        }
    }
}

/// The newest ROCm SMI library: AMD's own, of the highest version, before a distribution's.
fn rocm_library(root: &Path) -> Option<PathBuf> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>();
    let named = |path: &Path, start: &str| {
        path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(start)).map(str::to_owned)
    };
    let mut dirs = vec![root.join("usr/lib/x86_64-linux-gnu"), root.join("usr/lib64")];
    for rocm in entries(&root.join("opt")).into_iter().filter(|p| named(p, "rocm").is_some()) {
        dirs.extend(entries(&rocm).into_iter().filter(|p| named(p, "lib").is_some()));
    }
    // `/opt/rocm` and `librocm_smi64.so` are links to what has a version in its name.
    let files = dirs.iter().flat_map(|dir| entries(dir)).filter(|p| named(p, ROCM_SMI).is_some());
    let real = files.filter_map(|file| fs::canonicalize(file).ok()).filter(|file| file.is_file());
    real.max_by_key(|file| {
        let text = file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned();
        (text.contains("opt/rocm"), numbers(&text))
    })
}

/// The numbers in a path's last folders and name, so that 10 comes after 9. `64` is part of names.
fn numbers(text: &str) -> Vec<u64> {
    text.replace("lib64", "lib")
        .replace("smi64", "smi")
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect()
}

/// Makes the folder with the one name that the probe is linked with. Returns the loader's path: that folder, then the
/// library's own, where what it needs itself lies.
fn link(dir: &Path, library: &Path) -> io::Result<String> {
    let name = dir.join(ROCM_SMI);
    if fs::read_link(&name).ok().as_deref() != Some(library) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let new = dir.join(format!("{ROCM_SMI}.new"));
        let _ = fs::remove_file(&new);
        std::os::unix::fs::symlink(library, &new)?;
        fs::rename(&new, &name)?;
    }
    let own = library.parent().unwrap_or(Path::new("/"));
    Ok(format!("{}:{}", dir.display(), own.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn file(root: &Path, path: &str, text: &str) -> PathBuf {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        fs::write(&path, text).expect("a file");
        path
    }

    fn device(root: &Path, address: &str, vendor: &str, class: &str) {
        for (name, text) in [("vendor", vendor), ("class", class)] {
            file(root, &format!("sys/bus/pci/devices/{address}/{name}"), &format!("{text}\n"));
        }
    }

    #[test]
    fn hardware_is_what_the_bus_shows() {
        let root = tempfile::tempdir().expect("a directory");
        let is = |vendor| present(root.path(), vendor);
        assert!(!is(Vendor::Nvidia) && !is(Vendor::Amd) && !is(Vendor::Simulated));
        // A BMC's display, NVIDIA's sound on an HDMI port, an AMD host bridge: no GPUs of these vendors.
        device(root.path(), "0000:03:00.0", "0x1a03", "0x030000");
        device(root.path(), "0000:65:00.1", "0x10de", "0x040300");
        device(root.path(), "0000:00:00.0", "0x1022", "0x060000");
        device(root.path(), "0000:00:00.2", "0x1002", "0x060000");
        assert!(!is(Vendor::Nvidia) && !is(Vendor::Amd));
        device(root.path(), "0000:65:00.0", "0x10de", "0x030200");
        assert!(is(Vendor::Nvidia) && !is(Vendor::Amd));
        device(root.path(), "0000:c1:00.0", "0x1002", "0x120000");
        assert!(is(Vendor::Amd));
    }

    #[test]
    fn the_newest_rocm_is_taken_wherever_it_is() {
        let root = tempfile::tempdir().expect("a directory");
        let root = &fs::canonicalize(root.path()).expect("it is there");
        assert_eq!(rocm_library(root), None);
        let debians = file(root, "usr/lib/x86_64-linux-gnu/librocm_smi64.so.1.0", "");
        symlink("librocm_smi64.so.1.0", debians.with_file_name("librocm_smi64.so.1")).expect("a link");
        assert_eq!(rocm_library(root), Some(debians));
        let nine = file(root, "opt/rocm-6.9.0/lib/librocm_smi64.so.7.9", "");
        assert_eq!(rocm_library(root), Some(nine));
        let ten = file(root, "opt/rocm-6.10.0/lib64/librocm_smi64.so.7.8", "");
        symlink("rocm-6.9.0", root.join("opt/rocm")).expect("a link");
        symlink("gone", root.join("opt/rocm-6.9.0/lib/librocm_smi64.so.99")).expect("a link");
        assert_eq!(rocm_library(root), Some(ten));
    }

    #[test]
    fn the_probe_finds_its_library_by_the_plain_name() {
        let root = tempfile::tempdir().expect("a directory");
        let (dir, found) = (root.path().join("own"), Program::Path("/probe".into()));
        assert_eq!(rocm(root.path(), &dir, Some(found.clone())), None, "no ROCm here");
        for version in ["6.2.0", "6.3.0"] {
            let library = file(root.path(), &format!("opt/rocm-{version}/lib/librocm_smi64.so.7"), version);
            let launch = rocm(root.path(), &dir, Some(found.clone())).expect("its library is there");
            let library = fs::canonicalize(library).expect("it is there");
            let path = format!("{}:{}", dir.join("rocm").display(), library.parent().expect("a folder").display());
            assert_eq!(launch.env, [("LD_LIBRARY_PATH", path.into())]);
            assert_eq!(fs::read_to_string(dir.join("rocm/librocm_smi64.so")).expect("it leads there"), version);
        }
        assert_eq!(rocm(root.path(), &dir, None), None, "no probe");
    }

    #[test]
    fn without_a_library_the_vendors_command_or_the_kernel_is_asked() {
        let root = tempfile::tempdir().expect("a directory");
        let words = |vendor| -> Vec<(Source, Vec<String>)> {
            launches(root.path(), root.path(), vendor).into_iter().flatten().map(|l| (l.source, l.args)).collect()
        };
        assert_eq!(words(Vendor::Amd), [(Source::Kernel, vec!["probe".into(), "kernel".into()])]);
        assert_eq!(words(Vendor::Nvidia).last(), Some(&(Source::NvidiaSmi, vec!["probe".into(), "nvidia-smi".into()])));
        assert_eq!(launches(root.path(), root.path(), Vendor::Simulated), []);
    }

    #[test]
    fn what_is_embedded_comes_before_what_lies_beside_labd() {
        let dir = tempfile::tempdir().expect("a directory");
        let name = "labd-probe-nvidia";
        assert_eq!(program(name, b"", Some(dir.path())), None);
        assert_eq!(program(name, b"", None), None);
        let path = file(dir.path(), name, "");
        assert_eq!(program(name, b"", Some(dir.path())), Some(Program::Path(path)));
        assert_eq!(program(name, b"ELF", Some(dir.path())), Some(Program::Embedded { name, bytes: b"ELF" }));
    }
}

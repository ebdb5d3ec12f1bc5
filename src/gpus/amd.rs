//! AMD's GPUs: everything that is special about them.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use labd_gpu::{Device as Found, Vendor, line::Source};

use super::{
    attach::{EngineDevices, groups, nodes, only, paths},
    faults,
    probe::{Launch, Program, embedded, labd, launch},
    vendor::VendorDef,
};
use crate::spec::Device;

/// Definition of the vendor AMD.
pub(super) static DEF: VendorDef = VendorDef {
    vendor: Vendor::Amd,
    name: "AMD GPU",
    driver: "amdgpu",
    // What is older than Vega, or without PCIe atomics, only shows a picture.
    computes_on_all: false,
    sources,
    attach,
    owns: |device| match device {
        Device::Node { path, .. } => path == KFD || is_render(path),
        Device::Cdi { name, .. } => name.starts_with("amd.com/"),
        Device::Nvidia { .. } => false,
    },
    nodes_inside: |device| match device {
        Device::Cdi { .. } => &[KFD, "/dev/dri/renderD*"],
        // Each is looked at by its own name.
        Device::Node { .. } | Device::Nvidia { .. } => &[],
    },
    lists_by_id: |_| false,
    // `rocm-smi` reads the host's files and shows every GPU there is; what a container may use are its nodes.
    ask_worker: &[
        "sh",
        "-c",
        "test -e /dev/kfd && ls /dev/dri | sed -n 's/^renderD/GPU renderD/p'; \
         if command -v rocm-smi >/dev/null; then rocm-smi >/dev/null; fi",
    ],
    // Its runtime ends a process on purpose.
    explains_exits: true,
    faults: faults::amd::TABLE,
};

/// Executable `labd-probe-amd`, likewise.
const AMD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/labd-probe-amd"));

/// Library that the AMD probe is linked with. The name with a version differs with each ROCm.
const ROCM_SMI: &str = "librocm_smi64.so";

/// Device node through which every AMD GPU is computed on.
const KFD: &str = "/dev/kfd";

fn sources(root: &Path, dir: &Path) -> Vec<Option<Launch>> {
    vec![rocm(root, dir, embedded("labd-probe-amd", AMD)), Some(labd(Source::Kernel, "kernel"))]
}

fn attach(found: &Found, engine: &EngineDevices) -> Result<Vec<Device>, String> {
    let own = only(paths(&found.nodes), is_render);
    let missing = |what: &str| {
        Err(format!(
            "{} has no {what}; load its driver with `modprobe amdgpu`, and see `dmesg | grep amdgpu` when that does not help",
            found.id
        ))
    };
    if own.len() != 1 {
        return missing("render node under /dev/dri of its own");
    }
    let names = engine.cdi("amd.com/gpu");
    let same =
        |nodes: &BTreeSet<String>| only(nodes.iter().map(String::as_str), is_render) == own && nodes.contains(KFD);
    if let Some((name, _)) = names.iter().find(|(_, nodes)| nodes.is_some_and(same)) {
        return Ok(vec![Device::Cdi { name: (*name).to_owned(), gids: groups(&found.nodes) }]);
    }
    if !found.nodes.iter().any(|n| n.path == KFD) {
        return missing("/dev/kfd");
    }
    Ok(nodes(&found.nodes).collect())
}

fn is_render(path: &str) -> bool {
    path.starts_with("/dev/dri/renderD")
}

/// Launch of the AMD probe, where its library is.
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

/// Newest ROCm SMI library: AMD's own, of the highest version, before a distribution's.
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

/// Numbers in a path's last folders and name, so that 10 comes after 9. `64` is part of names.
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
}

//! AMD's GPUs: everything that is special about them.

use std::{collections::BTreeSet, fs, io, os::unix::fs::DirBuilderExt as _, path::Path};

use labd_gpu::{
    Device as Found, Vendor,
    line::Source,
    rocm::{self, Library},
};

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
    // What it does not know is so old that the kernel has another driver for it.
    takes_all: true,
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

/// Launch of the AMD probe, where its library is, and is one that it can ask. A newer one can come while labd runs.
fn rocm(root: &Path, dir: &Path, program: Option<Program>) -> Option<Launch> {
    let (Some(program), Some(Library::Usable(library))) = (program, rocm::find(root)) else { return None };
    match link(&dir.join("rocm"), &library) {
        Ok(path) => Some(Launch { env: vec![("LD_LIBRARY_PATH", path.into())], ..launch(Source::RocmSmi, program) }),
        Err(error) => {
            tracing::warn!(%error, library = %library.display(), "cannot be linked, so ROCm is not asked");
            None
        }
    }
}

/// Makes the folder with the one name that the probe is linked with. Returns the loader's path: that folder, then the
/// library's own, where what it needs itself lies.
fn link(dir: &Path, library: &Path) -> io::Result<String> {
    let name = dir.join(rocm::NAME);
    if fs::read_link(&name).ok().as_deref() != Some(library) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let new = dir.join(format!("{}.new", rocm::NAME));
        let _ = fs::remove_file(&new);
        std::os::unix::fs::symlink(library, &new)?;
        fs::rename(&new, &name)?;
    }
    let own = library.parent().unwrap_or(Path::new("/"));
    Ok(format!("{}:{}", dir.display(), own.display()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn file(root: &Path, path: &str, text: &str) -> PathBuf {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        fs::write(&path, text).expect("a file");
        path
    }

    #[test]
    fn the_probe_finds_its_library_by_the_plain_name() {
        let root = tempfile::tempdir().expect("a directory");
        let (dir, found) = (root.path().join("own"), Program::Path("/probe".into()));
        assert_eq!(rocm(root.path(), &dir, Some(found.clone())), None, "no ROCm here");
        file(root.path(), "opt/rocm-5.7.1/lib/librocm_smi64.so.5", "5.7.1");
        assert_eq!(rocm(root.path(), &dir, Some(found.clone())), None, "it would not load");
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

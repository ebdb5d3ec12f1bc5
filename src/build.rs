//! Takes the GPU probes into labd: `LABD_PROBES` is a folder with `labd-probe-nvidia` and `labd-probe-amd`, as `make dist` makes
//! them. What is not there is embedded empty, and labd looks beside itself instead. And says how the shipped file is linked.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rerun-if-env-changed=LABD_PROBES");
    if env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("musl") {
        // Half a megabyte of relocations, all of which are read at the start, in a kilobyte. glibc takes them only since 2.36.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    let from = env::var_os("LABD_PROBES").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    if let Some(dir) = &from {
        // The folder, too: a probe may come later, and a path that is not there would mean building every time.
        println!("cargo::rerun-if-changed={}", dir.display());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in ["labd-probe-nvidia", "labd-probe-amd"] {
        let probe = from.as_ref().map(|dir| dir.join(name)).filter(|path| path.is_file());
        let bytes = probe.map_or_else(Vec::new, |path| {
            fs::read(&path).unwrap_or_else(|e| panic!("{} cannot be read: {e}", path.display()))
        });
        fs::write(out.join(name), bytes).expect("OUT_DIR can be written");
    }
}

//! Links the probe against an empty library of the name `librocm_smi64.so` that has the functions in `symbols.txt`.
//!
//! The real one's soname changes with each version of ROCm (`.so.1` in Debian, `.so.6`, `.so.7`), and a program that is
//! linked against one of them needs exactly that. This one needs whatever labd finds and calls by the plain name. It also
//! means that ROCm need not be there to build it.

use std::{env, fs, path::PathBuf, process::Command};

/// Name that the dynamic linker is asked for.
const SONAME: &str = "librocm_smi64.so";

fn main() {
    println!("cargo::rerun-if-changed=symbols.txt");
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let names = fs::read_to_string("symbols.txt").expect("symbols.txt lies beside build.rs");
    let source: String = names.lines().flat_map(|name| ["int ", name, "(void) { return 2; }\n"]).collect();
    let (c, library) = (out.join("names.c"), out.join(SONAME));
    fs::write(&c, source).expect("OUT_DIR can be written");

    // `-nostdlib`: it must not ask for this machine's libc, the probe is built for an older one.
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let status = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,librocm_smi64.so", "-o"])
        .args([&library, &c])
        .status()
        .unwrap_or_else(|e| panic!("cannot run the C compiler `{compiler}`: {e}; install gcc"));
    assert!(status.success(), "the C compiler `{compiler}` did not make {}", library.display());

    // By its path and behind everything else: `-l` from here would come before the crate that needs it.
    println!("cargo::rustc-link-arg={}", library.display());
    // For `cargo test` and `cargo run`, which put such folders on the library path.
    println!("cargo::rustc-link-search=native={}", out.display());
}

//! ROCm SMI's library as the host has it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::files;

/// Plain name of the library. The name with a version differs with each ROCm, and says nothing about it: Debian's 5.2 and
/// its 6.1 are both `.so.1`.
pub const NAME: &str = "librocm_smi64.so";

/// Oldest ROCm whose library can be asked. Those before it have no `rsmi_dev_revision_get`, so that labd's probe cannot be
/// loaded with them, and they lay out lists of clocks otherwise.
const OLDEST: u64 = 6;

/// Function that came with [`OLDEST`] (in `rocm_smi.h` of `rocm-6.0.0` and not of `rocm-5.7.1`), as libraries list it.
const CAME_WITH_OLDEST: &[u8] = b"rsmi_dev_revision_get\0";

/// Library of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Library {
    /// Library that can be asked.
    Usable(PathBuf),
    /// Library that cannot, with the version of its ROCm where that is known.
    TooOld(Option<String>),
}

/// Library of the host, if it has one: AMD's own, of the highest version, before a distribution's, and one that can be asked
/// before one that cannot.
pub fn find(root: &Path) -> Option<Library> {
    let named = |path: &Path, start: &str| {
        path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(start)).map(str::to_owned)
    };
    let mut dirs = vec![root.join("usr/lib/x86_64-linux-gnu"), root.join("usr/lib64")];
    for rocm in entries(&root.join("opt")).into_iter().filter(|p| named(p, "rocm").is_some()) {
        dirs.extend(entries(&rocm).into_iter().filter(|p| named(p, "lib").is_some()));
    }
    // `/opt/rocm` and `librocm_smi64.so` are links to what has a version in its name.
    let files = dirs.iter().flat_map(|dir| entries(dir)).filter(|p| named(p, NAME).is_some());
    let mut found: Vec<PathBuf> =
        files.filter_map(|file| fs::canonicalize(file).ok()).filter(|f| f.is_file()).collect();
    let place = |file: &Path| file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned();
    found.sort_by_cached_key(|file| {
        let text = place(file);
        (text.contains("opt/rocm"), numbers(&text))
    });
    let newest = found.last()?.clone();
    let usable = found.into_iter().rev().find(|file| can_be_asked(file));
    Some(usable.map_or_else(|| Library::TooOld(version(&newest)), Library::Usable))
}

/// Whether its ROCm is as new as [`OLDEST`]: by its version, and where that is not known by what it has.
fn can_be_asked(file: &Path) -> bool {
    let major = version(file).and_then(|version| version.split('.').next()?.parse::<u64>().ok());
    match major {
        Some(major) => major >= OLDEST,
        // What cannot be read is left to the loader, who says why.
        None => fs::read(file)
            .map_or(true, |bytes| bytes.windows(CAME_WITH_OLDEST.len()).any(|part| part == CAME_WITH_OLDEST)),
    }
}

/// Version of the ROCm that a library belongs to, such as `5.7.1`. AMD's packages have it in the name of their folder and in
/// a file there; a distribution's have neither.
fn version(file: &Path) -> Option<String> {
    let rocm = file.parent()?.parent()?;
    let name = rocm.file_name()?.to_str()?.strip_prefix("rocm")?;
    let told = || files::text(&rocm.join(".info/version"));
    let text = name.strip_prefix('-').map(str::to_owned).or_else(told)?;
    let version = text.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

/// Numbers in a path's last folders and name, so that 10 comes after 9. `64` is part of names.
fn numbers(text: &str) -> Vec<u64> {
    text.replace("lib64", "lib")
        .replace("smi64", "smi")
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect()
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

    /// Names that a library lists, without and with what came with 6.0.
    const OLD: &str = "\u{7f}ELF\0rsmi_init\0rsmi_dev_id_get\0";
    const NEW: &str = "\u{7f}ELF\0rsmi_init\0rsmi_dev_revision_get\0rsmi_dev_id_get\0";

    #[test]
    fn the_newest_rocm_is_taken_wherever_it_is() {
        let root = tempfile::tempdir().expect("a directory");
        let root = &fs::canonicalize(root.path()).expect("it is there");
        assert_eq!(find(root), None);
        let debians = file(root, "usr/lib/x86_64-linux-gnu/librocm_smi64.so.1.0", NEW);
        symlink("librocm_smi64.so.1.0", debians.with_file_name("librocm_smi64.so.1")).expect("a link");
        assert_eq!(find(root), Some(Library::Usable(debians)));
        let nine = file(root, "opt/rocm-6.9.0/lib/librocm_smi64.so.7.9", "");
        assert_eq!(find(root), Some(Library::Usable(nine)));
        let ten = file(root, "opt/rocm-6.10.0/lib64/librocm_smi64.so.7.8", "");
        symlink("rocm-6.9.0", root.join("opt/rocm")).expect("a link");
        symlink("gone", root.join("opt/rocm-6.9.0/lib/librocm_smi64.so.99")).expect("a link");
        assert_eq!(find(root), Some(Library::Usable(ten)));
    }

    #[test]
    fn a_rocm_before_6_cannot_be_asked_however_it_is_packaged() {
        let too_old = |version: Option<&str>| Some(Library::TooOld(version.map(str::to_owned)));
        for (path, text, version) in [
            ("opt/rocm-5.7.1/lib/librocm_smi64.so.5.0.50701", NEW, Some("5.7.1")),
            ("opt/rocm-3.5.0/lib/librocm_smi64.so.1.0", OLD, Some("3.5.0")),
            ("usr/lib/x86_64-linux-gnu/librocm_smi64.so.1.0", OLD, None),
            ("usr/lib64/librocm_smi64.so.5.0", OLD, None),
            ("opt/rocm/lib/librocm_smi64.so.5.0", OLD, None),
            ("opt/rocm-custom/lib/librocm_smi64.so.5.0", OLD, None),
        ] {
            let root = tempfile::tempdir().expect("a directory");
            let library = file(root.path(), path, text);
            assert_eq!(find(root.path()), too_old(version), "{path}");
            // Another one that can be asked is taken instead, also where it is the distribution's.
            let new = file(root.path(), "usr/lib64/librocm_smi64.so.1.1", NEW);
            let new = fs::canonicalize(new).expect("it is there");
            assert_eq!(find(root.path()), Some(Library::Usable(new)), "{path}");
            fs::remove_file(library).expect("it was there");
        }
    }

    #[test]
    fn a_folder_without_a_version_tells_it_in_a_file() {
        let root = tempfile::tempdir().expect("a directory");
        let root = &fs::canonicalize(root.path()).expect("it is there");
        let library = file(root, "opt/rocm/lib/librocm_smi64.so.5.0", "");
        let told = file(root, "opt/rocm/.info/version", "5.4.3-121\n");
        assert_eq!(find(root), Some(Library::TooOld(Some("5.4.3".into()))));
        fs::write(&told, "6.2.0-66\n").expect("a file");
        assert_eq!(find(root), Some(Library::Usable(library)));
    }
}

//! Inputs of an image, and the reference that follows from them. Pure: the plan knows every reference before an engine
//! is asked, and an image is built again exactly when what goes into it changed.

use std::{borrow::Cow, collections::BTreeMap, io, path::Path};

use rust_embed::Embed;
use sha2::{Digest, Sha256};

use crate::{secret::hex, spec::ImageName};

/// The folder `images/` of the repository.
#[derive(Embed)]
#[folder = "images/"]
struct Files;

/// The official image that every build starts from where a registry answers.
pub const OFFICIAL_BASE: &str = "debian:trixie-slim";
/// Script that makes the same image from a Debian mirror, as a tar on its stdout.
const BOOTSTRAP: &str = "base/bootstrap.sh";
/// Name of the CA bundle in every build context.
const CA_FILE: &str = "labd-ca.crt";

/// The bootstrap script.
pub(crate) fn bootstrap_script() -> Cow<'static, [u8]> {
    // Embedded at compile time; a missing one gives an empty script, whose import fails with the engine's words.
    Files::get(BOOTSTRAP).map(|f| f.data).unwrap_or_default()
}

/// The reference of the base image made by [`BOOTSTRAP`].
pub fn base_reference() -> String {
    format!("labd/base:trixie-{}", digest([bootstrap_script().as_ref()].into_iter()))
}

/// Fingerprint of everything that goes into an image, 12 hex digits: the embedded folder's files, the build arguments
/// in `args` and the CA bundle. Mirrors and proxies do not belong into `args`: they say where from, not what.
///
/// Both bases count as the same, so a reference does not depend on whether a registry answered.
pub fn inputs_hash(name: ImageName, args: &BTreeMap<String, String>, ca: &[u8]) -> String {
    hash_of(&folder(name), args, ca, &bootstrap_script())
}

/// The reference of a built image: `labd/<name>:<inputs>`.
pub fn reference_of(name: ImageName, args: &BTreeMap<String, String>, ca: &[u8]) -> String {
    format!("labd/{}:{}", name.as_str(), inputs_hash(name, args, ca))
}

/// Whether a reference is one that [`reference_of`] or [`base_reference`] gives, for whatever inputs.
pub fn is_built_reference(text: &str) -> bool {
    let Some((name, tag)) = text.strip_prefix("labd/").and_then(|rest| rest.split_once(':')) else { return false };
    let digest = match name {
        "base" => tag.strip_prefix("trixie-"),
        _ if ImageName::ALL.iter().any(|n| n.as_str() == name) => Some(tag),
        _ => None,
    };
    digest.is_some_and(|d| d.len() == 12 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Reads the CA bundle that goes into the builds; empty without one.
///
/// Fails in one line when the file cannot be read.
pub fn read_ca(path: Option<&Path>) -> Result<Vec<u8>, String> {
    let Some(path) = path else { return Ok(Vec::new()) };
    std::fs::read(path)
        .map_err(|e| format!("the CA bundle {} cannot be read ({e}); set another one in labd.toml", path.display()))
}

/// An image's files: path inside the folder -> content.
fn folder(name: ImageName) -> BTreeMap<String, Cow<'static, [u8]>> {
    let prefix = format!("{}/", name.as_str());
    Files::iter().filter_map(|path| Some((path.strip_prefix(&prefix)?.to_owned(), Files::get(&path)?.data))).collect()
}

/// The names that an image's Dockerfile declares with `ARG`.
pub(crate) fn declared_args(name: ImageName) -> Vec<String> {
    let folder = folder(name);
    let text = folder.get("Dockerfile").map(|d| String::from_utf8_lossy(d).into_owned()).unwrap_or_default();
    text.lines()
        .filter_map(|l| l.trim().strip_prefix("ARG "))
        .filter_map(|l| l.split(['=', ' ']).next())
        .map(str::to_owned)
        .collect()
}

/// The build context as a tar: the folder and the CA bundle, empty where there is none.
pub(crate) fn context_tar(name: ImageName, ca: &[u8]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        let script = Path::new(path).extension().is_some_and(|e| e == "sh");
        header.set_mode(if script { 0o755 } else { 0o644 });
        // A constant time: the engine's layer cache must not depend on when labd was built.
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content)
    };
    for (path, content) in folder(name) {
        add(&path, &content)?;
    }
    add(CA_FILE, ca)?;
    tar.into_inner()
}

fn hash_of(
    files: &BTreeMap<String, Cow<'_, [u8]>>,
    args: &BTreeMap<String, String>,
    ca: &[u8],
    bootstrap: &[u8],
) -> String {
    let count = files.len().to_be_bytes();
    let parts = [count.as_slice(), bootstrap, ca].into_iter();
    let parts = parts.chain(files.iter().flat_map(|(path, content)| [path.as_bytes(), content.as_ref()]));
    digest(parts.chain(args.iter().flat_map(|(key, value)| [key.as_bytes(), value.as_bytes()])))
}

/// Digest over the parts, each with its length before it, so that no two lists of parts run into the same bytes.
fn digest<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())[..12].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn files(pairs: &[(&str, &'static str)]) -> BTreeMap<String, Cow<'static, [u8]>> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), Cow::Borrowed(v.as_bytes()))).collect()
    }

    #[test]
    fn the_hash_changes_with_each_input_and_only_with_them() {
        let hash = |f: &[(&str, &'static str)], a: &[(&str, &str)], ca: &str, boot: &str| {
            hash_of(&files(f), &args(a), ca.as_bytes(), boot.as_bytes())
        };
        let folder = [("Dockerfile", "FROM x"), ("a", "1")];
        let all = [
            hash(&folder, &[("V", "1")], "ca", "boot"),
            hash(&[("Dockerfile", "FROM y"), ("a", "1")], &[("V", "1")], "ca", "boot"),
            hash(&[("Dockerfile", "FROM x"), ("b", "1")], &[("V", "1")], "ca", "boot"),
            hash(&folder, &[("V", "2")], "ca", "boot"),
            hash(&folder, &[("V", "1")], "", "boot"),
            hash(&folder, &[("V", "1")], "ca", "boot2"),
            // The same bytes, cut elsewhere.
            hash(&folder, &[("V", "1")], "tca", "boo"),
            hash(&folder[..1], &[("V", "1"), ("a", "1")], "ca", "boot"),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
        assert_eq!(all[0], hash(&folder, &[("V", "1")], "ca", "boot"));
        assert_eq!(all[0].len(), 12);
    }

    #[test]
    fn references_are_stable_and_named_after_the_image() {
        let one = reference_of(ImageName::Minio, &args(&[]), b"");
        assert_eq!(one, reference_of(ImageName::Minio, &args(&[]), b""));
        assert!(one.starts_with("labd/minio:"));
        assert_ne!(one, reference_of(ImageName::Minio, &args(&[]), b"x"));
        assert!(base_reference().starts_with("labd/base:trixie-"));
    }

    #[test]
    fn every_context_has_a_dockerfile_that_takes_the_base_and_the_ca() {
        for name in [ImageName::Ray, ImageName::Minio, ImageName::Prometheus] {
            let bytes = context_tar(name, b"PEM").expect("memory");
            let mut archive = tar::Archive::new(bytes.as_slice());
            let paths: Vec<String> = archive
                .entries()
                .expect("a tar")
                .map(|e| e.expect("an entry").path().expect("a path").to_string_lossy().into_owned())
                .collect();
            assert!(paths.iter().any(|p| p == "Dockerfile"), "{name:?}: {paths:?}");
            assert!(paths.iter().any(|p| p == CA_FILE), "{name:?}: {paths:?}");
            assert!(declared_args(name).iter().any(|a| a == "BASE"), "{name:?}");
        }
    }
}

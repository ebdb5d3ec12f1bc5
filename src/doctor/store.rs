//! Checks of the S3 store: which known vulnerabilities the image in use has.

use super::{Check, Scene};
use crate::services;

/// Checks the store for checkpoints for known vulnerabilities.
pub(super) async fn store(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "store";
    let Ok((config, _)) = &scene.config else {
        return vec![Check::skipped(NAME, "labd.toml is wrong, see there")];
    };
    if let Some(s3) = &config.s3
        && !services::minio::DEF.is_enabled(config)
    {
        return vec![Check::skipped(NAME, format!("{} is not checked by labd", s3.endpoint))];
    }
    vec![judge_store(config.images.minio.as_deref())]
}

/// Known vulnerabilities of MinIO, with the first of its releases without it, if there is one. Releases are named by
/// their time, so they compare as text.
const HOLES: [(&str, &str, Option<&str>); 3] = [
    ("CVE-2025-62506", "a restricted key makes itself an unrestricted one", Some("RELEASE.2025-10-15T17-29-55Z")),
    ("CVE-2026-40344", "archives are taken without the secret key", None),
    ("CVE-2026-41145", "uploads are taken without the secret key", None),
];

fn judge_store(image: Option<&str>) -> Check {
    const NAME: &str = "store";
    const FIX: &str =
        "# take `images.minio` out of labd.toml: labd builds one without them. Or name a maintained fork's image";
    let Some(image) = image else {
        return Check::ok(NAME, "labd's own MinIO refuses CVE-2025-62506, CVE-2026-40344 and CVE-2026-41145");
    };
    let (name, tag) = image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).unwrap_or((image, "latest"));
    let upstream = ["minio/minio", "docker.io/minio/minio", "quay.io/minio/minio"].contains(&name);
    if !upstream {
        let all: Vec<&str> = HOLES.iter().map(|(cve, _, _)| *cve).collect();
        let why = format!("labd does not know {image}: ask its maker about {}", all.join(", "));
        return Check::warn(NAME, why, "# labd builds a MinIO without them where `images.minio` is not set");
    }
    let open = |fixed: Option<&str>| fixed.is_none_or(|first| tag.starts_with("RELEASE.") && tag < first);
    let holes: Vec<String> =
        HOLES.iter().filter(|(_, _, fixed)| open(*fixed)).map(|(cve, what, _)| format!("{cve} ({what})")).collect();
    Check::fail(NAME, format!("{image} has {}", holes.join(", ")), FIX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn the_holes_of_a_store_are_told() {
        assert_eq!(judge_store(None).verdict, Verdict::Ok);
        let old = judge_store(Some("quay.io/minio/minio:RELEASE.2025-04-22T22-12-26Z"));
        assert_eq!(old.verdict, Verdict::Fail);
        assert!(["62506", "40344", "41145"].iter().all(|cve| old.why.contains(cve)), "{}", old.why);
        let last = judge_store(Some("minio/minio:RELEASE.2025-10-15T17-29-55Z"));
        assert!(last.why.contains("40344") && !last.why.contains("62506"), "{}", last.why);
        assert_eq!(judge_store(Some("registry.lab:5000/fork")).verdict, Verdict::Warn);
    }
}

//! MinIO, the store for checkpoints.

use std::time::Duration;

use super::{
    FOREIGN, ForJobs, GIB, LinkDef, LoginDef, MIB, Make, Memory, On, Optional, PortDef, RightsDef, ServiceDef, Silence,
    draft::{Draft, env, words},
};
use crate::{
    minio::Keys,
    spec::{ImageName, Kind, Mount, MountSource, Probe, Recreate, ServiceSpec},
};

pub(crate) const S3_PORT: u16 = 9000;
pub(crate) const CONSOLE_PORT: u16 = 9001;
pub(crate) const REGION: &str = "us-east-1";
/// Bucket for checkpoints: scripts from the Compose lab say `s3://ray`.
const BUCKET: &str = "ray";

/// Definition of the service MinIO.
pub static DEF: ServiceDef = ServiceDef {
    kind: Kind::MINIO,
    size_key: "minio",
    host: 12,
    resolved: true,
    image: ImageName::Minio,
    ports: &[
        PortDef { container: S3_PORT, on: On::Published("s3", |p| p.s3) },
        PortDef { container: CONSOLE_PORT, on: On::Published("s3_console", |p| p.s3_console) },
    ],
    memory: Memory::Share(|usable| (usable / 1000 * 50).clamp(512 * MIB, 16 * GIB)),
    optional: Optional::ByDefaultOn,
    settings: Some(|s| s.minio.clone()),
    for_jobs: ForJobs::Shared,
    stops_last: true,
    recreate: Recreate::NoJob,
    silence: Silence::Hung,
    // A thread per request that waits for the disk.
    rights: RightsDef { capabilities: &[], pids: 4_096, read_only_root: true },
    foreign_rights: Some(RightsDef { capabilities: FOREIGN, pids: 4_096, read_only_root: false }),
    link: Some(LinkDef { rank: 3, name: "MinIO console", port: CONSOLE_PORT, path: "/" }),
    login: Some(LoginDef {
        rank: 2,
        name: "minio",
        path: "/",
        user: |s| Some(s.s3_access_key.expose().to_owned()),
        secret: |s| &s.s3_secret_key,
        port: |p| p.s3_console,
    }),
    make: Make::One(spec),
};

fn spec(draft: &Draft<'_>) -> ServiceSpec {
    let secrets = &draft.inputs.secrets;
    let mut container = draft.container(&DEF);
    container.command = words(&["server", "/data", "--address", ":9000", "--console-address", ":9001"]);
    container.env = env([
        ("MINIO_ROOT_USER", (&secrets.minio_root.access).into()),
        ("MINIO_ROOT_PASSWORD", (&secrets.minio_root.secret).into()),
        ("MINIO_REGION", REGION.into()),
        ("MINIO_BROWSER_LOGIN_ANIMATION", "off".into()),
        ("MINIO_UPDATE", "off".into()),
    ]);
    container.mounts =
        vec![Mount { source: MountSource::Volume(draft.volume("minio")), target: "/data".into(), read_only: false }];
    container.cpu_shares = 2048;
    let probe = Probe::Minio {
        port: S3_PORT,
        bucket: BUCKET.into(),
        region: REGION.into(),
        user: Keys { access: secrets.s3_access_key.clone(), secret: secrets.s3_secret_key.clone() },
        root: secrets.minio_root.clone(),
    };
    draft.service(&DEF, container, probe, Duration::from_mins(1))
}

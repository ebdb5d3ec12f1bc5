//! MinIO, the store for checkpoints.

use std::time::Duration;

use super::{Draft, env, host, words};
use crate::{
    minio::Keys,
    plan::spec::{ImageName, Kind, Mount, MountSource, Probe, ServiceSpec},
};

pub(super) const S3_PORT: u16 = 9000;
pub(super) const CONSOLE_PORT: u16 = 9001;
pub(super) const REGION: &str = "us-east-1";
/// The ancestor's scripts say `s3://ray`.
const BUCKET: &str = "ray";

pub(super) fn minio(draft: &Draft<'_>) -> ServiceSpec {
    let (config, secrets) = (draft.config(), &draft.inputs.secrets);
    let mut container = draft.container("minio", Kind::Minio, ImageName::Minio, host::MINIO, draft.sizes.minio);
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
    container.ports = vec![draft.port(S3_PORT, config.ports.s3), draft.port(CONSOLE_PORT, config.ports.s3_console)];
    container.cpu_shares = 2048;
    ServiceSpec {
        name: "minio".into(),
        kind: Kind::Minio,
        image: ImageName::Minio,
        enabled: config.services.minio.on(),
        requires: Vec::new(),
        probe: Probe::Minio {
            port: S3_PORT,
            bucket: BUCKET.into(),
            region: REGION.into(),
            user: Keys { access: secrets.s3_access_key.clone(), secret: secrets.s3_secret_key.clone() },
            root: secrets.minio_root.clone(),
        },
        start_deadline: Duration::from_mins(1),
        container,
    }
}

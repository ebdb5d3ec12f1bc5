//! JupyterLab: no GPU, but everything that submitting a job needs.

use std::time::Duration;

use super::{Draft, env, host, words};
use crate::plan::spec::{ImageName, Kind, Mount, MountSource, Probe, ServiceSpec};

pub(super) const PORT: u16 = 8888;

pub(super) fn jupyter(draft: &Draft<'_>) -> ServiceSpec {
    let (config, secrets) = (draft.config(), &draft.inputs.secrets);
    let mut container = draft.container("jupyter", Kind::Jupyter, ImageName::Ray, host::JUPYTER, draft.sizes.jupyter);
    container.command = words(&[
        "/opt/jupyter/bin/jupyter",
        "lab",
        "--ip=0.0.0.0",
        "--port=8888",
        "--no-browser",
        "--allow-root",
        "--ServerApp.root_dir=/workspace",
    ]);
    container.env = draft.ray_auth_env();
    container.env.extend(draft.s3_env());
    container.env.extend(draft.outward_env());
    container.env.extend(draft.own_env());
    container.env.extend(env([
        // `ray.init()` and the job tools read one variable each; the second goes before for the latter.
        ("RAY_ADDRESS", super::ray::connections_address()),
        ("RAY_API_SERVER_ADDRESS", super::job_address()),
        ("JUPYTER_TOKEN", (&secrets.jupyter_token).into()),
    ]));
    // Notebooks of other labs say `~/work`.
    container.mounts = ["/workspace", "/root/work"]
        .map(|target| Mount {
            source: MountSource::Host(config.workspace().display().to_string()),
            target: target.into(),
            read_only: false,
        })
        .into();
    container.mounts.extend(draft.host_mounts());
    container.workdir = Some("/workspace".into());
    container.ports = vec![draft.port(PORT, config.ports.jupyter)];
    ServiceSpec {
        name: "jupyter".into(),
        kind: Kind::Jupyter,
        image: ImageName::Ray,
        enabled: config.services.jupyter.on(),
        requires: Vec::new(),
        probe: Probe::Http {
            port: PORT,
            path: "/api/status".into(),
            authorization: Some(("token".into(), secrets.jupyter_token.clone())),
        },
        start_deadline: Duration::from_mins(2),
        container,
    }
}

//! JupyterLab: no GPU, but everything that submitting a job needs.
//!
//! It is below `/jupyter/`, where the page's door leads to it ([`crate::door`]). Whoever comes through the door shows a secret of
//! the door's own; whoever comes to its port, its token.

use std::time::Duration;

use super::{
    CODE, ForJobs, GIB, LinkDef, LoginDef, MIB, Make, Memory, On, Optional, PortDef, ServiceDef, Silence,
    draft::{Draft, env, file, words},
};
use crate::spec::{ImageName, Kind, Mount, MountSource, Probe, Recreate, ServiceSpec};

const PORT: u16 = 8888;
/// Configuration that the server reads beside that of the image and of people, who are root there.
const CONFIG: &str = "/opt/jupyter/etc/jupyter/jupyter_server_config.py";

/// Definition of the service JupyterLab.
pub static DEF: ServiceDef = ServiceDef {
    kind: Kind("jupyter"),
    size_key: "jupyter",
    host: 15,
    resolved: true,
    image: ImageName::Ray,
    ports: &[PortDef { container: PORT, on: On::Published("jupyter", |p| p.jupyter) }],
    // Kernels, and 1.2 GB for `ray job logs` of 300 MB in a terminal.
    memory: Memory::Share(|usable| (usable / 1000 * 75).clamp(512 * MIB, 32 * GIB)),
    optional: Optional::ByDefaultOn,
    settings: Some(|s| s.jupyter.service()),
    for_jobs: ForJobs::Nothing,
    stops_last: false,
    recreate: Recreate::NextStop("its kernels"),
    // One cell that blocks its event loop would cost every kernel.
    silence: Silence::Spared(|config| config.services.jupyter.restart_silent.unwrap_or(false)),
    rights: CODE,
    foreign_rights: None,
    link: Some(LinkDef { rank: 2, name: "JupyterLab", port: PORT, path: "/jupyter/lab" }),
    login: Some(LoginDef {
        rank: 3,
        name: "jupyter",
        path: "/jupyter/lab",
        user: |_| None,
        secret: |s| &s.jupyter_token,
        port: |p| p.jupyter,
    }),
    make: Make::One(spec),
};

fn spec(draft: &Draft<'_>) -> ServiceSpec {
    let (config, secrets) = (draft.config(), &draft.inputs.secrets);
    let mut container = draft.container(&DEF);
    container.command = words(&[
        "/opt/jupyter/bin/jupyter",
        "lab",
        "--ip=0.0.0.0",
        "--port=8888",
        "--no-browser",
        "--allow-root",
        "--ServerApp.root_dir=/workspace",
        "--ServerApp.base_url=/jupyter/",
    ]);
    container.files = vec![file(CONFIG, 0o644, include_str!("../../images/run/labd_jupyter.py").into())];
    container.env = draft.ray_auth_env();
    container.env.extend(draft.s3_env());
    container.env.extend(draft.outward_env());
    container.env.extend(draft.own_env());
    container.env.extend(env([
        // `ray.init()` and the job tools read one variable each; the second goes before for the latter.
        ("RAY_ADDRESS", super::ray_driver::connections_address()),
        ("RAY_API_SERVER_ADDRESS", super::front_door::job_address()),
        ("JUPYTER_TOKEN", (&secrets.jupyter_token).into()),
        ("LABD_JUPYTER_DOOR", (&secrets.jupyter_door).into()),
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
    let authorization = Some(("token".into(), secrets.jupyter_token.clone()));
    let probe = Probe::Http { port: PORT, path: "/jupyter/api/status".into(), authorization };
    draft.service(&DEF, container, probe, Duration::from_mins(2))
}

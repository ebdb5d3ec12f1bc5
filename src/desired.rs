//! Desired state: the plan that follows from `labd.toml`, the machine and its GPUs, and what the loop must know beside
//! it.

use std::sync::Arc;

use crate::{
    checkpoints::Store,
    config::{Config, packages},
    credentials::{self, Credential},
    door::SignIns,
    gpus::Gpu,
    minio::Keys,
    node::NodeFacts,
    plan::{self, PlanView, images},
    secret::Secret,
    services::{self, Inputs},
    spec::Plan,
};

/// Plan, and what else follows from a configuration on this machine.
#[derive(Debug, Clone)]
pub struct DesiredState {
    /// The configuration.
    pub config: Config,
    /// The plan.
    pub plan: Plan,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
    /// Ray's token.
    pub ray_token: Secret,
    /// Store that replaces MinIO.
    pub store: Option<Store>,
    /// Plan as `labd plan` prints it.
    pub view: Arc<PlanView>,
    /// Credentials that people log in with.
    pub credentials: Vec<Credential>,
    /// Secrets with which labd's page signs people in to the services.
    pub sign_ins: SignIns,
}

/// Reason why a configuration has no desired state, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// Credentials that cannot be read or made.
    #[error("{0}")]
    Credentials(String),
    /// Configuration that does not fit this machine, or names what is not there.
    #[error("{0}")]
    Misfit(String),
}

/// Desired state of a configuration on a machine with these GPUs. Reads the credentials and the files that `labd.toml`
/// names; makes credentials where there are none, unless it only pretends.
pub fn resolve(
    config: Config,
    node: NodeFacts,
    gpus: Vec<Gpu>,
    subnet: [u8; 3],
    pretend: bool,
) -> Result<DesiredState, Unresolved> {
    let secrets = if pretend { credentials::load_or_pretend(&config) } else { credentials::load_or_make(&config) };
    let secrets = secrets.map_err(Unresolved::Credentials)?;
    let ca = images::read_ca(config.images.build.ca_bundle.as_deref()).map_err(Unresolved::Misfit)?;
    let requirements = packages::read(config.images.build.requirements.as_deref()).map_err(Unresolved::Misfit)?;
    let inputs = Inputs { config, node, gpus, secrets, subnet, ca, requirements };
    let (plan, sizes) = plan::make(&inputs).map_err(Unresolved::Misfit)?;
    let Inputs { config, node, gpus, secrets, .. } = inputs;
    let credentials = services::logins(&config, &secrets);
    let store = config.s3.as_ref().map(|s3| Store {
        endpoint: s3.endpoint.clone(),
        bucket: s3.bucket.clone(),
        region: s3.region.clone(),
        access_key: secrets.s3_access_key.clone(),
        secret_key: secrets.s3_secret_key.clone(),
    });
    let sign_ins = SignIns {
        ray_token: secrets.ray_token.clone(),
        grafana_user: "admin".to_owned(),
        grafana_password: secrets.grafana_password.clone(),
        minio: Keys { access: secrets.s3_access_key.clone(), secret: secrets.s3_secret_key.clone() },
        jupyter: secrets.jupyter_door.clone(),
    };
    let view = Arc::new(PlanView { node, gpus: gpus.clone(), sizes, plan: plan.clone() });
    Ok(DesiredState { config, plan, gpus, ray_token: secrets.ray_token, store, view, credentials, sign_ins })
}

//! The plan: from the configuration and the machine to one [`ServiceSpec`] per service. Pure: no clock, no I/O, no
//! globals.
//!
//! * [`services`](crate::services): what each service is; only the workers are known here by name.
//! * [`placement`]: CPUs and memory of each worker's own.
//! * [`sizes`]: memory, `/dev/shm`, object stores and logical CPUs that fit the machine together.
//! * [`images`]: references of the images, and whether they are built or pulled.

pub mod images;
pub mod placement;
pub mod sizes;

#[cfg(test)]
pub(crate) mod tests;

use std::{net::Ipv4Addr, sync::Arc};

use serde::Serialize;

use crate::{
    gpus::Gpu,
    node::NodeFacts,
    services::{ALL, Draft, Inputs, Make, Sizes, ray_worker},
    spec::{NetworkSpec, Plan, ServiceSpec},
    text::without_logins,
};

/// Makes the plan. Fails in one line that names the setting to change, when sizes that were set do not fit the machine.
pub fn make(inputs: &Inputs) -> Result<(Plan, Sizes), String> {
    let workers = inputs.gpus.len();
    if inputs.gpus.iter().any(|gpu| gpu.slot >= ray_worker::MOST) {
        let most = ray_worker::MOST;
        return Err(format!("{workers} GPUs are more than the {most} that the lab's /24 has addresses for"));
    }
    let sizes = sizes::compute(&inputs.config, &inputs.node, u32::try_from(workers).unwrap_or(0))?;
    let mut images = images::images(inputs);
    let references = images.iter().map(|image| (image.name, image.reference.clone())).collect();
    let draft = Draft { inputs, sizes: &sizes, images: references };
    let per_worker = sizes.of(&ray_worker::DEF).get();
    let places = placement::places(&inputs.gpus, &inputs.node, inputs.config.gpus.bind, per_worker);
    let mut services: Vec<Arc<ServiceSpec>> = Vec::new();
    for def in ALL.into_iter().filter(|def| def.is_planned(&inputs.config)) {
        match def.make {
            Make::One(spec) => services.push(Arc::new(spec(&draft))),
            Make::PerGpu(spec) => {
                services.extend(inputs.gpus.iter().zip(&places).map(|(gpu, at)| Arc::new(spec(&draft, gpu, at))));
            }
        }
    }
    images.retain(|image| services.iter().any(|s| s.enabled && s.image == image.name));
    let [a, b, c] = inputs.subnet;
    let network = NetworkSpec {
        name: inputs.config.lab.name.clone(),
        subnet: format!("{a}.{b}.{c}.0/24"),
        gateway: Ipv4Addr::new(a, b, c, 1),
    };
    Ok((Plan { lab: inputs.config.lab.name.clone(), network, images, services }, sizes))
}

/// View of the plan that `labd plan` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanView {
    /// The machine.
    pub node: NodeFacts,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
    /// Share of each service.
    pub sizes: Sizes,
    /// The services, secrets as fingerprints.
    pub plan: Plan,
}

impl PlanView {
    /// Plan as anybody may read it: no address shows a login, wherever in the plan it is.
    pub fn to_json(&self) -> serde_json::Value {
        fn hide(value: &mut serde_json::Value) {
            match value {
                serde_json::Value::String(text) => *text = without_logins(text),
                serde_json::Value::Array(all) => all.iter_mut().for_each(hide),
                serde_json::Value::Object(all) => all.values_mut().for_each(hide),
                _ => {}
            }
        }
        // Plain data with string keys always serialises.
        let mut json = serde_json::to_value(self).unwrap_or_default();
        hide(&mut json);
        json
    }
}

//! Images of a plan: their references, and whether they are built or pulled.

mod inputs;

use std::collections::BTreeMap;

pub use inputs::{OFFICIAL_BASE, base_reference, inputs_hash, is_built_reference, read_ca, reference_of};
pub(crate) use inputs::{bootstrap_script, context_tar, declared_args};

use crate::{
    gpus::Vendor,
    services::Inputs,
    spec::{ImageName, ImageSource, ImageSpec},
};

/// Reference of Grafana's image, which has no Debian package: pulled, or reported as unavailable.
const GRAFANA: &str = "grafana/grafana:12.3.0";

pub(super) fn images(inputs: &Inputs) -> Vec<ImageSpec> {
    ImageName::ALL
        .into_iter()
        .map(|name| {
            let source = if inputs.config.images.reference(name).is_some() || name == ImageName::Grafana {
                ImageSource::Pull
            } else {
                ImageSource::Build { args: args(inputs, name) }
            };
            ImageSpec { name, reference: reference(inputs, name), source }
        })
        .collect()
}

fn reference(inputs: &Inputs, name: ImageName) -> String {
    match (inputs.config.images.reference(name), name) {
        (Some(reference), _) => reference.to_owned(),
        (None, ImageName::Grafana) => GRAFANA.to_owned(),
        (None, name) => inputs::reference_of(name, &args(inputs, name), &inputs.ca),
    }
}

/// Build arguments on which an image's identity depends. Mirrors and proxies are not part of it: the same bytes come
/// from all of them.
fn args(inputs: &Inputs, name: ImageName) -> BTreeMap<String, String> {
    if name != ImageName::Ray {
        return BTreeMap::new();
    }
    let build = &inputs.config.images.build;
    let real = inputs.gpus.iter().any(|g| g.vendor != Vendor::Simulated);
    let torch = build.torch.clone().unwrap_or_else(|| if real { "pypi" } else { "none" }.to_owned());
    // Debian's comes late in the recipe, so that an image with it shares the layers of one without.
    let debian = torch == "debian";
    let index = if debian { "none".to_owned() } else { torch };
    let mut args = BTreeMap::from([
        ("RAY_VERSION".to_owned(), inputs.config.ray.version.clone()),
        ("TORCH_INDEX".to_owned(), index),
    ]);
    if debian {
        args.insert("TORCH_DEBIAN".to_owned(), "1".to_owned());
    }
    if let Some(version) = &build.torch_version {
        args.insert("TORCH_VERSION".to_owned(), version.clone());
    }
    let requirements = Some(&inputs.requirements).filter(|text| !text.is_empty());
    let packages: Vec<&str> =
        build.packages.iter().map(|entry| entry.trim()).chain(requirements.map(String::as_str)).collect();
    if !packages.is_empty() {
        args.insert("PACKAGES".to_owned(), packages.join("\n"));
    }
    args
}

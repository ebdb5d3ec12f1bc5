//! Images that labd built for settings which are no longer those of the plan. labd never removes one by itself: a person does.

use std::collections::BTreeSet;

use bollard::query_parameters::{ListContainersOptions, ListImagesOptions, RemoveImageOptions};
use serde::Serialize;

use super::DockerEngine;
use crate::{engine::EngineError, plan::images::is_built_reference, time::Timestamp};

/// Image that labd built, and that neither a container nor the plan needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OldImage {
    /// Its reference, such as `labd/ray:0a1b2c3d4e5f`.
    pub reference: String,
    /// Its size in bytes. Layers that another image has, too, are part of it and stay.
    pub size_bytes: u64,
    /// Time at which it was built.
    pub built_at: Timestamp,
}

/// Result of the removal of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Removed.
    Removed,
    /// Kept, as something came to need it.
    InUse,
}

/// Image as the engine lists it.
#[derive(Debug, Clone)]
struct Listed {
    id: String,
    references: Vec<String>,
    size_bytes: u64,
    built_at: Timestamp,
}

impl DockerEngine {
    /// Images that labd built and nothing needs: no container of the engine, whoever made it and whether it runs or
    /// not, and none of the references in `wanted`.
    pub async fn old_images(&self, wanted: &BTreeSet<String>) -> Result<Vec<OldImage>, EngineError> {
        let client = self.client().await?;
        let all = client.list_images(None::<ListImagesOptions>).await.map_err(|e| self.fail(&e))?;
        // Asked after the images: a container that was made meanwhile is seen.
        let options = ListContainersOptions { all: true, ..Default::default() };
        let containers = client.list_containers(Some(options)).await.map_err(|e| self.fail(&e))?;
        let used: BTreeSet<String> = containers.into_iter().flat_map(|c| [c.image, c.image_id]).flatten().collect();
        let listed = all.into_iter().map(|image| Listed {
            id: image.id,
            references: image.repo_tags,
            size_bytes: u64::try_from(image.size).unwrap_or(0),
            built_at: Timestamp::from_millis(image.created.saturating_mul(1000)),
        });
        Ok(old(listed, &used, wanted))
    }

    /// Removes an image by its reference, unless a container needs it: the engine itself refuses that.
    pub async fn remove_image(&self, reference: &str) -> Result<Removal, EngineError> {
        let client = self.client().await?;
        let options = RemoveImageOptions { force: false, ..Default::default() };
        match client.remove_image(reference, Some(options), None).await {
            Ok(_) => Ok(Removal::Removed),
            Err(e) => match self.fail(&e) {
                // Somebody else removed it.
                EngineError::NotFound(_) => Ok(Removal::Removed),
                EngineError::Conflict(_) => Ok(Removal::InUse),
                other => Err(other),
            },
        }
    }
}

/// Images that labd built and nothing needs. `used` are references and ids of containers' images. Pure.
fn old(images: impl Iterator<Item = Listed>, used: &BTreeSet<String>, wanted: &BTreeSet<String>) -> Vec<OldImage> {
    let needed = |text: &String| used.contains(text) || wanted.contains(text);
    let mut found: Vec<OldImage> = images
        .filter(|image| !needed(&image.id) && !image.references.iter().any(needed))
        .flat_map(|image| {
            let (size_bytes, built_at) = (image.size_bytes, image.built_at);
            let ours = image.references.into_iter().filter(|reference| is_built_reference(reference));
            ours.map(move |reference| OldImage { reference, size_bytes, built_at })
        })
        .collect();
    found.sort_by(|a, b| a.built_at.cmp(&b.built_at).then_with(|| a.reference.cmp(&b.reference)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_or_the_plan_needs_is_never_old() {
        let image = |id: &str, references: &[&str]| Listed {
            id: id.into(),
            references: references.iter().map(|&r| r.to_owned()).collect(),
            size_bytes: 10 << 30,
            built_at: Timestamp::default(),
        };
        let images = [
            image("sha256:1", &["labd/ray:000000000001"]),
            image("sha256:2", &["labd/ray:000000000002"]),
            image("sha256:3", &["labd/ray:000000000003"]),
            image("sha256:4", &["labd/minio:000000000004"]),
            image("sha256:5", &["labd/base:trixie-000000000005"]),
            image("sha256:6", &["labd/ray:000000000006", "labd/ray:000000000007"]),
            image(
                "sha256:8",
                &["labd/ray:mine", "labd/other:000000000008", "rayproject/ray:2.60.0", "debian:trixie-slim"],
            ),
            image("sha256:9", &[]),
        ];
        let set = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect::<BTreeSet<String>>();
        // A container names its image by reference or, once that went to another image, by id alone.
        let used = set(&["labd/ray:000000000002", "sha256:3"]);
        let wanted = set(&["labd/ray:000000000001", "labd/ray:000000000007"]);
        let found: Vec<String> = old(images.into_iter(), &used, &wanted).into_iter().map(|i| i.reference).collect();
        assert_eq!(found, ["labd/base:trixie-000000000005", "labd/minio:000000000004"]);
    }
}

//! Questions that only `labd doctor` asks an engine: settings that supervision never needs, and containers of other
//! labs.

use std::net::IpAddr;

use bollard::{
    models::{ContainerSummaryStateEnum, LocalNodeState},
    query_parameters::ListContainersOptions,
};

use super::DockerEngine;
use crate::engine::{EngineError, LABEL_LAB, LABEL_SERVICE};

/// Setup of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Setup {
    /// Engine version, such as `28.2.2`.
    pub version: String,
    /// API version in use, such as `1.41`.
    pub api: String,
    /// Directory in which it keeps images, containers and volumes.
    pub root_dir: String,
    /// Whether containers outlive its restart.
    pub live_restore: bool,
    /// Whether it is part of a swarm, which excludes `live_restore`.
    pub swarm: bool,
    /// Whether it runs without root.
    pub rootless: bool,
    /// Whether its kernel filters system calls.
    pub seccomp: bool,
    /// Whether root in its containers is another user on this machine (`userns-remap`).
    pub remaps_users: bool,
    /// Whether it confines containers by SELinux.
    pub selinux: bool,
    /// Cgroup driver: `systemd`, `cgroupfs` or `none`; empty when it does not say.
    pub cgroup_driver: String,
    /// Names of its runtimes, such as `runc` and `nvidia`.
    pub runtimes: Vec<String>,
    /// Directories in which it looks for CDI specifications; empty when it does not do CDI.
    pub cdi_dirs: Vec<String>,
    /// CDI devices it found, such as `nvidia.com/gpu=0`; always empty before Docker 28.2.
    pub cdi_devices: Vec<String>,
}

/// Container of the engine, whoever made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// Lab whose label it carries.
    pub lab: Option<String>,
    /// Service whose label it carries.
    pub service: Option<String>,
    /// Whether it runs.
    pub running: bool,
    /// TCP ports of the host that it publishes, with the address.
    pub published: Vec<(IpAddr, u16)>,
}

impl DockerEngine {
    /// Connects again and asks how the engine is set up.
    ///
    /// Fails in one line that ends in a fix: no engine, no permission, too old.
    pub async fn setup(&self) -> Result<Setup, EngineError> {
        let info = self.check().await?;
        let client = self.client().await?;
        let more = client.info().await.map_err(|e| self.fail(&e))?;
        let options = more.security_options.unwrap_or_default();
        let state = more.swarm.and_then(|s| s.local_node_state);
        let devices = more.discovered_devices.unwrap_or_default();
        let mut runtimes: Vec<String> = more.runtimes.unwrap_or_default().into_keys().collect();
        runtimes.sort();
        Ok(Setup {
            version: info.version,
            api: info.api,
            root_dir: info.root_dir.display().to_string(),
            live_restore: info.live_restore,
            swarm: matches!(state, Some(LocalNodeState::ACTIVE | LocalNodeState::PENDING | LocalNodeState::LOCKED)),
            rootless: info.rootless,
            seccomp: info.seccomp,
            remaps_users: has_option(&options, "userns"),
            selinux: has_option(&options, "selinux"),
            cgroup_driver: more.cgroup_driver.map(|d| d.to_string()).unwrap_or_default(),
            runtimes,
            cdi_dirs: more.cdi_spec_dirs.unwrap_or_default(),
            cdi_devices: devices
                .into_iter()
                .filter(|d| d.source.as_deref() == Some("cdi"))
                .filter_map(|d| d.id)
                .collect(),
        })
    }

    /// Containers of the engine, all of them.
    pub async fn standing(&self) -> Result<Vec<Standing>, EngineError> {
        let client = self.client().await?;
        let options = ListContainersOptions { all: true, ..Default::default() };
        let containers = client.list_containers(Some(options)).await.map_err(|e| self.fail(&e))?;
        Ok(containers
            .into_iter()
            .map(|c| {
                let mut labels = c.labels.unwrap_or_default();
                let ports = c.ports.unwrap_or_default().into_iter();
                let name = c.names.and_then(|n| n.into_iter().next()).unwrap_or_default();
                Standing {
                    name: name.trim_start_matches('/').to_owned(),
                    lab: labels.remove(LABEL_LAB),
                    service: labels.remove(LABEL_SERVICE),
                    running: c.state == Some(ContainerSummaryStateEnum::RUNNING),
                    published: ports.filter_map(|p| Some((p.ip?.parse().ok()?, p.public_port?))).collect(),
                }
            })
            .collect())
    }

    /// Whether the engine has an image.
    pub async fn has_image(&self, reference: &str) -> Result<bool, EngineError> {
        let client = self.client().await?;
        match client.inspect_image(reference).await {
            Ok(_) => Ok(true),
            Err(e) => match self.fail(&e) {
                EngineError::NotFound(_) => Ok(false),
                other => Err(other),
            },
        }
    }
}

/// Whether an engine has a security option, such as `name=userns` or `name=seccomp,profile=builtin`.
pub(super) fn has_option(options: &[String], name: &str) -> bool {
    options.iter().any(|o| o.split(',').any(|part| part.strip_prefix("name=") == Some(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn security_options_are_known_by_their_names() {
        let options = ["name=seccomp,profile=builtin", "name=userns"].map(str::to_owned);
        assert!(has_option(&options, "userns") && has_option(&options, "seccomp"));
        assert!(!has_option(&options, "selinux") && !has_option(&options, "user"));
    }
}

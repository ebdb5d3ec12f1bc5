//! Checks of `labd.toml` that types cannot express: values that are too large, that exclude each other, or that name
//! what is not there.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Config, environment, packages, parse_subnet};

impl Config {
    /// Checks what the types cannot express. The error names the setting by its path.
    pub(super) fn check(&self) -> Result<(), (Vec<String>, String)> {
        let wrong = |key: &[&str], text: String| Err((key.iter().map(|&k| k.to_owned()).collect(), text));
        let name = &self.lab.name;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 32 || !name.chars().all(plain) || name.starts_with('-') {
            return wrong(
                &["lab", "name"],
                format!("{name:?} cannot name containers; use 1 to 32 lower-case letters, digits and dashes"),
            );
        }
        for (key, path) in [("data_dir", Some(&self.lab.data_dir)), ("workspace", self.lab.workspace.as_ref())] {
            if path.is_some_and(|p| !p.is_absolute()) {
                return wrong(&["lab", key], "must be an absolute path, beginning with `/`".into());
            }
        }
        if let Some(subnet) = &self.network.subnet
            && let Err(text) = parse_subnet(subnet)
        {
            return wrong(&["network", "subnet"], text);
        }
        if let IpAddr::V6(address) = self.network.publish {
            return wrong(
                &["network", "publish"],
                format!(
                    "\"{address}\" is an IPv6 address, and the lab's network has only IPv4: nothing would answer there; use \
                     \"0.0.0.0\" for every address of this machine, or one of its IPv4 addresses"
                ),
            );
        }
        if let Some(n) = self.gpus.simulate.filter(|&n| n > 16) {
            return wrong(&["gpus", "simulate"], format!("{n} is too many; use 0 to 16"));
        }
        if let Some(address) = &self.node.address
            && (address.is_empty() || address.contains(['/', ' ', '@']))
        {
            return wrong(&["node", "address"], format!("{address:?} is not a host; use only an address or a name"));
        }
        self.check_mounts()?;
        let cpus = [("cpus_per_worker", self.ray.cpus_per_worker), ("driver_cpus", self.ray.driver_cpus)];
        for (key, value) in cpus {
            if value.is_some_and(|n| n == 0 || n > 4096) {
                return wrong(&["ray", key], "must be 1 to 4096".into());
            }
        }
        if self.ray.object_store.is_some_and(|b| b.get() < 75 << 20) {
            return wrong(&["ray", "object_store"], "Ray needs at least `\"75 MiB\"`".into());
        }
        if self.ray.packages_limit.is_some_and(|b| b.get() < 1 << 30) {
            return wrong(
                &["ray", "packages_limit"],
                "is too small for a job's environment; use at least `\"1 GiB\"`".into(),
            );
        }
        for (name, value) in &self.ray.env {
            if let Err(text) = environment::check(name, value) {
                return wrong(&["ray", "env", name], text);
            }
        }
        if self.ray.version.is_empty() || !self.ray.version.chars().all(|c| c.is_ascii_alphanumeric() || c == '.') {
            return wrong(&["ray", "version"], "must be a version such as `\"2.60.0\"`".into());
        }
        self.check_ports()?;
        let services = [
            ("ray-head", &self.services.ray_head, "Ray cannot run without it"),
            ("ray-driver", &self.services.ray_driver, "jobs run on it"),
            ("ray-worker", &self.services.ray_worker, "hold a single worker with `labd stop ray-worker-0` instead"),
        ];
        for (key, service, why) in services {
            if service.enabled == Some(false) {
                return wrong(&["services", key, "enabled"], format!("cannot be switched off: {why}"));
            }
        }
        if self.services.minio.enabled == Some(false) && self.s3.is_none() {
            return wrong(
                &["services", "minio", "enabled"],
                "checkpoints would have no place; name another store in `[s3]`".into(),
            );
        }
        for (key, service) in self.services.each() {
            if service.memory.is_some_and(|b| b.get() < 64 << 20) {
                return wrong(&["services", key, "memory"], "nothing runs in less than `\"64 MiB\"`".into());
            }
        }
        if let Some(s3) = &self.s3
            && !matches!(s3.endpoint.scheme(), "http" | "https")
        {
            return wrong(&["s3", "endpoint"], "must begin with `http://` or `https://`".into());
        }
        if let Some(torch) = &self.images.build.torch
            && !(matches!(torch.as_str(), "none" | "pypi" | "debian")
                || torch.starts_with("https://")
                || torch.starts_with("http://"))
        {
            return wrong(
                &["images", "build", "torch"],
                format!("{torch:?} is not a package index; use \"pypi\", \"debian\", \"none\", or the URL of one"),
            );
        }
        if self.images.build.torch.as_deref() == Some("debian") && self.images.build.torch_version.is_some() {
            return wrong(
                &["images", "build", "torch_version"],
                "Debian has only one version; remove this line".into(),
            );
        }
        self.check_packages()?;
        self.check_notify()?;
        self.check_tls()?;
        if self.jobs.resubmissions > 1000 {
            return wrong(&["jobs", "resubmissions"], "must be 0 to 1000".into());
        }
        if !(1..=3650).contains(&self.journal.retention_days) {
            return wrong(&["journal", "retention_days"], "must be 1 to 3650".into());
        }
        Ok(())
    }

    fn check_packages(&self) -> Result<(), (Vec<String>, String)> {
        let build = &self.images.build;
        let at = |key: &str| vec!["images".to_owned(), "build".to_owned(), key.to_owned()];
        for entry in &build.packages {
            packages::check_entry(entry).map_err(|text| (at("packages"), text))?;
        }
        if build.packages.iter().map(|entry| entry.len() + 1).sum::<usize>() > packages::LONGEST {
            return Err((at("packages"), "is too long; put fewer packages into the image".into()));
        }
        if build.requirements.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err((at("requirements"), "must be an absolute path, beginning with `/`".into()));
        }
        let set = [("packages", !build.packages.is_empty()), ("requirements", build.requirements.is_some())];
        match set.into_iter().find(|(_, set)| *set) {
            Some((key, _)) if self.images.ray.is_some() => Err((
                at(key),
                "goes into labd's own Ray image, and `images.ray` names another; remove one of the two".into(),
            )),
            _ => Ok(()),
        }
    }

    fn check_mounts(&self) -> Result<(), (Vec<String>, String)> {
        let mut targets = BTreeMap::new();
        for (i, mount) in self.mounts.iter().enumerate() {
            let at = |key: &str| vec!["mounts".to_owned(), i.to_string(), key.to_owned()];
            if !mount.source.is_absolute() {
                return Err((at("source"), "must be an absolute path of a directory on this machine".into()));
            }
            let target = mount.target.trim_end_matches('/');
            if !target.starts_with('/') || target.split('/').any(|part| part == "..") {
                return Err((at("target"), "must be an absolute path, such as `/mnt/data`".into()));
            }
            let own = [
                "/",
                "/bin",
                "/dev",
                "/dev/shm",
                "/etc",
                "/lib",
                "/opt",
                "/opt/labd",
                "/opt/ray",
                "/packages",
                "/proc",
                "/root",
                "/root/work",
                "/run",
                "/sys",
                "/tmp",
                "/tmp/ray",
                "/usr",
                "/usr/local",
                "/usr/local/bin",
                "/var",
                "/workspace",
            ];
            if target.is_empty() || own.contains(&target) {
                return Err((
                    at("target"),
                    format!("`{}` belongs to the container; use e.g. `/mnt/data`", mount.target),
                ));
            }
            if targets.insert(target.to_owned(), i).is_some() {
                return Err((
                    at("target"),
                    format!("`{target}` is mounted twice; give each mount a target of its own"),
                ));
            }
        }
        Ok(())
    }

    fn check_ports(&self) -> Result<(), (Vec<String>, String)> {
        let second = self.http.jupyter_port;
        if second != 0 && second == self.lab.page.port() {
            return Err((
                vec!["http".into(), "jupyter_port".into()],
                format!(
                    "port {second} is also that of `lab.page`; JupyterLab needs an origin of its own, so another port"
                ),
            ));
        }
        let mut taken = BTreeMap::from([(self.lab.page.port(), "lab.page"), (second, "http.jupyter_port")]);
        for (key, port) in self.ports.each() {
            if port == 0 {
                continue;
            }
            if let Some(other) = taken.insert(port, key) {
                return Err((
                    vec!["ports".into(), key.into()],
                    format!("port {port} is also that of `{other}`; give each a port of its own"),
                ));
            }
        }
        Ok(())
    }
}

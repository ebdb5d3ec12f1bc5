//! `labd.toml`: what a person wants, with defaults for everything, and errors that name the line.
//!
//! Reading is two steps: the TOML becomes [`Config`] (unknown settings are refused), then [`Config::parse`] checks what types
//! cannot say. Both kinds of error carry file and line, what is wrong, and what would be right. An absent file is the
//! default configuration; an unreadable one is an error.

mod check;
pub mod environment;
mod line;
pub mod mounts;
pub mod notify;
pub mod packages;
mod size;
mod span;
pub mod tls;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use notify::{MailSecurity, Notify, NotifyEvent, NotifyKind};
pub use size::Bytes;
pub use span::Span;
pub use tls::Tls;

use crate::spec::ImageName;

/// Default path of `labd.toml`.
pub const DEFAULT_PATH: &str = "/etc/labd/labd.toml";

/// Configuration: the whole of `labd.toml`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[lab]`: the lab itself.
    pub lab: Lab,
    /// `[engine]`: the container engine.
    pub engine: EngineSettings,
    /// `[network]`: the lab's network and where its ports are published.
    pub network: Network,
    /// `[node]`: what labd cannot find out about the machine.
    pub node: NodeSettings,
    /// `[gpus]`: which GPUs are used.
    pub gpus: Gpus,
    /// `[[mounts]]`: host directories in every GPU worker, the driver node and JupyterLab.
    pub mounts: Vec<HostMount>,
    /// `[ray]`: Ray's own settings.
    pub ray: Ray,
    /// `[ports]`: ports on the host.
    pub ports: Ports,
    /// `[services.NAME]`: switches and sizes per service.
    pub services: Services,
    /// `[s3]`: an S3 store that replaces MinIO.
    pub s3: Option<ExternalS3>,
    /// `[images]`: references that replace labd's own images, and how its own are built.
    pub images: Images,
    /// `[jobs]`: what becomes of lost jobs.
    pub jobs: JobSettings,
    /// `[journal]`: how long history is kept.
    pub journal: JournalSettings,
    /// `[http]`: who may use the page, and over what.
    pub http: HttpSettings,
    /// `[[notify]]`: who is told what happens.
    pub notify: Vec<Notify>,
}

/// `[lab]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lab {
    /// Prefix of containers, volumes and the network: 1 to 32 lower-case letters, digits and dashes.
    pub name: String,
    /// Directory in which journal and secrets are kept.
    pub data_dir: PathBuf,
    /// Address on which the status page listens.
    pub page: SocketAddr,
    /// Host directory that JupyterLab shows; `workspace` in the data directory when absent.
    pub workspace: Option<PathBuf>,
    /// Names, beside this machine's own, under which a browser may reach the page.
    pub host_names: Vec<String>,
    /// Time for which a change to what carries every job waits for running jobs.
    pub change_window: Span,
}

impl Default for Lab {
    fn default() -> Self {
        Self {
            name: "labd".into(),
            data_dir: "/var/lib/labd".into(),
            page: SocketAddr::from((Ipv4Addr::LOCALHOST, 8600)),
            workspace: None,
            host_names: Vec::new(),
            change_window: Span::hours(24),
        }
    }
}

/// `[http]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSettings {
    /// Rights of whoever reaches the page and has not logged in.
    pub anonymous: Anonymous,
    /// Port of JupyterLab behind the page's login, on the page's address: an origin of its own, since what people write
    /// there runs in the visitor's browser. 0 lets the kernel choose a free one.
    pub jupyter_port: u16,
    /// Whether the page and JupyterLab behind its login are served over TLS, and with whose certificate.
    pub tls: Tls,
    /// File with the certificate and its issuers (PEM), the page's own first.
    pub certificate: Option<PathBuf>,
    /// File with the certificate's key (PEM).
    pub key: Option<PathBuf>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self { anonymous: Anonymous::default(), jupyter_port: 8601, tls: Tls::default(), certificate: None, key: None }
    }
}

/// Rights of whoever reaches the page and has not logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anonymous {
    /// None: the page asks for a login.
    #[default]
    None,
    /// To look, without what jobs run and print.
    Viewer,
}

/// `[engine]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineSettings {
    /// The engine's socket.
    pub socket: String,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self { socket: "unix:///var/run/docker.sock".into() }
    }
}

/// `[network]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// Subnet, a /24; a free one of 198.18.0.0/15 when absent.
    pub subnet: Option<String>,
    /// IPv4 address of the host on which services' ports are published.
    pub publish: IpAddr,
}

impl Default for Network {
    fn default() -> Self {
        Self { subnet: None, publish: Ipv4Addr::LOCALHOST.into() }
    }
}

/// `[node]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSettings {
    /// Address or name shown in links; found out when absent.
    pub address: Option<String>,
}

/// `[gpus]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gpus {
    /// Number of GPUs to simulate, 0 to 16; real ones are then not looked for.
    pub simulate: Option<u32>,
    /// Whether each worker runs on the CPUs of its GPU's NUMA node only, where the machine has several.
    pub bind: bool,
}

impl Default for Gpus {
    fn default() -> Self {
        Self { simulate: None, bind: true }
    }
}

/// Entry of `[[mounts]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HostMount {
    /// Directory of the host; must exist.
    pub source: PathBuf,
    /// Path at which workers, drivers and notebooks see it, such as `/mnt/food11`.
    pub target: String,
    /// Whether they may only read; yes when absent. Who writes there does so as this machine's root.
    #[serde(default = "yes")]
    pub read_only: bool,
}

fn yes() -> bool {
    true
}

/// `[ray]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ray {
    /// Version built into labd's image.
    pub version: String,
    /// Whether the head keeps its state on a volume (RocksDB; alpha in Ray 2.60), so that jobs survive its crash.
    pub persist: bool,
    /// Logical CPUs of each worker, a promise and not a core; computed when absent.
    pub cpus_per_worker: Option<u32>,
    /// Logical CPUs of the driver node; computed when absent.
    pub driver_cpus: Option<u32>,
    /// Object store of each worker; computed when absent. At least 75 MiB, Ray's own minimum.
    pub object_store: Option<Bytes>,
    /// Size of the `/dev/shm` that all workers share; computed when absent.
    pub shared_memory: Option<Bytes>,
    /// Environment of every Ray container and of JupyterLab, beside what labd sets there itself.
    pub env: BTreeMap<String, String>,
    /// Bound on the packages of jobs that are kept for their next use; computed when absent. At least 1 GiB.
    pub packages_limit: Option<Bytes>,
    /// Whether worker processes are forked from one per node that has imported their libraries, and one waits on each idle
    /// node for a run to need it.
    pub warm_starts: bool,
}

impl Default for Ray {
    fn default() -> Self {
        Self {
            version: "2.60.0".into(),
            persist: true,
            cpus_per_worker: None,
            driver_cpus: None,
            object_store: None,
            shared_memory: None,
            env: BTreeMap::new(),
            packages_limit: None,
            warm_starts: true,
        }
    }
}

/// `[ports]`: 0 lets the engine choose a free one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ports {
    /// The head's GCS.
    pub gcs: u16,
    /// Ray's dashboard and job API.
    pub dashboard: u16,
    /// MinIO's S3 API.
    pub s3: u16,
    /// MinIO's console.
    pub s3_console: u16,
    /// Prometheus.
    pub prometheus: u16,
    /// Grafana.
    pub grafana: u16,
    /// JupyterLab.
    pub jupyter: u16,
    /// TensorBoard.
    pub tensorboard: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            gcs: 6379,
            dashboard: 8265,
            s3: 9000,
            s3_console: 9001,
            prometheus: 9090,
            grafana: 3000,
            jupyter: 8888,
            tensorboard: 6006,
        }
    }
}

impl Ports {
    /// Every port, by its setting's name, in the order above.
    pub const fn each(&self) -> [(&'static str, u16); 8] {
        [
            ("gcs", self.gcs),
            ("dashboard", self.dashboard),
            ("s3", self.s3),
            ("s3_console", self.s3_console),
            ("prometheus", self.prometheus),
            ("grafana", self.grafana),
            ("jupyter", self.jupyter),
            ("tensorboard", self.tensorboard),
        ]
    }
}

/// `[services]`: one table per service; `ray-worker` stands for every worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Services {
    /// The head; cannot be switched off.
    pub ray_head: Service,
    /// The driver node; cannot be switched off.
    pub ray_driver: Service,
    /// Every GPU worker; cannot be switched off.
    pub ray_worker: Service,
    /// MinIO; can be switched off when `[s3]` names another store.
    pub minio: Service,
    /// Prometheus.
    pub prometheus: Service,
    /// Grafana.
    pub grafana: Service,
    /// JupyterLab.
    pub jupyter: Jupyter,
    /// TensorBoard; off when absent.
    pub tensorboard: Service,
}

impl Services {
    /// Settings that every service has, by its name, in the order above.
    pub fn each(&self) -> [(&'static str, Service); 8] {
        [
            ("ray-head", self.ray_head.clone()),
            ("ray-driver", self.ray_driver.clone()),
            ("ray-worker", self.ray_worker.clone()),
            ("minio", self.minio.clone()),
            ("prometheus", self.prometheus.clone()),
            ("grafana", self.grafana.clone()),
            ("jupyter", self.jupyter.service()),
            ("tensorboard", self.tensorboard.clone()),
        ]
    }
}

/// `[services.jupyter]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jupyter {
    /// Whether it runs; as the service has it by default when absent.
    pub enabled: Option<bool>,
    /// Hard memory limit; computed when absent.
    pub memory: Option<Bytes>,
    /// Whether it is killed and started again when it does not answer for half a minute; no when absent. One cell that
    /// blocks its event loop would cost every kernel.
    pub restart_silent: Option<bool>,
}

impl Jupyter {
    /// Settings that it has in common with the other services.
    pub fn service(&self) -> Service {
        Service { enabled: self.enabled, memory: self.memory }
    }
}

/// One of `[services.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Service {
    /// Whether it runs; as the service has it by default when absent.
    pub enabled: Option<bool>,
    /// Hard memory limit; computed when absent.
    pub memory: Option<Bytes>,
}

/// `[s3]`: credentials are in files, so that `labd.toml` can be shown to anyone.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalS3 {
    /// Address as containers reach it, such as `https://s3.example.edu`.
    pub endpoint: url::Url,
    /// Bucket for checkpoints; must exist.
    #[serde(default = "bucket")]
    pub bucket: String,
    /// Region name.
    #[serde(default = "region")]
    pub region: String,
    /// File that holds the access key, readable by labd only.
    pub access_key_file: PathBuf,
    /// File that holds the secret key, readable by labd only.
    pub secret_key_file: PathBuf,
}

fn bucket() -> String {
    "ray".into()
}

fn region() -> String {
    "us-east-1".into()
}

/// `[images]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Pulled instead of built.
    pub ray: Option<String>,
    /// Pulled instead of built.
    pub minio: Option<String>,
    /// Pulled instead of built.
    pub prometheus: Option<String>,
    /// Reference of the image, which is always pulled: there is no recipe for it.
    pub grafana: Option<String>,
    /// `[images.build]`.
    pub build: Build,
}

impl Images {
    /// Reference that `labd.toml` names for an image.
    pub fn reference(&self, name: ImageName) -> Option<&str> {
        match name {
            ImageName::Ray => self.ray.as_deref(),
            ImageName::Minio => self.minio.as_deref(),
            ImageName::Prometheus => self.prometheus.as_deref(),
            ImageName::Grafana => self.grafana.as_deref(),
        }
    }
}

/// `[images.build]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Build {
    /// Source of torch: `pypi` (CUDA), the URL of an index such as `https://download.pytorch.org/whl/rocm7.0`, `debian`
    /// (its build for the CPU), or `none`. Absent: `none` for simulated GPUs, `pypi` otherwise.
    pub torch: Option<String>,
    /// Version of torch; the newest when absent.
    pub torch_version: Option<String>,
    /// The lab's own Python packages, in the Ray image: requirements as pip reads them, such as `lightning==2.5.0`.
    pub packages: Vec<String>,
    /// File of this machine with further requirements, read when the plan is made.
    pub requirements: Option<PathBuf>,
    /// Extra certificates (PEM) for builds and containers, as a package mirror or proxy needs them.
    pub ca_bundle: Option<PathBuf>,
    /// Proxy for HTTP.
    pub http_proxy: Option<String>,
    /// Proxy for HTTPS.
    pub https_proxy: Option<String>,
    /// Hosts reached without the proxy.
    pub no_proxy: Option<String>,
    /// PyPI mirror.
    pub pip_index_url: Option<String>,
    /// Go module proxy.
    pub goproxy: Option<String>,
    /// Debian mirror.
    pub debian_mirror: Option<String>,
}

impl Build {
    /// Proxy through which a host is reached, over TLS or without; absent where it is reached without one.
    pub fn proxy(&self, host: &str, tls: bool) -> Option<&str> {
        let direct = self.no_proxy.iter().flat_map(|list| list.split(',')).any(|n| {
            let n = n.trim().trim_start_matches('.');
            !n.is_empty() && (host == n || host.ends_with(&format!(".{n}")))
        });
        let proxy = if tls { &self.https_proxy } else { &self.http_proxy };
        proxy.as_deref().filter(|_| !direct)
    }
}

/// `[jobs]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobSettings {
    /// Largest number of times that a job that was lost to infrastructure is resubmitted; 0 to 1000. A job's own
    /// metadata `labd.retry` (`never`, or a number) goes before it.
    pub resubmissions: u32,
    /// Whether a training run without a name of its own gets that of its job's first submission, so that it resumes.
    pub name_runs: bool,
}

impl Default for JobSettings {
    fn default() -> Self {
        Self { resubmissions: 10, name_runs: true }
    }
}

/// `[journal]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct JournalSettings {
    /// Time for which history is kept, 1 to 3650 days.
    pub retention_days: u32,
}

impl Default for JournalSettings {
    fn default() -> Self {
        Self { retention_days: 90 }
    }
}

impl JournalSettings {
    /// Time for which history is kept.
    pub fn retention(&self) -> Duration {
        Duration::from_hours(24 * u64::from(self.retention_days))
    }
}

/// Error of a refused configuration: `FILE:LINE: what is wrong; what would be right`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {text}", path.display(), line.map(|l| format!(":{l}")).unwrap_or_default())]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// Number of the line, counted from 1, when one is to blame.
    pub line: Option<usize>,
    /// Text that says what is wrong and what would be right.
    pub text: String,
}

impl Config {
    /// Reads the file. `Ok(None)` in place of a file that is not there only when `path` is [`DEFAULT_PATH`]: naming a file
    /// that does not exist is an error.
    pub fn load(path: &Path) -> Result<(Self, Option<PathBuf>), ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Ok((Self::parse(path, &text)?, Some(path.to_owned()))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) => {
                Ok((Self::default(), None))
            }
            Err(e) => Err(ConfigError { path: path.to_owned(), line: None, text: format!("cannot be read: {e}") }),
        }
    }

    /// Parses and checks. Touches nothing but its arguments.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| ConfigError {
            path: path.to_owned(),
            line: e.span().map(|s| line::of_offset(text, s.start)),
            text: line::say(e.message()),
        })?;
        config.check().map_err(|(key, wrong)| ConfigError {
            path: path.to_owned(),
            line: line::of_key(text, &key),
            text: format!("`{}`: {wrong}", line::dotted(&key)),
        })?;
        Ok(config)
    }

    /// Whether an address of a mirror or proxy carries a login.
    pub fn holds_logins(&self) -> bool {
        let b = &self.images.build;
        let all = [&b.http_proxy, &b.https_proxy, &b.pip_index_url, &b.goproxy, &b.debian_mirror, &b.torch];
        all.into_iter().flatten().any(|address| crate::text::without_logins(address) != *address)
    }

    /// The host directory whose sockets the front door's relay sees.
    pub fn door_dir(&self) -> PathBuf {
        self.lab.data_dir.join("door")
    }

    /// The host directory that JupyterLab shows.
    pub fn workspace(&self) -> PathBuf {
        self.lab.workspace.clone().unwrap_or_else(|| self.lab.data_dir.join("workspace"))
    }
}

/// The first three bytes of a /24 in CIDR notation. Fails with what would be right.
pub fn parse_subnet(text: &str) -> Result<[u8; 3], String> {
    let right = "use a /24 such as `198.18.100.0/24`";
    let (address, bits) = text.split_once('/').ok_or_else(|| format!("{text:?} is not a subnet; {right}"))?;
    let address: Ipv4Addr = address.parse().map_err(|_| format!("{text:?} is not an IPv4 subnet; {right}"))?;
    let [a, b, c, d] = address.octets();
    if bits != "24" || d != 0 {
        return Err(format!("{text:?} is not a /24; {right}"));
    }
    Ok([a, b, c])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Config::parse(Path::new("labd.toml"), text).expect_err("refused").to_string()
    }

    #[test]
    fn nothing_is_a_configuration() {
        assert_eq!(Config::parse(Path::new("x"), "").expect("valid"), Config::default());
    }

    #[test]
    fn the_documented_example_is_valid_and_says_what_the_defaults_are() {
        let text = include_str!("../../systemd/labd.toml");
        let config = Config::parse(Path::new("labd.toml"), text).expect("valid");
        assert_eq!(config, Config::default());
        // Every commented setting is a real one. Packages go into labd's own image, so they exclude another one.
        for but in ["ray = \"rayproject", "packages = "] {
            let exclusive = |l: &&str| match but {
                "ray = \"rayproject" => !l.starts_with(&format!("#: {but}")),
                _ => !l.starts_with("#: packages = ") && !l.starts_with("#: requirements = "),
            };
            let lines = text.lines().filter(exclusive).map(|l| l.strip_prefix("#:").map_or(l, str::trim_start));
            let uncommented = lines.collect::<Vec<_>>().join("\n");
            Config::parse(Path::new("labd.toml"), &uncommented).expect("every example is valid");
        }
    }

    #[test]
    fn errors_name_file_line_and_what_would_be_right() {
        for (text, says) in [
            ("[lab]\nnmae = \"x\"", &["labd.toml:2:", "`nmae`", "did you mean `name`"] as &[&str]),
            ("[lab]\nname = \"My Lab\"", &["labd.toml:2:", "`lab.name`", "lower-case"]),
            ("[lab\nname = 1", &["labd.toml:1:"]),
            ("\n[gpus]\nsimulate = \"two\"", &["labd.toml:3:", "whole number"]),
            ("[gpus]\nsimulate = 99", &["labd.toml:2:", "0 to 16"]),
            ("[gpus]\n\nbind = \"numa\"", &["labd.toml:3:", "`true` or `false`"]),
            ("[gpus]\nbnid = false", &["labd.toml:2:", "did you mean `bind`"]),
            (
                "[[mounts]]\nsource = \"/a\"\ntarget = \"/mnt\"\n[[mounts]]\nsource = \"/b\"\ntarget = \"/mnt/\"",
                &["labd.toml:6:", "mounted twice"],
            ),
            ("[[mounts]]\nsource = \"data\"\ntarget = \"/mnt\"", &["labd.toml:2:", "absolute"]),
            ("[[mounts]]\nsource = \"/data\"\ntarget = \"/dev/shm\"", &["labd.toml:3:", "belongs"]),
            ("[services.minio]\nenabled = false", &["labd.toml:2:", "[s3]"]),
            ("[services.ray-head]\nenabled = false", &["labd.toml:2:", "cannot be switched off"]),
            ("[services.rai-head]\nenabled = true", &["labd.toml:1:", "did you mean `ray-head`"]),
            ("[services.jupyter]\nmemory = \"lots\"", &["labd.toml:2:", "\"16 GiB\""]),
            ("[network]\nsubnet = \"198.18.0.0/16\"", &["labd.toml:2:", "/24"]),
            ("[network]\n\npublish = \"::\"", &["labd.toml:3:", "`network.publish`", "IPv6", "\"0.0.0.0\""]),
            ("[network]\npublish = \"2001:db8::7\"", &["labd.toml:2:", "2001:db8::7"]),
            ("[ports]\njupyter = 8265", &["labd.toml:2:", "dashboard"]),
            ("[ports]\njupyter = 88888", &["labd.toml:2:"]),
            ("[ports]\njupyter = 8601", &["labd.toml:2:", "`http.jupyter_port`"]),
            ("[http]\njupyter_port = 8600", &["labd.toml:2:", "`lab.page`"]),
            ("[http]\ntls = \"on\"", &["labd.toml:2:", "self-signed"]),
            ("[http]\ntls = \"given\"", &["labd.toml:2:", "`http.tls`", "`http.certificate` is missing"]),
            ("[http]\ntls = \"given\"\ncertificate = \"/c\"", &["labd.toml:2:", "`http.key` is missing"]),
            ("[http]\ntls = \"given\"\ncertificate = \"c\"\nkey = \"/k\"", &["labd.toml:3:", "absolute"]),
            ("[http]\nkey = \"/k\"", &["labd.toml:2:", "`http.key`", "`tls = \"given\"`"]),
            ("[http]\ntls = \"self-signed\"\ncertificate = \"/c\"", &["labd.toml:3:", "remove this line"]),
            ("[ray]\nobject_store = \"1 MiB\"", &["labd.toml:2:", "75 MiB"]),
            ("[ray]\npackages_limit = \"1 MiB\"", &["labd.toml:2:", "`ray.packages_limit`", "1 GiB"]),
            ("[ray]\nenv = { \"A-B\" = \"\" }", &["labd.toml:2:", "A-B", "letters"]),
            ("[ray.env]\nOK = \"1\"\nRAY_ADDRESS = \"auto\"", &["labd.toml:3:", "`RAY_ADDRESS`", "labd itself"]),
            ("[ray.env]\nNUMBER = 1", &["labd.toml:2:", "string"]),
            (
                "[images.build]\npackages = [\"a\", \"-r x.txt\"]",
                &["labd.toml:2:", "`images.build.packages`", "-r x.txt"],
            ),
            ("[images.build]\nrequirements = \"x.txt\"", &["labd.toml:2:", "`images.build.requirements`", "absolute"]),
            ("[images]\nray = \"r:1\"\n[images.build]\npackages = [\"a\"]", &["labd.toml:4:", "`images.ray`"]),
            ("[images.build]\ntorch = \"conda\"", &["labd.toml:2:", "\"debian\""]),
            ("[images.build]\ntorch = \"debian\"\ntorch_version = \"2\"", &["labd.toml:3:", "one version"]),
            ("[s3]\nendpoint = \"s3.example.edu\"", &["labd.toml:2:"]),
        ] {
            let line = refused(text);
            for part in says {
                assert!(line.contains(part), "{text:?} says: {line}");
            }
            assert!(!line.contains('\n'), "one line: {line}");
        }
    }

    #[test]
    fn a_host_folder_is_read_only_unless_a_person_says_otherwise() {
        let read = |more: &str| {
            let text = format!("[[mounts]]\nsource = \"/data\"\ntarget = \"/mnt\"\n{more}");
            Config::parse(Path::new("labd.toml"), &text).expect("valid").mounts[0].read_only
        };
        assert!(read(""));
        assert!(!read("read_only = false"));
    }

    #[test]
    fn a_named_file_must_exist() {
        let error = Config::load(Path::new("/nowhere/labd.toml")).expect_err("missing").to_string();
        assert!(error.starts_with("/nowhere/labd.toml: cannot be read"), "{error}");
    }
}

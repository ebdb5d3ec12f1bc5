//! `labd doctor`: everything a person would otherwise check by hand, each with a verdict, why, and the command that fixes it.
//!
//! * [`engine`]: the container engine and its settings.
//! * [`gpu`]: GPUs, their drivers and device nodes, and how containers get them.
//! * [`machine`]: memory, limits, disks, the clock.
//! * [`ports`]: whether the lab's ports are free.
//! * [`tls`]: the page's certificate, and what is open beyond this machine without one.
//! * [`subnet`]: whether the lab's subnet is free, and who reaches whom across it.
//! * [`store`]: known holes of the MinIO image.
//! * [`mirrors`]: whether registries, mirrors and proxies can be reached.
//! * [`lab`]: `labd.toml`, the daemon and its unit, what other labs and other Rays left.
//!
//! Each file gathers facts, from below a root directory where they are files, and judges them: judging is pure. Every check
//! runs beside the others and has a deadline of its own, since what is asked here is what hangs when a machine is ill:
//! a vendor's command in the kernel, a network file system, an engine.

mod engine;
mod gpu;
mod lab;
mod machine;
mod mirrors;
mod ports;
mod store;
mod subnet;
mod tls;

use std::{
    fs,
    future::Future,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{process::Command, sync::OnceCell};

use crate::{
    config::{Config, ConfigError},
    engine::{
        EngineError,
        docker::{DockerEngine, Setup, Standing},
    },
    snapshot::Snapshot,
};

pub use crate::findings::{Check, Verdict};

/// Longest time for one check.
const CHECK: Duration = Duration::from_secs(10);
/// Longest time for one question inside a check, so that what hangs is named and not only the check.
const QUESTION: Duration = Duration::from_secs(5);

/// Subject of the examination.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Root of the machine's files: `/`, except in tests.
    pub root: PathBuf,
    /// Path of `labd.toml`.
    pub config: PathBuf,
    /// Path of the daemon's socket.
    pub socket: PathBuf,
    /// Snapshot of the daemon, or why there is none.
    pub daemon: DaemonSeen,
}

/// Result of asking the daemon.
#[derive(Debug, Clone)]
pub enum DaemonSeen {
    /// An answer.
    Running(Box<Snapshot>),
    /// No answer from anybody.
    Absent,
    /// A socket that is not for this user.
    NotForUs,
    /// This error, or no answer in time.
    Ill(String),
}

/// Facts that more than one check needs, found out once.
struct Scene {
    subject: Subject,
    config: Result<(Config, Option<PathBuf>), ConfigError>,
    root_user: bool,
    engine: Result<DockerEngine, EngineError>,
    setup: OnceCell<Result<Setup, EngineError>>,
    standing: OnceCell<Option<Vec<Standing>>>,
    mirror: OnceCell<mirrors::Answer>,
}

impl Scene {
    async fn new(subject: Subject) -> Arc<Self> {
        let path = subject.config.clone();
        let config = blocking(move || Config::load(&path)).await.unwrap_or_else(|| {
            let text = "cannot be read: the file system does not answer".to_owned();
            Err(ConfigError { path: subject.config.clone(), line: None, text })
        });
        let used = config.as_ref().map(|(c, _)| c.clone()).unwrap_or_default();
        Arc::new(Self {
            // Capabilities would be more exact; whoever has some without being root knows why.
            root_user: uid() == Some(0),
            engine: DockerEngine::connect(&used.engine.socket, &used.lab.name),
            subject,
            config,
            setup: OnceCell::new(),
            standing: OnceCell::new(),
            mirror: OnceCell::new(),
        })
    }

    /// Configuration, or the defaults in place of a broken one.
    fn config(&self) -> Config {
        self.config.as_ref().map(|(c, _)| c.clone()).unwrap_or_default()
    }

    async fn setup(&self) -> &Result<Setup, EngineError> {
        let ask = || async {
            let engine = self.engine.as_ref().map_err(Clone::clone)?;
            within(engine.setup()).await.unwrap_or_else(|| {
                Err(EngineError::Unreachable(format!(
                    "the container engine does not answer within {} s; see `journalctl -u docker`, and restart it with \
                     `systemctl restart docker`",
                    QUESTION.as_secs()
                )))
            })
        };
        self.setup.get_or_init(ask).await
    }

    /// Containers of the engine; `None` when it does not say.
    async fn standing(&self) -> Option<&[Standing]> {
        let ask = || async {
            if self.setup().await.is_err() {
                return None;
            }
            within(self.engine.as_ref().ok()?.standing()).await?.ok()
        };
        self.standing.get_or_init(ask).await.as_deref()
    }

    /// Answer of the package mirror.
    async fn mirror(&self) -> &mirrors::Answer {
        self.mirror.get_or_init(|| mirrors::ask_mirror(self.config())).await
    }

    fn snapshot(&self) -> Option<&Snapshot> {
        match &self.subject.daemon {
            DaemonSeen::Running(snapshot) => Some(snapshot),
            _ => None,
        }
    }

    /// Number of simulated GPUs; zero when the real ones count. The running daemon knows better than the file.
    fn simulated(&self) -> u32 {
        let configured = self.config().gpus.simulate.unwrap_or(0);
        self.snapshot()
            .map_or(configured, |s| u32::try_from(s.gpus.iter().filter(|g| g.simulated).count()).unwrap_or(u32::MAX))
    }

    /// Whether systemd runs this machine.
    fn systemd(&self) -> bool {
        self.subject.root.join("run/systemd/system").is_dir()
    }
}

type Work = Pin<Box<dyn Future<Output = Vec<Check>> + Send>>;

/// Checks in the order in which a person would go through them. The name is what is said when one does not end.
fn list(scene: &Arc<Scene>) -> Vec<(&'static str, Work)> {
    macro_rules! checks {
        ($($name:literal: $check:path),+ $(,)?) => {
            vec![$({
                let scene = scene.clone();
                let work: Work = Box::pin(async move { $check(&scene).await });
                ($name, work)
            }),+]
        };
    }
    checks![
        "labd.toml": lab::config,
        "daemon": lab::daemon,
        "unit": lab::unit,
        "services": lab::services,
        "engine": engine::answers,
        "confinement": engine::confinement,
        "live-restore": engine::live_restore,
        "volumes": engine::volumes,
        "set-id": engine::set_id,
        "gpus": gpu::present,
        "nvidia": gpu::nvidia,
        "amd": gpu::amd,
        "worker-gpus": gpu::in_workers,
        "memory": machine::memory,
        "limits": machine::limits,
        "disk": machine::disk,
        "nfs": machine::nfs,
        "clock": machine::clock,
        "ports": ports::ports,
        "tls": tls::tls,
        "subnet": subnet::subnet,
        "fake-ip": subnet::fake_ip,
        "subnet-guard": subnet::guarded,
        "host-firewall": subnet::host_firewall,
        "store": store::store,
        "packages": mirrors::packages,
        "other-ray": lab::other_ray,
        "other-labs": lab::other_labs,
    ]
}

/// Examines the machine: `tell` hears each check as it ends, and all come back in their own order. Takes at most a little
/// more than 10 s.
pub async fn examine(subject: Subject, mut tell: impl FnMut(&Check)) -> Vec<Check> {
    let scene = Scene::new(subject).await;
    let checks = list(&scene).into_iter().enumerate();
    let mut running: FuturesUnordered<_> =
        checks.map(|(i, (name, work))| async move { (i, bounded(name, work, CHECK).await) }).collect();
    let mut found = Vec::new();
    while let Some((i, checks)) = running.next().await {
        checks.iter().for_each(&mut tell);
        found.push((i, checks));
    }
    found.sort_by_key(|(i, _)| *i);
    found.into_iter().flat_map(|(_, checks)| checks).collect()
}

/// Runs one check with its deadline, in a task of its own: what blocks in it blocks no other.
async fn bounded(name: &'static str, work: Work, deadline: Duration) -> Vec<Check> {
    let task = tokio::spawn(work);
    let stop = task.abort_handle();
    match tokio::time::timeout(deadline, task).await {
        Ok(Ok(checks)) => checks,
        Ok(Err(_)) => vec![Check::warn(name, "could not be checked: a bug in labd", "# please report it")],
        Err(_) => {
            stop.abort();
            let why = format!("did not end within {} s: something it asks hangs", deadline.as_secs());
            vec![Check::fail(name, why, "dmesg | tail -n 30\nfindmnt -t nfs,nfs4,cifs,fuse")]
        }
    }
}

/// Reads files beside everything else, and gives up when they do not answer.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    within(tokio::task::spawn_blocking(read)).await?.ok()
}

/// Waits for an answer; `None` when it takes longer than a question may.
async fn within<T>(asked: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(QUESTION, asked).await.ok()
}

/// Result of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// No such program.
    Missing,
    /// No end in time.
    Hung,
    /// End of the command.
    Ended {
        /// Whether the exit code is 0.
        fine: bool,
        /// Output: both streams, standard output first.
        text: String,
    },
}

impl Said {
    /// Output, when the command ended well.
    fn fine(&self) -> Option<&str> {
        match self {
            Self::Ended { fine: true, text } => Some(text.trim()),
            _ => None,
        }
    }
}

/// Runs a program, and leaves it behind when it does not end in time: one that hangs in the kernel cannot be waited
/// for.
async fn say(program: &str, args: &[&str], deadline: Duration) -> Said {
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(deadline, command.output()).await {
        Err(_) => Said::Hung,
        Ok(Err(_)) => Said::Missing,
        Ok(Ok(out)) => {
            let text = [out.stdout, out.stderr].concat();
            Said::Ended { fine: out.status.success(), text: String::from_utf8_lossy(&text).into_owned() }
        }
    }
}

/// Id of the user this process runs as.
fn uid() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    // Real, effective, saved, file system.
    status.lines().find_map(|l| l.strip_prefix("Uid:"))?.split_whitespace().nth(1)?.parse().ok()
}

/// Number with its noun, such as `1 GPU` or `2 GPUs`.
/// Whether every user of this machine can read this file, or change it.
fn is_open_to_all(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|file| file.mode() & 0o007 != 0)
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Engine's error without the fix at its end, which is shown apart.
fn without_fix(text: &str) -> String {
    text.rsplit_once("; ").map_or(text, |(why, _)| why).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_check_that_hangs_or_breaks_is_a_finding_and_no_more() {
        let hang: Work = Box::pin(std::future::pending());
        let found = bounded("disk", hang, Duration::from_millis(20)).await;
        assert_eq!((found[0].name.as_str(), found[0].verdict), ("disk", Verdict::Fail));
        assert!(found[0].why.contains("hangs") && found[0].fix.is_some());
        let bug: Work = Box::pin(async { panic!("on purpose") });
        assert_eq!(bounded("disk", bug, CHECK).await[0].verdict, Verdict::Warn);
    }

    #[test]
    fn no_check_shows_a_login() {
        let shown =
            Check::warn("packages", "PyPI http://u:s3cret@pypi.lab: no", "curl http://u:s3cret@pypi.lab/simple");
        assert!(!format!("{shown:?}").contains("s3cret"), "{shown:?}");
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_left_behind() {
        assert_eq!(say("sleep", &["600"], Duration::from_millis(50)).await, Said::Hung);
        assert_eq!(say("/nowhere/nvidia-smi", &[], QUESTION).await, Said::Missing);
        assert_eq!(say("echo", &["hello"], QUESTION).await.fine(), Some("hello"));
        assert_eq!(say("false", &[], QUESTION).await.fine(), None);
    }

    #[tokio::test]
    async fn a_machine_without_anything_gets_a_verdict_on_everything() {
        let root = tempfile::tempdir().expect("a directory");
        let config = root.path().join("labd.toml");
        let text =
            "[engine]\nsocket = \"unix:///nowhere/x.sock\"\n[images.build]\ndebian_mirror = \"http://127.0.0.1:1/\"\n";
        std::fs::write(&config, text).expect("written");
        let subject = Subject {
            root: root.path().to_owned(),
            config,
            socket: root.path().join("labd.sock"),
            daemon: DaemonSeen::Absent,
        };
        let mut told = Vec::new();
        let all = examine(subject, |c| told.push(c.clone())).await;
        assert_eq!(told.len(), all.len());
        let of = |name: &str| all.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no {name} in {all:?}"));
        assert_eq!(of("labd.toml").verdict, Verdict::Ok);
        assert_eq!(of("engine").verdict, Verdict::Fail);
        assert_eq!(of("live-restore").verdict, Verdict::Skipped);
        assert_eq!(of("disk").verdict.min(Verdict::Ok), Verdict::Ok);
        for check in &all {
            assert!(!check.why.is_empty() && !check.why.contains('\n'), "{check:?}");
            assert_eq!(check.fix.is_some(), matches!(check.verdict, Verdict::Warn | Verdict::Fail), "{check:?}");
        }
    }
}

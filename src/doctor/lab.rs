//! Checks of the lab itself: `labd.toml`, the daemon and its unit, and what others left on the machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{Check, DaemonSeen, QUESTION, Scene, blocking, count, is_open_to_all, say};
use crate::{
    daemon,
    engine::docker::Standing,
    install::{UNIT, UNIT_PATH},
    snapshot::ServiceState,
};

/// Whether `labd.toml` can be read and is right.
pub(super) async fn config(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "labd.toml";
    vec![match &scene.config {
        Ok((config, Some(path))) if config.holds_logins() && is_open_to_all(path) => {
            let why =
                format!("{} holds logins of mirrors or proxies, and every local user can read it", path.display());
            Check::warn(NAME, why, format!("chmod o= {}", path.display()))
        }
        Ok((_, Some(path))) => Check::ok(NAME, format!("{}: no mistake found", path.display())),
        Ok((_, None)) => {
            Check::ok(NAME, format!("{} is not there: the defaults apply", scene.subject.config.display()))
        }
        Err(e) if e.text.contains("ermission denied") && !scene.root_user => {
            Check::skipped(NAME, format!("{} cannot be read (needs root)", e.path.display()))
        }
        Err(e) => {
            let at = e.line.map(|l| format!("+{l} ")).unwrap_or_default();
            let path = e.path.display();
            Check::fail(NAME, e.to_string(), format!("editor {at}{path}\nlabd config check {path}"))
        }
    }]
}

/// Whether labd runs.
pub(super) async fn daemon(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "daemon";
    let start = if installed(scene) { "systemctl start labd" } else { "labd up" };
    vec![match &scene.subject.daemon {
        DaemonSeen::Running(s) => {
            let version = &s.labd.version;
            if version != env!("CARGO_PKG_VERSION") {
                let why = format!("labd {version} runs, and this is {}", env!("CARGO_PKG_VERSION"));
                return vec![Check::warn(NAME, why, "systemctl restart labd")];
            }
            Check::ok(NAME, format!("labd {version} (pid {}) runs the lab `{}`", s.labd.pid, s.labd.lab))
        }
        DaemonSeen::NotForUs => {
            Check::skipped(NAME, format!("{} is not for this user (needs root)", scene.subject.socket.display()))
        }
        DaemonSeen::Ill(why) => Check::fail(NAME, why.clone(), "systemctl restart labd"),
        DaemonSeen::Absent => {
            let standing = scene.standing().await.unwrap_or_default();
            let ours = standing.iter().filter(|c| c.running && c.lab == Some(scene.config().lab.name)).count();
            let why = if ours > 0 {
                format!("does not run: {} not supervised", count(ours, "container"))
            } else {
                "does not run".to_owned()
            };
            Check::warn(NAME, why, start)
        }
    }]
}

fn installed(scene: &Scene) -> bool {
    scene.systemd() && scene.subject.root.join(UNIT_PATH).exists()
}

/// Whether systemd starts labd, also after a power cut.
pub(super) async fn unit(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "unit";
    if !scene.systemd() {
        return vec![Check::skipped(NAME, "systemd does not run this machine")];
    }
    let properties = "LoadState,UnitFileState,ActiveState,NeedDaemonReload,NRestarts";
    let said = say("systemctl", &["show", "labd.service", "-p", properties], QUESTION).await;
    let file = fs::read_to_string(scene.subject.root.join(UNIT_PATH)).ok();
    vec![match said.fine() {
        Some(text) => judge_unit(text, file.as_deref()),
        None => Check::fail(NAME, "systemd does not answer", "systemctl status --no-pager"),
    }]
}

/// Judges the unit. `said` are lines of `systemctl show`, `file` is the unit in /etc.
fn judge_unit(said: &str, file: Option<&str>) -> Check {
    const NAME: &str = "unit";
    let properties: BTreeMap<&str, &str> = said.lines().filter_map(|l| l.split_once('=')).collect();
    let is = |key: &str, value: &str| properties.get(key).is_some_and(|v| *v == value);
    if !is("LoadState", "loaded") {
        return Check::warn(NAME, "labd.service is not installed: nothing starts labd after a reboot", "labd install");
    }
    if is("ActiveState", "failed") {
        return Check::fail(NAME, "labd.service failed", "journalctl -u labd -n 50\nsystemctl restart labd");
    }
    if is("NeedDaemonReload", "yes") {
        return Check::warn(NAME, "labd.service changed on disk", "systemctl daemon-reload\nsystemctl restart labd");
    }
    if file.is_some_and(|text| text != UNIT) {
        return Check::warn(NAME, "labd.service is not the one of this labd", "labd install");
    }
    if !is("UnitFileState", "enabled") {
        return Check::warn(
            NAME,
            "labd.service is not enabled: nothing starts labd after a reboot",
            "systemctl enable labd",
        );
    }
    if !is("ActiveState", "active") {
        return Check::warn(NAME, "labd.service is enabled and not active", "systemctl start labd");
    }
    Check::ok(NAME, "labd.service is enabled and active")
}

/// Checks for services that only a person can help, as the daemon sees it.
pub(super) async fn services(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "services";
    let Some(snapshot) = scene.snapshot() else {
        return vec![Check::skipped(NAME, "the daemon does not report their states")];
    };
    let mut checks = Vec::new();
    let (mut ready, mut on) = (0, 0);
    for service in &snapshot.services {
        let name = &service.name;
        let said = format!("{name} is {}: {}", service.state.as_str(), service.last_reason);
        on += usize::from(service.state != ServiceState::Off);
        match service.state {
            ServiceState::Ready => ready += 1,
            ServiceState::CrashLoop | ServiceState::Blocked => {
                checks.push(Check::fail(NAME, said, format!("labd logs {name} -n 50\nlabd start {name}")));
            }
            ServiceState::Unhealthy | ServiceState::Backoff => {
                checks.push(Check::warn(NAME, said, format!("labd logs {name} -n 50")));
            }
            _ if service.is_done_without() => checks.push(Check::warn(NAME, said, "labd images list")),
            ServiceState::Unavailable => checks.push(Check::fail(NAME, said, "labd images list")),
            ServiceState::Held => checks.push(Check::warn(NAME, said, end_of_hold(name, &service.last_reason))),
            _ => {}
        }
    }
    if checks.is_empty() {
        let rest = if ready < on { ", the others are on their way" } else { "" };
        checks.push(Check::ok(NAME, format!("{ready} of {on} are ready{rest}")));
    }
    checks
}

/// Command that ends a hold: a reason that names a GPU's release is a quarantine, which `labd start` does not end.
fn end_of_hold(name: &str, reason: &str) -> String {
    let release = reason.split('`').find(|part| part.starts_with("labd gpu release "));
    release.map_or_else(|| format!("labd start {name}"), str::to_owned)
}

/// Process of Ray.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RayProcess {
    pid: u32,
    name: String,
    /// Whether it is outside of any container; `None` when that cannot be seen.
    on_host: bool,
}

/// Checks for a Ray that somebody started by hand: it takes the same ports and GPUs.
pub(super) async fn other_ray(scene: &Scene) -> Vec<Check> {
    let root = scene.subject.root.clone();
    let found = blocking(move || ray_processes(&root)).await.unwrap_or_default();
    vec![judge_ray(&found)]
}

fn ray_processes(root: &Path) -> Vec<RayProcess> {
    let proc = root.join("proc");
    let mut found = Vec::new();
    for entry in fs::read_dir(&proc).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
        if !matches!(name.as_str(), "raylet" | "gcs_server") {
            continue;
        }
        let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let contained = ["docker", "containerd", "libpod", "kubepods", "lxc"].iter().any(|c| cgroup.contains(c));
        found.push(RayProcess { pid, name, on_host: !contained });
    }
    found.sort_by_key(|p| p.pid);
    found
}

fn judge_ray(found: &[RayProcess]) -> Check {
    const NAME: &str = "other-ray";
    let on_host: Vec<&RayProcess> = found.iter().filter(|p| p.on_host).collect();
    if on_host.is_empty() {
        return Check::ok(NAME, "no Ray runs outside of containers");
    }
    let named: Vec<String> = on_host.iter().take(3).map(|p| format!("{} (pid {})", p.name, p.pid)).collect();
    let pids: Vec<String> = on_host.iter().map(|p| p.pid.to_string()).collect();
    Check::warn(
        NAME,
        format!("Ray runs outside of labd and takes its ports and GPUs: {}", named.join(", ")),
        // `ray stop` would end the lab's nodes along with it.
        format!("kill {}", pids.join(" ")),
    )
}

/// Checks for containers of labs that nobody runs any more.
pub(super) async fn other_labs(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "other-labs";
    let Some(standing) = scene.standing().await else {
        return vec![Check::skipped(NAME, "the engine was not reached")];
    };
    let (root, config) = (scene.subject.root.clone(), scene.config());
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let dirs = [true, false].map(|root_user| daemon::locks(root_user, runtime.as_deref(), &config.lab.data_dir));
    let held = blocking(move || dirs.iter().flat_map(|dir| held_labs(&root, dir)).collect::<BTreeSet<_>>()).await;
    judge_labs(standing, &config.lab.name, &held.unwrap_or_default())
}

/// Labs whose daemon runs: each holds a lock in `dir`. The kernel's list says which are held, as the files are not for
/// everybody to open.
fn held_labs(root: &Path, dir: &Path) -> BTreeSet<String> {
    let locks = fs::read_to_string(root.join("proc/locks")).unwrap_or_default();
    let inodes: BTreeSet<&str> = locks
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.matches(':').count() == 2))
        .filter_map(|file| file.rsplit(':').next())
        .collect();
    let dir = root.join(dir.strip_prefix("/").unwrap_or(dir));
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let held = entries.filter(|e| e.metadata().is_ok_and(|m| inodes.contains(m.ino().to_string().as_str())));
    held.filter_map(|e| e.file_name().to_str()?.strip_suffix(".lock").map(str::to_owned)).collect()
}

/// Judges the other labs. `held` are the labs whose daemon runs.
fn judge_labs(standing: &[Standing], own: &str, held: &BTreeSet<String>) -> Vec<Check> {
    const NAME: &str = "other-labs";
    let others: BTreeSet<&str> = standing.iter().filter_map(|c| c.lab.as_deref()).filter(|lab| *lab != own).collect();
    let mut checks = Vec::new();
    for lab in others.iter().filter(|lab| !held.contains(**lab)) {
        let n = standing.iter().filter(|c| c.lab.as_deref() == Some(*lab)).count();
        checks.push(Check::warn(
            NAME,
            format!("{} of the lab `{lab}`, which no labd runs", count(n, "container")),
            format!("docker rm -f $(docker ps -aq -f label={}={lab})", crate::engine::LABEL_LAB),
        ));
    }
    if checks.is_empty() {
        let others: Vec<&str> = others.into_iter().collect();
        checks.push(if others.is_empty() {
            Check::ok(NAME, "no other lab left containers")
        } else {
            Check::ok(NAME, format!("{} run beside this one, each with its labd", others.join(", ")))
        });
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_unit_is_installed_enabled_and_active() {
        let judge = |load: &str, file: &str, active: &str, reload: &str| {
            let said =
                format!("LoadState={load}\nUnitFileState={file}\nActiveState={active}\nNeedDaemonReload={reload}\n");
            let c = judge_unit(&said, Some(UNIT));
            (c.verdict, c.fix.unwrap_or_default())
        };
        assert_eq!(judge("loaded", "enabled", "active", "no").0, Verdict::Ok);
        assert_eq!(judge("not-found", "", "inactive", "no"), (Verdict::Warn, "labd install".into()));
        assert_eq!(judge("loaded", "disabled", "active", "no").1, "systemctl enable labd");
        assert_eq!(judge("loaded", "enabled", "inactive", "no").1, "systemctl start labd");
        assert_eq!(judge("loaded", "enabled", "failed", "no").0, Verdict::Fail);
        assert!(judge("loaded", "enabled", "active", "yes").1.starts_with("systemctl daemon-reload"));
        let other = judge_unit("LoadState=loaded\nUnitFileState=enabled\nActiveState=active\n", Some("[Unit]\n"));
        assert_eq!(other.fix.as_deref(), Some("labd install"));
    }

    #[test]
    fn a_hold_is_ended_by_the_command_that_ends_it() {
        let by_hand = "stopped by hand; `labd start ray-worker-1` or `docker start labd-ray-worker-1` releases it";
        let quarantined = "its GPU is quarantined: it fell off the bus; reboot; then `labd gpu release SIM-1`";
        assert_eq!(end_of_hold("ray-worker-1", by_hand), "labd start ray-worker-1");
        assert_eq!(end_of_hold("ray-worker-1", quarantined), "labd gpu release SIM-1");
    }

    #[test]
    fn ray_in_a_container_is_nobodys_business() {
        let root = tempfile::tempdir().expect("a directory");
        for (pid, comm, cgroup) in [
            ("41", "raylet", "12:cpu:/docker/0a1b\n"),
            ("42", "gcs_server", "0::/system.slice/docker-0a1b.scope\n"),
            ("43", "raylet", "0::/user.slice/user-1000.slice\n"),
            ("44", "python3", "0::/user.slice\n"),
        ] {
            let dir = root.path().join("proc").join(pid);
            fs::create_dir_all(&dir).expect("made");
            fs::write(dir.join("comm"), format!("{comm}\n")).expect("written");
            fs::write(dir.join("cgroup"), cgroup).expect("written");
        }
        let check = judge_ray(&ray_processes(root.path()));
        assert_eq!((check.verdict, check.fix.as_deref()), (Verdict::Warn, Some("kill 43")));
        assert!(check.why.ends_with("raylet (pid 43)"), "{}", check.why);
        assert_eq!(judge_ray(&[]).verdict, Verdict::Ok);
    }

    #[test]
    fn a_lab_without_its_labd_is_a_leftover() {
        let of = |lab: &str| Standing {
            name: format!("{lab}-minio"),
            lab: Some(lab.to_owned()),
            service: Some("minio".to_owned()),
            running: true,
            published: Vec::new(),
        };
        let root = tempfile::tempdir().expect("a directory");
        let locks = root.path().join("run/labd/labs");
        fs::create_dir_all(&locks).expect("made");
        fs::create_dir_all(root.path().join("proc")).expect("made");
        fs::write(locks.join("beside.lock"), "").expect("written");
        fs::write(locks.join("old.lock"), "").expect("written");
        let inode = fs::metadata(locks.join("beside.lock")).expect("there").ino();
        fs::write(root.path().join("proc/locks"), format!("1: FLOCK  ADVISORY  WRITE 812 00:1b:{inode} 0 EOF\n"))
            .expect("written");
        let held = &held_labs(root.path(), Path::new("/run/labd/labs"));
        let found = judge_labs(&[of("own"), of("beside"), of("old"), of("old")], "own", held);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].why, "2 containers of the lab `old`, which no labd runs");
        assert!(found[0].fix.as_ref().is_some_and(|f| f.ends_with("label=dev.labd.lab=old)")), "{found:?}");
        assert_eq!(judge_labs(&[of("own"), of("beside")], "own", held)[0].verdict, Verdict::Ok);
    }
}

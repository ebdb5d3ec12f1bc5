//! Checks of the container engine and its settings.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{Check, Scene, blocking, without_fix};
use crate::engine::{EngineError, docker::Setup};

/// File with the engine's own settings.
const SETTINGS: &str = "/etc/docker/daemon.json";

/// Whether it answers, may be used, and is new enough.
pub(super) async fn answers(scene: &Scene) -> Vec<Check> {
    let socket = scene.config().engine.socket;
    let at = Install {
        systemd: scene.systemd(),
        installed: ["usr/bin/dockerd", "usr/sbin/dockerd", "usr/local/bin/dockerd"]
            .iter()
            .any(|p| scene.subject.root.join(p).exists()),
        root_user: scene.root_user,
    };
    vec![judge_answer(scene.setup().await, &socket, at)]
}

/// Installation of an engine on the machine.
#[derive(Debug, Clone, Copy)]
struct Install {
    systemd: bool,
    installed: bool,
    root_user: bool,
}

fn judge_answer(setup: &Result<Setup, EngineError>, socket: &str, at: Install) -> Check {
    const NAME: &str = "engine";
    let error = match setup {
        Ok(setup) if setup.seccomp && before(&setup.version, CLONE3) => {
            let why = format!(
                "{} is older than 20.10.10: unless its distribution mended it, its containers may not use clone3, and \
                 programs of today's images cannot start threads",
                setup.version
            );
            let fix =
                "apt-get install docker.io    # or, where that is no newer: https://docs.docker.com/engine/install/";
            return Check::warn(NAME, why, fix);
        }
        Ok(setup) => {
            let how = if setup.rootless { ", rootless" } else { "" };
            let socket = socket.trim_start_matches("unix://");
            return Check::ok(NAME, format!("{} (API {}{how}) answers at {socket}", setup.version, setup.api));
        }
        Err(error) => error.to_string(),
    };
    let start = if at.systemd { "systemctl start docker" } else { "dockerd >/var/log/dockerd.log 2>&1 &" };
    if error.contains("no permission") {
        let why = without_fix(&error);
        let fix = "sudo labd doctor\n# or, for good: usermod -aG docker USER, and log in again";
        // The daemon runs as root: what this user may do says nothing about it.
        return if at.root_user {
            Check::fail(NAME, why, format!("ls -l {}", socket.trim_start_matches("unix://")))
        } else {
            Check { fix: Some(fix.to_owned()), ..Check::skipped(NAME, format!("{why} (needs root)")) }
        };
    }
    let fix = if error.contains("Podman answers") {
        "apt-get install docker.io\n# if `engine.socket` in labd.toml names Podman's socket, take it out"
    } else if error.contains("too old") || (error.contains("no container engine") && !at.installed) {
        "apt-get install docker.io"
    } else if error.contains("no container engine") {
        start
    } else if error.contains("is not the path") {
        "# set `engine.socket = \"unix:///var/run/docker.sock\"` in labd.toml"
    } else if at.systemd {
        "journalctl -u docker -n 30\nsystemctl restart docker"
    } else {
        "docker version"
    };
    Check::fail(NAME, without_fix(&error), fix)
}

/// First version of the engine that answers a container's clone3 as a kernel without it would (moby 42836). Older ones
/// answer that it is forbidden, which glibc since 2.34 takes for a failure.
const CLONE3: [u32; 3] = [20, 10, 10];

/// Whether a version such as `20.10.5+dfsg1` is older than another. One that cannot be read is not.
fn before(version: &str, first: [u32; 3]) -> bool {
    let number = |part: &str| part.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse::<u32>().ok());
    let found: Option<Vec<u32>> = version.splitn(3, '.').map(number).collect();
    found.is_some_and(|found| found.as_slice() < first.as_slice())
}

/// Whether something keeps the engine's containers from folders of this machine.
pub(super) async fn confinement(scene: &Scene) -> Vec<Check> {
    let Ok(setup) = scene.setup().await else {
        return vec![Check::skipped("confinement", "the engine was not reached")];
    };
    let enforcing = std::fs::read_to_string(scene.subject.root.join("sys/fs/selinux/enforce"));
    judge_confinement(setup, enforcing.is_ok_and(|text| text.trim() == "1"), &scene.config().lab.data_dir)
}

fn judge_confinement(setup: &Setup, enforcing: bool, data_dir: &Path) -> Vec<Check> {
    const NAME: &str = "confinement";
    let data_dir = data_dir.display();
    let mut checks = Vec::new();
    if setup.root_dir.starts_with("/var/snap/") {
        checks.push(Check::fail(
            NAME,
            format!("Docker is a snap, which sees only home directories: its containers cannot have {data_dir}"),
            "# its images and volumes go with it: copy what you need of them first\nsnap remove docker\n\
             apt-get install docker.io",
        ));
    }
    if setup.remaps_users && !setup.rootless {
        checks.push(Check::fail(
            NAME,
            format!(
                "the engine has userns-remap: root in a container is another user here, who may not enter {data_dir}, so \
                 jobs do not reach labd"
            ),
            format!("# take \"userns-remap\" out of {SETTINGS}, then:\nsystemctl restart docker"),
        ));
    }
    if setup.selinux && enforcing {
        checks.push(Check::fail(
            NAME,
            format!(
                "SELinux is enforced on containers: they may neither read {data_dir} nor connect to labd's socket there, so \
                 jobs do not reach labd"
            ),
            format!("# take \"selinux-enabled\" out of {SETTINGS} (and out of dockerd's options), then:\nsystemctl restart docker"),
        ));
    }
    if checks.is_empty() {
        checks.push(Check::ok(NAME, "containers get folders of this machine as they are"));
    }
    checks
}

/// First version of the engine whose `docker system prune --volumes` spares named volumes.
const KEEPS_NAMED_VOLUMES: [u32; 3] = [23, 0, 0];

/// Whether a usual way to free disk space takes the lab's volumes along.
pub(super) async fn volumes(scene: &Scene) -> Vec<Check> {
    vec![match scene.setup().await {
        Ok(setup) => judge_volumes(&setup.version),
        Err(_) => Check::skipped("volumes", "the engine was not reached"),
    }]
}

fn judge_volumes(version: &str) -> Check {
    const NAME: &str = "volumes";
    if before(version, KEEPS_NAMED_VOLUMES) {
        let why = format!(
            "{version}: `docker system prune --volumes` and `docker volume prune` take the volumes of a lab that is down, and \
             with them its checkpoints"
        );
        let fix = "# run neither while the lab is down, or install 23.0 or newer:\n\
                   # https://docs.docker.com/engine/install/";
        return Check::warn(NAME, why, fix);
    }
    Check::ok(NAME, "`docker system prune --volumes` spares the lab's volumes")
}

/// Whether containers outlive a restart of the engine.
pub(super) async fn live_restore(scene: &Scene) -> Vec<Check> {
    let setup = scene.setup().await;
    let settings = std::fs::read_to_string(scene.subject.root.join(SETTINGS.trim_start_matches('/'))).ok();
    vec![match setup {
        Ok(setup) => judge_live_restore(setup, settings.as_deref(), scene.systemd()),
        Err(_) => Check::skipped("live-restore", "the engine was not reached"),
    }]
}

fn judge_live_restore(setup: &Setup, settings: Option<&str>, systemd: bool) -> Check {
    const NAME: &str = "live-restore";
    if setup.live_restore {
        return Check::ok(NAME, "containers outlive a restart of the engine");
    }
    if setup.swarm {
        return Check::skipped(NAME, "the engine is part of a swarm, which cannot have it");
    }
    let settled = "off: a restart or upgrade of the engine ends every container, and labd starts them again";
    let reload = if systemd { "systemctl reload docker" } else { "kill -HUP $(pidof dockerd)" };
    Check::warn(NAME, settled, format!("{}\n{reload}", edit(settings)))
}

/// Whether what containers write to folders of this machine can make a local user root.
pub(super) async fn set_id(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "set-id";
    let config = scene.config();
    let filters = match scene.setup().await {
        Ok(setup) => setup.seccomp,
        Err(_) => return vec![Check::skipped(NAME, "the engine was not reached")],
    };
    let mut folders = vec![config.workspace()];
    folders.extend(config.mounts.iter().filter(|m| !m.read_only).map(|m| m.source.clone()));
    let (root, looked_in) = (scene.subject.root.clone(), folders.clone());
    let found = blocking(move || {
        let below = |dir: &PathBuf| root.join(dir.strip_prefix("/").unwrap_or(dir));
        looked_in.iter().find_map(|dir| find_set_id(&below(dir)))
    });
    vec![judge_set_id(filters, &folders, found.await.flatten().as_deref())]
}

/// First file below a folder that runs as its owner. Looks at a bounded number of files only, and at none behind links.
fn find_set_id(dir: &Path) -> Option<PathBuf> {
    const MOST: usize = 20_000;
    let mut open = vec![dir.to_owned()];
    let mut looked = 0;
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            looked += 1;
            let Ok(found) = entry.metadata() else { continue };
            if found.is_file() && found.mode() & 0o6000 != 0 {
                return Some(entry.path());
            }
            if found.is_dir() {
                open.push(entry.path());
            }
            if looked > MOST {
                return None;
            }
        }
    }
    None
}

fn judge_set_id(filters: bool, folders: &[PathBuf], found: Option<&Path>) -> Check {
    const NAME: &str = "set-id";
    if let Some(file) = found {
        let why = format!("{} runs as its owner, whoever starts it: a container may have made it", file.display());
        return Check::fail(NAME, why, format!("ls -l {0}\nchmod ug-s {0}", file.display()));
    }
    let named: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    if filters {
        return Check::ok(NAME, format!("no container can make a set-id file in {}", named.join(", ")));
    }
    Check::warn(
        NAME,
        format!(
            "the engine's kernel filters no system calls: what runs in a container can make a set-id file in {}, which makes \
             any local user root",
            named.join(", ")
        ),
        format!(
            "# mount each with `nosuid,nodev` on this machine, such as\nmount --bind {0} {0}\nmount -o remount,bind,nosuid,nodev {0}",
            named[0]
        ),
    )
}

/// Command that switches it on in the engine's settings as they are, and keeps the rest of them.
fn edit(settings: Option<&str>) -> String {
    let text = settings.unwrap_or_default().trim();
    let parsed = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text);
    match parsed {
        Ok(map) if map.contains_key("live-restore") => {
            format!(r#"sed -i 's/"live-restore": *false/"live-restore": true/' {SETTINGS}"#)
        }
        Ok(map) if !map.is_empty() => format!(r#"sed -i '0,/{{/s//{{ "live-restore": true,/' {SETTINGS}"#),
        // Not JSON: whatever it is must not be overwritten.
        Err(_) if !text.is_empty() => format!("# {SETTINGS} is not JSON: correct it, and add \"live-restore\": true"),
        _ => {
            let folder = Path::new(SETTINGS).parent().unwrap_or(Path::new("/")).display();
            format!("mkdir -p {folder}\necho '{{ \"live-restore\": true }}' >{SETTINGS}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::doctor::Verdict;

    const AT: Install = Install { systemd: true, installed: true, root_user: true };

    fn unreachable(text: &str) -> Result<Setup, EngineError> {
        Err(EngineError::Unreachable(text.to_owned()))
    }

    #[test]
    fn each_way_not_to_answer_has_its_own_command() {
        let none = unreachable("no container engine answers at /s; start it with `x` or install it with `y`");
        let verdict = |setup, at| {
            let c = judge_answer(setup, "unix:///s", at);
            (c.verdict, c.why, c.fix.unwrap_or_default())
        };
        assert_eq!(
            verdict(&none, AT),
            (Verdict::Fail, "no container engine answers at /s".into(), "systemctl start docker".into())
        );
        assert_eq!(verdict(&none, Install { installed: false, ..AT }).2, "apt-get install docker.io");
        assert!(verdict(&none, Install { systemd: false, ..AT }).2.starts_with("dockerd"));
        let denied = unreachable("no permission to use the container engine at /s; run labd as root or add");
        let said = verdict(&denied, Install { root_user: false, ..AT });
        assert_eq!(said.0, Verdict::Skipped);
        assert!(said.1.ends_with("(needs root)") && said.2.starts_with("sudo labd doctor"), "{said:?}");
        assert_eq!(verdict(&denied, AT).0, Verdict::Fail);
        let old = Err(EngineError::Other("the container engine 19.03.1 (API 1.40) is too old: labd needs; x".into()));
        assert_eq!(verdict(&old, AT).2, "apt-get install docker.io");
        let good = Ok(Setup { version: "28.2.2".into(), api: "1.50".into(), ..Setup::default() });
        assert_eq!(verdict(&good, AT).1, "28.2.2 (API 1.50) answers at /s");
    }

    #[test]
    fn an_engine_before_clone3_is_too_old() {
        let judge = |version: &str, seccomp| {
            let setup = Setup { version: version.into(), seccomp, ..Setup::default() };
            judge_answer(&Ok(setup), "unix:///s", AT).verdict
        };
        for old in ["20.10.5+dfsg1", "20.10.9", "19.03.15"] {
            assert_eq!(judge(old, true), Verdict::Warn, "{old}");
        }
        for good in ["20.10.10", "20.10.24+dfsg1", "28.2.2", "26.1.5+dfsg1", "29", "master-dockerproject"] {
            assert_eq!(judge(good, true), Verdict::Ok, "{good}");
        }
        assert_eq!(judge("20.10.5", false), Verdict::Ok, "nothing filters clone3");
    }

    #[test]
    fn podman_has_a_row_that_names_it() {
        let podman = Err(EngineError::Other("Podman answers at /s, which refuses x; install Docker".into()));
        let check = judge_answer(&podman, "unix:///s", AT);
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(
            check
                .fix
                .is_some_and(|fix| fix.starts_with("apt-get install docker.io\n") && fix.contains("engine.socket"))
        );
        assert_eq!(check.why, "Podman answers at /s, which refuses x");
    }

    #[test]
    fn an_engine_whose_pruning_takes_volumes_is_named() {
        for (version, verdict) in [
            ("20.10.24+dfsg1", Verdict::Warn),
            ("22.06.0-beta.0", Verdict::Warn),
            ("23.0.0", Verdict::Ok),
            ("28.2.2", Verdict::Ok),
        ] {
            assert_eq!(judge_volumes(version).verdict, verdict, "{version}");
        }
    }

    #[test]
    fn what_keeps_containers_from_folders_is_named() {
        let judge = |setup: &Setup, enforcing| judge_confinement(setup, enforcing, Path::new("/var/lib/labd"));
        let plain = Setup { root_dir: "/var/lib/docker".into(), ..Setup::default() };
        assert_eq!(judge(&plain, true)[0].verdict, Verdict::Ok, "SELinux, and the engine leaves it out");
        let snap = Setup { root_dir: "/var/snap/docker/common/var-lib-docker".into(), ..plain.clone() };
        let found = judge(&snap, false);
        assert!(found[0].why.contains("snap") && found[0].verdict == Verdict::Fail, "{found:?}");
        let remapped = Setup { remaps_users: true, ..plain.clone() };
        assert!(judge(&remapped, false)[0].why.contains("userns-remap"));
        assert_eq!(judge(&Setup { rootless: true, ..remapped }, false)[0].verdict, Verdict::Ok);
        let selinux = Setup { selinux: true, ..plain };
        assert!(judge(&selinux, true)[0].why.contains("SELinux"));
        assert_eq!(judge(&selinux, false)[0].verdict, Verdict::Ok, "permissive");
        let both = Setup { remaps_users: true, ..selinux };
        assert_eq!(judge(&both, true).len(), 2);
    }

    /// The fix is run as it is, on the settings it was made for.
    #[test]
    fn the_edit_switches_it_on_and_keeps_the_rest() {
        for settings in [
            None,
            Some(""),
            Some("{}"),
            Some("{\n}\n"),
            Some("{ \"dns\": [\"192.0.2.1\"] }"),
            Some("{\n  \"runtimes\": { \"nvidia\": { \"path\": \"x\" } }\n}\n"),
            Some("{\"live-restore\":false, \"dns\": []}"),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let file = dir.path().join("docker/daemon.json");
            if let Some(text) = settings {
                std::fs::create_dir_all(dir.path().join("docker")).expect("made");
                std::fs::write(&file, text).expect("written");
            }
            let fix = edit(settings).replace("/etc", dir.path().to_str().expect("ASCII"));
            let done = Command::new("sh").args(["-c", &fix]).status().expect("a shell");
            assert!(done.success(), "{fix}");
            let after: serde_json::Value =
                serde_json::from_str(&std::fs::read_to_string(&file).expect("there")).expect("JSON");
            assert_eq!(after["live-restore"], true, "{fix}");
            let before: serde_json::Value = serde_json::from_str(settings.unwrap_or("{}")).unwrap_or_default();
            for (key, value) in before.as_object().into_iter().flatten().filter(|(k, _)| *k != "live-restore") {
                assert_eq!(after[key], *value, "{fix}");
            }
        }
        assert!(edit(Some("{ dns: }")).starts_with("# "), "what is not JSON is left alone");
    }

    #[test]
    fn a_set_id_file_in_a_containers_folder_is_found() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("a/b/r");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("made");
        std::fs::write(&file, "").expect("written");
        assert_eq!(find_set_id(dir.path()), None);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o4755)).expect("set");
        assert_eq!(find_set_id(dir.path()), Some(file.clone()));
        let folders = [dir.path().to_owned()];
        let judge = |filters, found| judge_set_id(filters, &folders, found).verdict;
        assert_eq!(judge(true, Some(file.as_path())), Verdict::Fail);
        assert_eq!((judge(true, None), judge(false, None)), (Verdict::Ok, Verdict::Warn));
    }

    #[test]
    fn a_swarm_cannot_have_it() {
        let judge = |live_restore, swarm| {
            judge_live_restore(&Setup { live_restore, swarm, ..Setup::default() }, None, true).verdict
        };
        assert_eq!((judge(true, false), judge(false, false)), (Verdict::Ok, Verdict::Warn));
        assert_eq!(judge(false, true), Verdict::Skipped);
    }
}

//! Checks of the machine: memory, limits, room on its disks, the time.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Check, QUESTION, Scene, blocking, mirrors, say};
use crate::{
    config::Bytes,
    daemon::{Machine, StartError},
    engine::data_root,
    node::{
        self,
        disk_guard::{self, Level, Levels, Users},
    },
    snapshot::{DiskView, Severity},
};

/// Number of open files that a busy Ray node needs: what labd gives each container at most.
const NOFILE: u64 = 65_536;
/// Memory that must be lockable for RDMA to be of use, in bytes: one NCCL channel's buffers.
const MEMLOCK: u64 = 64 << 20;
/// Error of the clock from which on it is confusing.
const SKEW_WARN: Duration = Duration::from_secs(5);
/// Error of the clock from which on it breaks things: S3 refuses signatures that are 15 minutes off, package mirrors
/// their own releases.
const SKEW_FAIL: Duration = Duration::from_mins(5);

/// Whether what `labd.toml` asks for fits.
pub(super) async fn memory(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "memory";
    let Ok((config, _)) = scene.config.clone() else {
        return vec![Check::skipped(NAME, "labd.toml is wrong, see there")];
    };
    let path = scene.subject.config.clone();
    let pretended = scene.simulated();
    let wish = blocking(move || {
        // Which /24 it is does not matter for sizes.
        let simulate = (pretended > 0).then_some(pretended);
        let machine = Machine::without_gpus(node::facts(), simulate, [198, 18, 100]);
        machine.resolve(config, &path, true).map(|wish| wish.view.to_json()["sizes"].clone())
    });
    vec![match wish.await {
        None => Check::fail(NAME, "a file that labd.toml names does not answer", "findmnt -t nfs,nfs4,cifs,fuse"),
        Some(Err(StartError::Other(_))) if !scene.root_user => {
            Check::skipped(NAME, "the lab's credentials cannot be read (needs root)")
        }
        Some(Err(e)) => {
            let text = e.to_string();
            let (why, what) = text.rsplit_once(": ").unwrap_or((text.as_str(), "see labd.toml"));
            Check::fail(NAME, why, format!("# {what}\nlabd plan"))
        }
        Some(Ok(sizes)) => Check::ok(NAME, plan(&sizes)),
    }]
}

fn plan(sizes: &serde_json::Value) -> String {
    let size = |key: &str| Bytes::new(sizes[key].as_u64().unwrap_or(0));
    let workers = usize::try_from(sizes["workers"].as_u64().unwrap_or(0)).unwrap_or(usize::MAX);
    if workers == 0 {
        return format!("the plan fits, without workers; {} left for the host", size("host"));
    }
    format!(
        "{} of {}, their /dev/shm {}, {} left for the host",
        super::count(workers, "worker"),
        size("worker"),
        size("shared_memory"),
        size("host")
    )
}

/// Limits of the process that makes the containers: the daemon where it runs, this shell otherwise.
pub(super) async fn limits(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "limits";
    let pid = scene.snapshot().map(|s| s.labd.pid);
    let root = scene.subject.root.clone();
    let read = blocking(move || {
        let of = pid.map_or_else(|| "self".to_owned(), |p| p.to_string());
        let limits = std::fs::read_to_string(format!("/proc/{of}/limits")).ok()?;
        let rdma = std::fs::read_dir(root.join("sys/class/infiniband")).is_ok_and(|mut d| d.next().is_some());
        Some((limits, rdma))
    });
    vec![match read.await.flatten() {
        Some((limits, rdma)) => judge_limits(&limits, rdma, pid.is_some()),
        None => Check::skipped(NAME, "the daemon's limits cannot be read (needs root)"),
    }]
}

fn judge_limits(limits: &str, rdma: bool, of_daemon: bool) -> Check {
    const NAME: &str = "limits";
    let whose = if of_daemon { "the daemon's" } else { "this shell's" };
    let nofile = hard(limits, "Max open files");
    let memlock = hard(limits, "Max locked memory");
    if nofile < NOFILE {
        return Check::warn(
            NAME,
            format!("{whose} limit on open files is {nofile}: a busy Ray node needs {NOFILE}"),
            if of_daemon {
                "labd install    # its unit sets LimitNOFILE=65536\nsysctl fs.nr_open"
            } else {
                "ulimit -n 65536"
            },
        );
    }
    if rdma && memlock < MEMLOCK {
        return Check::warn(
            NAME,
            format!("{whose} limit on locked memory is {}: InfiniBand needs more", Bytes::new(memlock)),
            if of_daemon { "labd install    # its unit sets LimitMEMLOCK=infinity" } else { "ulimit -l unlimited" },
        );
    }
    let say = |n: u64| if n == u64::MAX { "unlimited".to_owned() } else { n.to_string() };
    let locked = if memlock == u64::MAX { "unlimited".to_owned() } else { Bytes::new(memlock).to_string() };
    Check::ok(NAME, format!("{whose}: {} open files, {locked} of locked memory", say(nofile)))
}

/// Hard limit in the text of `/proc/PID/limits`; unlimited when it is not in there.
fn hard(limits: &str, name: &str) -> u64 {
    let line = limits.lines().find_map(|l| l.strip_prefix(name));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(u64::MAX)
}

/// Checks how full the file systems are that matter to the lab.
pub(super) async fn disk(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "disk";
    let store = data_root(scene.setup().await.as_ref().ok().map(|s| s.root_dir.clone()));
    let places = vec![PathBuf::from("/"), scene.config().lab.data_dir, store];
    match blocking(move || node::disks(&places)).await {
        None => vec![Check::fail(
            NAME,
            format!("the file systems do not answer within {} s: one of them hangs", QUESTION.as_secs()),
            "findmnt -t nfs,nfs4,cifs,fuse",
        )],
        Some(disks) if disks.is_empty() => vec![Check::skipped(NAME, "the file systems' sizes cannot be read")],
        Some(disks) => judge_disks(&disks),
    }
}

/// Finding for each file system that is full, by the same thresholds as the page's.
fn judge_disks(disks: &[DiskView]) -> Vec<Check> {
    const NAME: &str = "disk";
    let mut levels = Levels::new();
    disk_guard::look(&mut levels, disks);
    let notices = disk_guard::notices(&levels, disks, Users { store: None, runs: &[], bucket_bytes: 0 });
    let fix = "docker system df\nlabd images prune\ndocker image prune\ndu -xhd1 / | sort -h | tail";
    let found: Vec<Check> = notices
        .into_iter()
        .map(|n| {
            if n.severity == Severity::Error { Check::fail(NAME, n.text, fix) } else { Check::warn(NAME, n.text, fix) }
        })
        .collect();
    if !found.is_empty() {
        return found;
    }
    debug_assert!(levels.values().all(|l| *l == Level::Fine));
    let free = disks.iter().map(|d| format!("{} free on {}", Bytes::new(d.available_bytes), d.mount));
    vec![Check::ok(NAME, free.collect::<Vec<_>>().join(", "))]
}

/// Whether what labd and JupyterLab write to is on a file system whose server decides who may.
pub(super) async fn nfs(scene: &Scene) -> Vec<Check> {
    let mountinfo = std::fs::read_to_string(scene.subject.root.join("proc/self/mountinfo")).unwrap_or_default();
    let config = scene.config();
    let mut folders = vec![("lab.data_dir", config.lab.data_dir.clone()), ("lab.workspace", config.workspace())];
    folders.extend(config.mounts.iter().filter(|m| !m.read_only).map(|m| ("mounts.source", m.source.clone())));
    judge_nfs(&mountinfo, &folders)
}

fn judge_nfs(mountinfo: &str, folders: &[(&str, PathBuf)]) -> Vec<Check> {
    const NAME: &str = "nfs";
    let mut checks = Vec::new();
    for (setting, folder) in folders {
        let Some(server) = nfs_server(mountinfo, folder) else { continue };
        let at = format!("`{setting}` ({}) is on NFS ({server})", folder.display());
        checks.push(if *setting == "lab.data_dir" {
            let why = format!("{at}: labd's databases need a disk of this machine");
            Check::warn(NAME, why, "# set `lab.data_dir` in labd.toml to a folder on a disk of this machine")
        } else {
            let why = format!("{at}: where the server squashes root, notebooks and jobs, which are root, cannot write there");
            let fix = format!(
                "# export it with no_root_squash to this machine, or set `{setting}` to a folder on a disk of this machine"
            );
            Check::warn(NAME, why, fix)
        });
    }
    if checks.is_empty() {
        checks.push(Check::ok(NAME, "what labd, jobs and notebooks write to is on disks of this machine"));
    }
    checks
}

/// Server and export that a path is on, given the text of `/proc/self/mountinfo`; absent when it is not on NFS.
fn nfs_server(mountinfo: &str, path: &Path) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split_whitespace().nth(4)?.replace("\\040", " ");
        let mut fields = after.split_whitespace();
        path.starts_with(&point).then_some((point.len(), fields.next()?, fields.next()?))
    });
    // Of two mounts at one place the later covers the other, and that is what `max_by_key` returns.
    let (_, kind, source) = mounts.max_by_key(|(length, ..)| *length)?;
    matches!(kind, "nfs" | "nfs4").then(|| source.to_owned())
}

/// Whether the time is right, by whoever keeps it and by the package mirror.
pub(super) async fn clock(scene: &Scene) -> Vec<Check> {
    let systemd = scene.systemd();
    let (kept, mirror) = tokio::join!(
        async {
            if !systemd {
                return None;
            }
            match say("timedatectl", &["show", "-p", "NTPSynchronized", "--value"], QUESTION).await.fine() {
                Some(text) => Some(text == "yes"),
                None => scene.subject.root.join("run/systemd/timesync/synchronized").exists().then_some(true),
            }
        },
        scene.mirror()
    );
    vec![judge_clock(kept, mirror)]
}

fn judge_clock(kept: Option<bool>, mirror: &mirrors::Answer) -> Check {
    const NAME: &str = "clock";
    const FIX: &str = "timedatectl set-ntp true || apt-get install systemd-timesyncd\ntimedatectl timesync-status";
    if let Some(skew) = mirror.skew_seconds {
        let off = Duration::from_secs(skew.unsigned_abs());
        let why = || {
            let way = if skew > 0 { "ahead of" } else { "behind" };
            format!("{} s {way} the clock of {}", skew.unsigned_abs(), mirror.host)
        };
        if off >= SKEW_FAIL {
            return Check::fail(NAME, format!("{}: signatures and certificates are refused", why()), FIX);
        }
        if off >= SKEW_WARN {
            return Check::warn(NAME, why(), FIX);
        }
    }
    match (kept, mirror.skew_seconds) {
        (Some(true), _) => Check::ok(NAME, "kept in time over the network"),
        (Some(false), Some(_)) => Check::warn(NAME, format!("right by {}, but not kept in time", mirror.host), FIX),
        (Some(false), None) => Check::warn(NAME, "nothing keeps it in time", FIX),
        (None, Some(_)) => Check::ok(NAME, format!("agrees with {}", mirror.host)),
        (None, None) => Check::skipped(NAME, "neither systemd nor a package mirror says what time it is"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn disk(mount: &str, used: u64) -> DiskView {
        let available_bytes = (1_000 - used * 10) << 30;
        DiskView { mount: mount.to_owned(), total_bytes: 1_000 << 30, available_bytes, device: None }
    }

    #[test]
    fn disks_are_judged_as_the_page_does() {
        let verdicts = |disks: &[DiskView]| judge_disks(disks).iter().map(|c| c.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(&[disk("/", 84)]), [Verdict::Ok]);
        assert_eq!(verdicts(&[disk("/", 85), disk("/data", 96)]), [Verdict::Warn, Verdict::Fail]);
        assert_eq!(judge_disks(&[disk("/", 50)])[0].why, "500.0 GiB free on /");
    }

    #[test]
    fn a_workspace_on_nfs_is_another_machines() {
        let mountinfo = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                         40 22 0:50 / /home rw,relatime shared:9 - nfs4 nas:/home rw,vers=4.2\n\
                         41 40 8:2 / /home/local rw - xfs /dev/sdb1 rw\n\
                         42 22 0:51 / /old rw - nfs nas:/old rw\n43 22 8:3 / /old rw - ext4 /dev/sdc1 rw\n";
        let judge = |setting, path: &str| {
            let check = judge_nfs(mountinfo, &[(setting, path.into())]).remove(0);
            (check.verdict, check.why)
        };
        let (verdict, why) = judge("lab.workspace", "/home/lab/work");
        assert!(verdict == Verdict::Warn && why.contains("nas:/home") && why.contains("squashes root"), "{why}");
        assert!(judge("lab.data_dir", "/home/labd").1.contains("databases"));
        for local in ["/var/lib/labd", "/home/local/work", "/homes", "/old/work"] {
            assert_eq!(judge("lab.workspace", local).0, Verdict::Ok, "{local}");
        }
        assert_eq!(judge_nfs("", &[("lab.workspace", "/w".into())])[0].verdict, Verdict::Ok);
    }

    #[test]
    fn limits_are_those_of_who_makes_the_containers() {
        let text = |nofile: &str, memlock: &str| {
            format!(
                "Limit\nMax open files            1024   {nofile}   files\nMax locked memory 65536 {memlock} bytes\n"
            )
        };
        let judge = |nofile, memlock, rdma| judge_limits(&text(nofile, memlock), rdma, true);
        assert_eq!(judge("65536", "unlimited", true).verdict, Verdict::Ok);
        assert_eq!(judge("65536", "8388608", false).why, "the daemon's: 65536 open files, 8 MiB of locked memory");
        assert!(judge("65536", "8388608", true).fix.is_some_and(|f| f.contains("LimitMEMLOCK")));
        assert_eq!(judge("4096", "unlimited", false).verdict, Verdict::Warn);
        assert_eq!(judge("unlimited", "unlimited", false).verdict, Verdict::Ok);
    }

    #[test]
    fn a_clock_is_wrong_by_how_much() {
        let mirror = |skew_seconds| mirrors::Answer { host: "m".into(), skew_seconds, ..mirrors::Answer::default() };
        let judge = |kept, skew| judge_clock(kept, &mirror(skew));
        assert_eq!(judge(Some(true), Some(4)).verdict, Verdict::Ok);
        assert_eq!(judge(Some(true), Some(-40)).why, "40 s behind the clock of m");
        assert_eq!(judge(Some(true), Some(4_000)).verdict, Verdict::Fail);
        assert_eq!(judge(Some(false), Some(0)).verdict, Verdict::Warn);
        assert_eq!((judge(None, Some(0)).verdict, judge(None, None).verdict), (Verdict::Ok, Verdict::Skipped));
    }
}

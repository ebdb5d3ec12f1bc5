//! Disk guard: how full a file system may be before somebody is told. Pure: labd warns, names what is large, and
//! deletes nothing.

use std::collections::BTreeMap;

use crate::{
    config::Bytes,
    snapshot::{DiskView, Notice, RunView, Severity},
};

/// Fill level from which on there is a warning, in percent.
const LOW: u64 = 85;
/// Fill level from which on there is an error, in percent.
const FULL: u64 = 95;
/// Distance below a threshold to which a file system must fall before it counts as crossed back, in percent points.
const BACK: u64 = 2;
/// Share of what is used from which on the store is named as what fills a disk, in percent. Chosen.
const WORTH_NAMING: u64 = 1;
/// Number of the largest runs that are named.
const NAMED: usize = 3;

/// Fill level of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Enough room.
    #[default]
    Fine,
    /// Will hurt later.
    Low,
    /// Hurts now.
    Full,
}

impl Level {
    /// Every level.
    pub const ALL: [Self; 3] = [Self::Fine, Self::Low, Self::Full];

    /// Word for the level in the journal.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "disk-fine",
            Self::Low => "disk-low",
            Self::Full => "disk-full",
        }
    }
}

/// File system that crossed a threshold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossing {
    /// Mount point.
    pub mount: String,
    /// Level after the crossing.
    pub to: Level,
    /// One line for the journal.
    pub text: String,
}

/// Level of each file system, by mount point.
pub type Levels = BTreeMap<String, Level>;

/// Users of the room, as far as labd knows.
#[derive(Debug, Clone, Copy)]
pub struct Users<'a> {
    /// Mount point of the file system that MinIO's volume is on; absent when checkpoints are kept elsewhere.
    pub store: Option<&'a str>,
    /// Runs and what is kept of them.
    pub runs: &'a [RunView],
    /// Size of everything in the bucket, in bytes.
    pub bucket_bytes: u64,
}

/// Compares every file system with its level before, and returns those that crossed a threshold: once each way.
pub fn look(levels: &mut Levels, disks: &[DiskView]) -> Vec<Crossing> {
    let mut crossings = Vec::new();
    for (n, disk) in disks.iter().enumerate() {
        let before = levels.get(&disk.mount).copied().unwrap_or_default();
        let now = level(used_percent(disk), before);
        if now != before {
            levels.insert(disk.mount.clone(), now);
            if !is_told(disks, n) {
                crossings.push(Crossing { mount: disk.mount.clone(), to: now, text: fill(disk) });
            }
        }
    }
    levels.retain(|mount, _| disks.iter().any(|d| d.mount == *mount));
    crossings
}

/// Notices for a person.
pub fn notices(levels: &Levels, disks: &[DiskView], users: Users<'_>) -> Vec<Notice> {
    let notice = |disk: &DiskView| {
        let level = levels.get(&disk.mount).copied().unwrap_or_default();
        // What is stored there may go by the other name.
        let of_store = disks.iter().find(|other| users.store == Some(other.mount.as_str()) && are_one(other, disk));
        let (fill, largest) = (fill(disk), largest(of_store.unwrap_or(disk), users));
        match level {
            Level::Fine => None,
            Level::Low => Some(Notice {
                severity: Severity::Warning,
                text: format!("{fill}: make room before it is full.{largest}"),
            }),
            Level::Full => Some(Notice {
                severity: Severity::Error,
                text: format!(
                    "{fill}: checkpoints that cannot be written are lost work. labd deletes \
                     nothing: remove what is not needed.{largest}"
                ),
            }),
        }
    };
    let told = disks.iter().enumerate().filter(|&(n, _)| !is_told(disks, n));
    told.filter_map(|(_, disk)| notice(disk)).collect()
}

/// Whether one before it is the same file system.
fn is_told(disks: &[DiskView], n: usize) -> bool {
    disks[..n].iter().any(|before| are_one(before, &disks[n]))
}

/// Whether both are one file system, mounted twice.
fn are_one(a: &DiskView, b: &DiskView) -> bool {
    a.device.is_some() && a.device == b.device
}

/// Whether a file system counts as full, given whether it did before.
pub fn is_full(disk: &DiskView, before: bool) -> bool {
    let before = if before { Level::Full } else { Level::Fine };
    level(used_percent(disk), before) == Level::Full
}

/// Text that says how full a file system is, such as `/data is 96 % full, 40.0 GiB free`.
pub fn fill(disk: &DiskView) -> String {
    format!("{} is {} % full, {} free", disk.mount, used_percent(disk), Bytes::new(disk.available_bytes))
}

/// File system of `disks` that a path is on: the longest mount point above it.
pub fn mount_of<'a>(disks: &'a [DiskView], path: &str) -> Option<&'a str> {
    let path = std::path::Path::new(path);
    let above = disks.iter().map(|d| d.mount.as_str()).filter(|mount| path.starts_with(mount));
    above.max_by_key(|mount| mount.len())
}

fn level(percent: u64, before: Level) -> Level {
    let at = |threshold: u64, level: Level| percent >= threshold - if before >= level { BACK } else { 0 };
    if at(FULL, Level::Full) {
        Level::Full
    } else if at(LOW, Level::Low) {
        Level::Low
    } else {
        Level::Fine
    }
}

fn used_percent(disk: &DiskView) -> u64 {
    let free = u128::from(disk.available_bytes) * 100 / u128::from(disk.total_bytes.max(1));
    100_u64.saturating_sub(u64::try_from(free).unwrap_or(100))
}

/// Text such as ` Checkpoints take 13 GiB of it: food11 12 GiB, old 1 GiB; ...`, or nothing.
fn largest(disk: &DiskView, users: Users<'_>) -> String {
    let used = disk.total_bytes.saturating_sub(disk.available_bytes);
    if users.store != Some(disk.mount.as_str()) || users.bucket_bytes <= used / 100 * WORTH_NAMING {
        return String::new();
    }
    let mut runs: Vec<&RunView> = users.runs.iter().filter(|run| run.used_bytes > 0).collect();
    runs.sort_by_key(|run| std::cmp::Reverse(run.used_bytes));
    let named = runs.iter().take(NAMED).map(|run| format!("{} {}", run.name, Bytes::new(run.used_bytes)));
    let named = named.collect::<Vec<_>>().join(", ");
    let colon = if named.is_empty() { "" } else { ": " };
    format!(
        " The S3 store takes {} of it{colon}{named}; `CheckpointConfig(num_to_keep=2)` keeps a run small, and \
         `docker system df` shows what images and volumes take.",
        Bytes::new(users.bucket_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(mount: &str, used: u64) -> DiskView {
        let available_bytes = (1_000 - used * 10) << 30;
        DiskView { mount: mount.to_owned(), total_bytes: 1_000 << 30, available_bytes, device: None }
    }

    fn run(name: &str, used_bytes: u64) -> RunView {
        RunView {
            name: name.to_owned(),
            submission_id: None,
            status: None,
            started_at: None,
            attempts: 0,
            checkpoint: None,
            checkpoints: 0,
            used_bytes,
            looked_at: None,
            note: None,
        }
    }

    #[test]
    fn each_threshold_is_told_once_each_way() {
        let mut levels = Levels::new();
        for (used, told) in [
            (84, None),
            (85, Some(Level::Low)),
            (84, None),
            (83, None),
            (82, Some(Level::Fine)),
            (84, None),
            (90, Some(Level::Low)),
            (95, Some(Level::Full)),
            (93, None),
            (95, None),
            (92, Some(Level::Low)),
            (100, Some(Level::Full)),
            (10, Some(Level::Fine)),
        ] {
            let crossings = look(&mut levels, &[disk("/", used)]);
            assert_eq!(crossings.first().map(|c| c.to), told, "at {used} %");
            assert!(crossings.iter().all(|c| c.text.contains(&format!("/ is {used} % full"))), "{crossings:?}");
        }
        look(&mut levels, &[disk("/", 99), disk("/data", 99)]);
        look(&mut levels, &[disk("/", 99)]);
        assert_eq!(levels.keys().collect::<Vec<_>>(), ["/"], "one that is gone is forgotten");
    }

    #[test]
    fn a_file_system_that_is_mounted_twice_is_told_once() {
        let on = |device, disk| DiskView { device: Some(device), ..disk };
        let disks = [on(1, disk("/", 87)), on(1, disk("/var/lib/docker", 87)), on(2, disk("/data", 87))];
        let mut levels = Levels::new();
        assert_eq!(look(&mut levels, &disks).iter().map(|c| c.mount.as_str()).collect::<Vec<_>>(), ["/", "/data"]);
        let users = Users { store: Some("/var/lib/docker"), runs: &[run("large", 500 << 30)], bucket_bytes: 500 << 30 };
        let told = notices(&levels, &disks, users);
        assert!(told.len() == 2 && told[0].text.contains("large 500.0 GiB"), "{told:?}");
        assert_eq!(
            look(&mut levels, &[on(1, disk("/", 10)), on(1, disk("/var/lib/docker", 10)), on(2, disk("/data", 10))])
                .len(),
            2
        );
    }

    #[test]
    fn a_full_disk_says_what_is_at_stake_and_what_is_large() {
        let disks = [disk("/", 96), disk("/var/lib/docker", 87), disk("/data", 20)];
        let mut levels = Levels::new();
        look(&mut levels, &disks);
        let runs = [run("small", 1 << 20), run("large", 12 << 30), run("empty", 0)];
        let say = |store| notices(&levels, &disks, Users { store, runs: &runs, bucket_bytes: 13 << 30 });
        let told = say(mount_of(&disks, "/var/lib/docker/volumes"));
        assert_eq!(told.iter().map(|n| n.severity).collect::<Vec<_>>(), [Severity::Error, Severity::Warning]);
        assert!(told[0].text.starts_with("/ is 96 % full, 40.0 GiB free: checkpoints that"), "{}", told[0].text);
        assert!(told[0].text.contains("labd deletes nothing") && !told[0].text.contains("large"), "{}", told[0].text);
        let of_store = &told[1].text;
        assert!(of_store.contains("13.0 GiB of it: large 12.0 GiB, small 1 MiB;"), "{of_store}");
        assert!(say(None).iter().all(|n| !n.text.contains("large")));
        let small = Users { store: Some("/var/lib/docker"), runs: &runs, bucket_bytes: 8 << 30 };
        assert!(
            notices(&levels, &disks, small).iter().all(|n| !n.text.contains("large")),
            "less than a hundredth of it"
        );
    }

    #[test]
    fn sizes_that_make_no_sense_are_no_reason_to_fall_over() {
        let odd = |total_bytes, available_bytes| DiskView {
            mount: "/".to_owned(),
            total_bytes,
            available_bytes,
            device: None,
        };
        for disk in [odd(0, 0), odd(0, u64::MAX), odd(5, 9), odd(u64::MAX, u64::MAX), odd(u64::MAX, 0)] {
            let mut levels = Levels::new();
            look(&mut levels, &[disk]);
        }
        assert_eq!(mount_of(&[disk("/var", 1), disk("/", 1)], "/variable"), Some("/"));
    }
}

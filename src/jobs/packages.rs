//! Uploaded packages (`working_dir`, `py_modules`), kept beside the ledger: Ray drops a package soon after its last job ended,
//! and all of them when the head's state is lost, while a resubmission needs it again.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::io::AsyncWriteExt as _;

use super::submission::is_package_name;
use crate::ray::{JobApi, Reply};

/// Time for which a package is kept that no unfinished job refers to: its job may be submitted again without a new
/// upload.
const KEPT: Duration = Duration::from_hours(7 * 24);

/// Largest size of all packages together, in bytes: one has at most 500 MiB, which is Ray's own limit.
const MOST: u64 = 10 << 30;

/// Time between two questions for the packages of jobs that Ray has: half of the time for which the GCS keeps one then. What
/// it counts of who refers to a package is lost when it restarts, and it deletes the package with the first job that ends of
/// those that were counted since (Ray 2.60).
pub(super) const ASK_AGAIN: Duration = Duration::from_mins(5);

/// The folder of packages.
#[derive(Debug, Clone)]
pub struct Packages(PathBuf);

/// A package that is being received. Dropped unfinished, it leaves nothing.
#[derive(Debug)]
pub struct Incoming {
    file: tokio::fs::File,
    part: PathBuf,
    to: PathBuf,
    done: bool,
}

impl Incoming {
    /// Package whose every byte is refused.
    #[cfg(test)]
    pub(crate) async fn on_a_full_disk() -> Self {
        let file = tokio::fs::File::options().write(true).open("/dev/full").await.expect("Linux has it");
        Self { file, part: PathBuf::new(), to: PathBuf::new(), done: false }
    }
}

impl Packages {
    /// Opens the folder, making it (0700: packages are people's code) and sweeping what a killed labd left half received.
    pub fn open(dir: &Path) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        for entry in fs::read_dir(dir)?.flatten() {
            if entry.path().extension().is_some_and(|e| e == "part") {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self(dir.to_owned()))
    }

    /// Packages without a folder, for simulations.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self(PathBuf::new())
    }

    #[cfg(test)]
    pub(super) fn is_none(&self) -> bool {
        self.0.as_os_str().is_empty()
    }

    /// Path of a package, when it is here.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let path = self.path(name)?;
        path.is_file().then_some(path)
    }

    /// Begins to receive a package. `None` for a name that can name no file.
    pub async fn receive(&self, name: &str) -> Option<io::Result<Incoming>> {
        let to = self.path(name)?;
        let part = self.0.join(format!("{name}.{:08x}.part", rand::random::<u32>()));
        Some(tokio::fs::File::create(&part).await.map(|file| Incoming { file, part, to, done: false }))
    }

    /// Has the GCS keep a package for a while, and uploads it where the GCS does not have it; one that is not here is left
    /// as it is. Returns the dashboard's refusal, if it refuses it. The error means that the head is away.
    pub(super) async fn provide<A: JobApi>(&self, api: &A, name: &str) -> Result<Option<Reply>, String> {
        let Some(file) = self.find(name) else { return Ok(None) };
        if api.has_package(name).await? {
            return Ok(None);
        }
        let reply = api.put_package(name, &file).await?;
        Ok((!reply.is_success()).then_some(reply))
    }

    /// Removes packages that no unfinished job refers to and that are old, or too much; the oldest first.
    pub fn sweep(&self, needed: &BTreeSet<String>, now: SystemTime) {
        self.sweep_to(needed, now, MOST);
    }

    fn sweep_to(&self, needed: &BTreeSet<String>, now: SystemTime, most: u64) {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter(|entry| !needed.contains(entry.file_name().to_string_lossy().as_ref()))
            .filter_map(|entry| {
                let about = entry.metadata().ok()?;
                Some((about.modified().ok()?, about.len(), entry.path()))
            })
            .collect();
        files.sort_unstable_by(|a, b| b.cmp(a));
        let mut used = 0_u64;
        for (at, bytes, path) in files {
            used = used.saturating_add(bytes);
            let is_old = now.duration_since(at).is_ok_and(|age| age > KEPT);
            if is_old || used > most {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        is_package_name(name).then(|| self.0.join(name))
    }
}

impl Incoming {
    /// Takes the next piece.
    pub async fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece).await
    }

    /// Finishes a package that is whole: from now on it is found.
    pub async fn finish(mut self) -> io::Result<()> {
        self.file.sync_all().await?;
        tokio::fs::rename(&self.part, &self.to).await?;
        self.done = true;
        // Its name is in the folder, which is on the disk only now: whoever was answered may count on it after a power cut.
        if let Some(folder) = self.to.parent() {
            sync(folder).await?;
        }
        Ok(())
    }
}

/// Brings a folder's names to the disk.
async fn sync(folder: &Path) -> io::Result<()> {
    #[cfg(test)]
    SYNCED.with_borrow_mut(|synced| synced.push(folder.to_owned()));
    tokio::fs::File::open(folder).await?.sync_all().await
}

#[cfg(test)]
thread_local! {
    /// Folders that were synced: no file system shows a test what a power cut would.
    static SYNCED: std::cell::RefCell<Vec<PathBuf>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_package_is_found_once_it_is_whole_and_half_of_one_never() {
        let dir = tempfile::tempdir().expect("a folder");
        let packages = Packages::open(dir.path()).expect("opens");
        for (name, whole) in [("_ray_pkg_1.zip", true), ("_ray_pkg_2.zip", false)] {
            let mut incoming = packages.receive(name).await.expect("a name").expect("a file");
            incoming.write(b"PK").await.expect("written");
            assert_eq!(packages.find(name), None);
            if whole {
                incoming.finish().await.expect("finished");
            }
        }
        assert_eq!(SYNCED.take(), [dir.path()], "the name as well");
        assert!(packages.find("_ray_pkg_1.zip").is_some_and(|p| fs::read(p).expect("readable") == b"PK"));
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1);
        assert!(packages.receive("../x").await.is_none() && packages.find("/etc/passwd").is_none());
    }

    #[test]
    fn only_what_is_old_and_unneeded_goes() {
        let dir = tempfile::tempdir().expect("a folder");
        let packages = Packages::open(dir.path()).expect("opens");
        for name in ["needed.zip", "unneeded.zip"] {
            fs::write(dir.path().join(name), "x").expect("written");
        }
        let needed = BTreeSet::from(["needed.zip".to_owned()]);
        packages.sweep(&needed, SystemTime::now());
        assert!(packages.find("unneeded.zip").is_some());
        packages.sweep(&needed, SystemTime::now() + KEPT + Duration::from_mins(1));
        assert!(packages.find("needed.zip").is_some() && packages.find("unneeded.zip").is_none());
    }

    #[test]
    fn of_what_is_too_much_the_oldest_goes_but_nothing_that_is_needed() {
        let dir = tempfile::tempdir().expect("a folder");
        let packages = Packages::open(dir.path()).expect("opens");
        for (name, age) in [("needed.zip", 9), ("old.zip", 8), ("young.zip", 1)] {
            let file = fs::File::create(dir.path().join(name)).expect("made");
            file.set_len(100).expect("grown");
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("dated");
        }
        packages.sweep_to(&BTreeSet::from(["needed.zip".to_owned()]), SystemTime::now(), 150);
        let left = ["needed.zip", "old.zip", "young.zip"].map(|name| packages.find(name).is_some());
        assert_eq!(left, [true, false, true]);
    }
}

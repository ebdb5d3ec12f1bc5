//! Room on disk that is kept for the ledger: given up when the disk is full, so that jobs are recorded all the same.

use std::{fs, io, path::PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::files;

/// Length of the file, in bytes: some thousand jobs.
const BYTES: u64 = 8 << 20;
/// Factor by which free space must exceed the room before it is taken: what is scarce is not made scarcer.
const AMPLE: u64 = 20;

/// The file that keeps the room. Clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// Reserve in this file.
    pub(super) const fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Takes the room, where there is plenty and it was not taken before.
    pub(super) fn take(&self) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(&self.path);
        let disk = statvfs(folder)?;
        let has = fs::metadata(&self.path).map_or(0, |m| m.len());
        if has >= BYTES || disk.f_bavail.saturating_mul(disk.f_frsize) < AMPLE * BYTES {
            return Ok(());
        }
        let file = files::open_private(&self.path)?;
        // Blocks, not a hole; a file system that cannot do that keeps no room.
        fallocate(&file, FallocateFlags::empty(), 0, BYTES)?;
        Ok(())
    }

    /// Gives the room back; whether there was any.
    pub(super) fn give_up(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_room_is_real_and_given_up_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let reserve = Reserve::at(dir.path().join("reserve"));
        assert!(!reserve.give_up());
        reserve.take().expect("taken");
        reserve.take().expect("still taken");
        let found = fs::metadata(dir.path().join("reserve")).expect("there");
        assert!(found.blocks() * 512 >= BYTES && found.mode() & 0o777 == 0o600);
        assert!(reserve.give_up() && !reserve.give_up());
    }
}

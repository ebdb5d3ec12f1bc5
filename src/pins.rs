//! What labd found out about the machine once and holds on to, kept in the data directory: containers are compared with the
//! plan that follows from it, so that a fact which drifts changes none of them.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::files;

/// File in the data directory.
const FILE: &str = "machine.json";

/// The facts that are held on to. A field that an older labd did not know is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pins {
    /// The lab's /24.
    pub subnet: Option<[u8; 3]>,
}

/// Reads what was kept. A file that cannot be read is nothing to fail for: everything in it can be found out again.
pub fn load(dir: &Path) -> Pins {
    let path = dir.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!("{} is not understood and made anew: {error}", path.display());
            Pins::default()
        }),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::debug!("cannot read {}: {error}", path.display());
            }
            Pins::default()
        }
    }
}

/// Keeps it: whole or not at all, and only when something changed. Not durable on a full disk, which is said and is no
/// reason to end.
pub fn save(dir: &Path, pins: &Pins) {
    if load(dir) == *pins {
        return;
    }
    if let Err(error) = write(dir, pins) {
        tracing::warn!("cannot write {}: {error}", dir.join(FILE).display());
    }
}

fn write(dir: &Path, pins: &Pins) -> io::Result<()> {
    files::write_private(&dir.join(FILE), &serde_json::to_vec_pretty(pins)?)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_again_and_what_is_damaged_is_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(load(dir.path()), Pins::default());
        let pins = Pins { subnet: Some([198, 18, 101]) };
        save(dir.path(), &pins);
        assert_eq!(load(dir.path()), pins);
        fs::write(dir.path().join(FILE), "{\"subnet\": [198").expect("writable");
        assert_eq!(load(dir.path()), Pins::default());
        save(Path::new("/proc/nosuch"), &pins);
    }
}

//! Files and folders that only labd may open: closed before anything is in them, not afterwards.
//!
//! A local user who opened a file while it was readable reads on after it was closed, so the mode comes with the making.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

/// Mode bits that open something to anybody but its owner.
const OTHERS: u32 = 0o077;
/// Mode of a file that only labd may open.
const FILE: u32 = 0o600;
/// Mode of a folder that only labd may enter.
const FOLDER: u32 = 0o700;
/// Names of what labd and its supervision keep in the data directory. A name with more behind it, such as
/// `journal.db-wal`, is theirs as well.
const KEPT: [&str; 16] = [
    "accounts.db",
    "history.db",
    "machine.",
    "secrets.",
    "minio-root.",
    "page.",
    "journal.db",
    "ledger.db",
    "training.db",
    "labd.",
    "door",
    "packages",
    "probes",
    "workspace",
    "ballast",
    "reserve",
];

/// Opens a file for reading and writing that nobody else may open, and makes it where it is missing. One that others
/// could open is closed to them; who has it open keeps it open.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).read(true).write(true).truncate(false).mode(FILE).open(path)?;
    close_to_others(path, &file.metadata()?.permissions(), FILE)?;
    Ok(file)
}

/// Writes a file that nobody else may open, whole or not at all. It is on disk before it has its name; that it has it is on
/// disk only after its folder was synced.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = File::options().write(true).create_new(true).mode(FILE).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// Closes a file to others where it is there at all.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        // What a link points to may be anybody's.
        Ok(found) if found.is_symlink() => Ok(()),
        Ok(found) => close_to_others(path, &found.permissions(), FILE),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Makes the data directory where it is missing, closed to others. Its parents stay open to all. One that holds other
/// people's files too (`data_dir = "/srv"`) is left as it is: returns whether it is labd's alone.
pub(crate) fn private_folder(path: &Path) -> io::Result<bool> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(FOLDER).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let found = fs::metadata(path)?;
    if !open_to_others(&found.permissions()) {
        return Ok(true);
    }
    let names: Vec<String> = fs::read_dir(path)?
        .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    if !names.iter().all(|name| is_ours(name)) {
        return Ok(false);
    }
    close_to_others(path, &found.permissions(), FOLDER)?;
    Ok(true)
}

/// Whether a name in the data directory is one of labd's.
fn is_ours(name: &str) -> bool {
    KEPT.iter().any(|kept| name.starts_with(kept)) || name.strip_suffix(".lock").is_some()
}

fn open_to_others(found: &Permissions) -> bool {
    found.mode() & OTHERS != 0
}

fn close_to_others(path: &Path, found: &Permissions, mode: u32) -> io::Result<()> {
    if open_to_others(found) { fs::set_permissions(path, Permissions::from_mode(mode)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o7777
    }

    #[test]
    fn a_data_directory_is_closed_and_its_parents_are_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("var/lib/labd");
        assert!(private_folder(&path).expect("made"));
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(path.parent().expect("one")) & 0o055, 0o055, "others of the machine go through there");
        // As an older labd left it.
        for name in ["history.db-shm", "journal.db-wal", "ledger.db.corrupt-20260101", "secrets.json", "page.pem"] {
            fs::write(path.join(name), "").expect("written");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("set");
        assert!(private_folder(&path).expect("closed"));
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_folder_that_others_use_too_stays_open() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("set");
        fs::create_dir(dir.path().join("home-of-somebody")).expect("made");
        assert!(!private_folder(dir.path()).expect("looked at"));
        assert_eq!(mode(dir.path()), 0o755);
    }

    #[test]
    fn a_file_is_private_from_its_first_moment() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.lock");
        drop(open_private(&path).expect("made"));
        assert_eq!(mode(&path), 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("set");
        drop(open_private(&path).expect("opened"));
        assert_eq!(mode(&path), 0o600, "as an older labd left it");
        let other = dir.path().join("theirs");
        fs::write(&other, "").expect("written");
        fs::set_permissions(&other, Permissions::from_mode(0o644)).expect("set");
        std::os::unix::fs::symlink(&other, dir.path().join("link")).expect("made");
        make_private(&dir.path().join("link")).expect("left alone");
        make_private(&dir.path().join("missing")).expect("nothing to do");
        assert_eq!(mode(&other), 0o644);
    }
}

//! `labd install`: which files go where, and putting them there whole or not at all. What systemd is told is decided in
//! the command itself.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

/// Unit, as it is installed.
pub const UNIT: &str = include_str!("../systemd/labd.service");
/// Path of the unit, below the root.
pub const UNIT_PATH: &str = "etc/systemd/system/labd.service";
/// Path of the executable, below the root. [`UNIT`] starts it from there.
pub const BINARY_PATH: &str = "usr/local/bin/labd";
/// Path of the configuration, below the root.
pub const CONFIG_PATH: &str = "etc/labd/labd.toml";
/// Configuration with every setting at its default, commented out.
const CONFIG: &str = include_str!("../systemd/labd.toml");

/// Completions by shell: (the shell's word, folders that are looked for in this order, file name).
const COMPLETIONS: [(&str, &[&str], &str); 3] = [
    ("bash", &["usr/share/bash-completion/completions", "etc/bash_completion.d"], "labd"),
    ("zsh", &["usr/share/zsh/vendor-completions", "usr/share/zsh/site-functions"], "_labd"),
    ("fish", &["usr/share/fish/vendor_completions.d", "usr/share/fish/completions"], "labd.fish"),
];
/// Folders of manual pages, in the order in which they are looked for.
const MANUALS: [&str; 2] = ["usr/local/share/man", "usr/share/man"];

/// File to be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Path, below the root.
    pub path: PathBuf,
    /// Content.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Whether one that is there is somebody's own, and stays.
    pub keep: bool,
}

/// Result for one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Installed where there was none.
    Installed,
    /// Updated: another one was there.
    Updated,
    /// Unchanged: the same was there.
    Unchanged,
    /// Kept: one was there, and is somebody's own.
    Kept,
}

impl Done {
    /// Word for the result on the screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
            Self::Kept => "kept",
        }
    }

    /// Whether the file is another one now.
    pub const fn changed(self) -> bool {
        matches!(self, Self::Installed | Self::Updated)
    }
}

/// Files that are installed below `root`. `binary` is the executable, `completion` makes a shell's script, `man` is the
/// manual page; these two go only where a folder for them exists.
pub fn items(root: &Path, binary: Vec<u8>, completion: impl Fn(&str) -> Vec<u8>, man: Vec<u8>) -> Vec<Item> {
    let item = |path: PathBuf, content, mode| Item { path, content, mode, keep: false };
    let mut all = vec![
        item(BINARY_PATH.into(), binary, 0o755),
        item(UNIT_PATH.into(), UNIT.into(), 0o644),
        // Not for everybody: addresses of mirrors and proxies may hold logins. Its group is an administrator's to choose.
        Item { keep: true, ..item(CONFIG_PATH.into(), CONFIG.into(), 0o640) },
    ];
    let there = |dir: &&&str| root.join(dir).is_dir();
    for (shell, dirs, name) in COMPLETIONS {
        if let Some(dir) = dirs.iter().find(there) {
            all.push(item(Path::new(dir).join(name), completion(shell), 0o644));
        }
    }
    if let Some(dir) = MANUALS.iter().find(|dir| root.join(dir).is_dir()) {
        all.push(item(Path::new(dir).join("man1/labd.1"), man, 0o644));
    }
    all
}

/// Paths that `labd uninstall` removes below the root: everything but the configuration.
pub fn removed() -> Vec<PathBuf> {
    let completions = COMPLETIONS.iter().flat_map(|(_, dirs, name)| dirs.iter().map(move |d| Path::new(d).join(name)));
    let manuals = MANUALS.iter().map(|d| Path::new(d).join("man1/labd.1"));
    [PathBuf::from(UNIT_PATH), BINARY_PATH.into()].into_iter().chain(completions).chain(manuals).collect()
}

/// Puts a file in its place. It is there whole, or as it was before: also for whoever runs the old one meanwhile.
pub fn put(root: &Path, item: &Item) -> io::Result<Done> {
    let path = root.join(&item.path);
    let before = match fs::read(&path) {
        Ok(content) => Some(content),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    if let Some(content) = &before {
        let mode = fs::metadata(&path)?.permissions().mode() & 0o7777;
        if item.keep {
            // What an older labd let everybody read.
            if mode & 0o007 & !item.mode != 0 {
                fs::set_permissions(&path, Permissions::from_mode(mode & (item.mode | 0o7770)))?;
            }
            return Ok(Done::Kept);
        }
        if *content == item.content && mode == item.mode {
            return Ok(Done::Unchanged);
        }
    }
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(dir)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // In the same folder: a rename does not leave its file system.
    let draft = dir.join(format!(".{name}.{}.new", std::process::id()));
    let written = write(&draft, item).and_then(|()| fs::rename(&draft, &path));
    if let Err(e) = written {
        let _ = fs::remove_file(&draft);
        return Err(e);
    }
    // The name must outlive a power cut, too.
    File::open(dir)?.sync_all()?;
    Ok(if before.is_some() { Done::Updated } else { Done::Installed })
}

fn write(path: &Path, item: &Item) -> io::Result<()> {
    // Nobody reads it before it is whole and has its own mode.
    let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&item.content)?;
    // After the content, and whatever the umask is.
    file.set_permissions(Permissions::from_mode(item.mode))?;
    file.sync_all()
}

/// Removes a file. Returns whether there was one.
pub fn remove(root: &Path, path: &Path) -> io::Result<bool> {
    match fs::remove_file(root.join(path)) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn all(root: &Path) -> Vec<Item> {
        items(root, b"ELF".to_vec(), |shell| shell.as_bytes().to_vec(), b".TH".to_vec())
    }

    fn mode(path: PathBuf) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o7777
    }

    #[test]
    fn a_second_time_nothing_changes_and_an_own_configuration_stays() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        fs::create_dir_all(root.join("etc/bash_completion.d")).expect("made");
        fs::create_dir_all(root.join("usr/share/man")).expect("made");
        let put_all = || all(root).iter().map(|i| put(root, i).expect("put")).collect::<Vec<_>>();
        assert_eq!(put_all(), [Done::Installed; 5]);
        assert_eq!(put_all(), [Done::Unchanged, Done::Unchanged, Done::Kept, Done::Unchanged, Done::Unchanged]);
        assert_eq!((mode(root.join(BINARY_PATH)), mode(root.join(UNIT_PATH))), (0o755, 0o644));
        fs::write(root.join(CONFIG_PATH), "[lab]\n").expect("written");
        fs::write(root.join(BINARY_PATH), "old").expect("written");
        fs::set_permissions(root.join(UNIT_PATH), Permissions::from_mode(0o600)).expect("set");
        let again = [Done::Updated, Done::Updated, Done::Kept, Done::Unchanged, Done::Unchanged];
        assert_eq!(put_all(), again);
        assert_eq!(fs::read_to_string(root.join(CONFIG_PATH)).expect("there"), "[lab]\n");
        // It may hold logins, and an older labd wrote it for everybody to read.
        assert_eq!(mode(root.join(CONFIG_PATH)), 0o640);
        fs::set_permissions(root.join(CONFIG_PATH), Permissions::from_mode(0o644)).expect("set");
        assert_eq!((put_all()[2], mode(root.join(CONFIG_PATH))), (Done::Kept, 0o640));
        let left = |dir: &str| fs::read_dir(root.join(dir)).expect("a folder").count();
        assert_eq!((left("usr/local/bin"), left("etc/systemd/system")), (1, 1), "no drafts");
        let gone = removed().iter().filter(|p| remove(root, p).expect("removed")).count();
        assert_eq!(gone, 4);
        assert!(root.join(CONFIG_PATH).exists() && !root.join(BINARY_PATH).exists());
    }

    /// Checks that a daemon that runs keeps its file; the new name is the new one's.
    #[test]
    fn an_executable_in_use_is_replaced_and_not_written_over() {
        let root = tempfile::tempdir().expect("a directory");
        let item = &all(root.path())[0];
        put(root.path(), item).expect("put");
        let file = File::open(root.path().join(BINARY_PATH)).expect("opened");
        let newer = Item { content: b"newer".to_vec(), ..item.clone() };
        assert_eq!(put(root.path(), &newer).expect("put"), Done::Updated);
        assert_eq!(io::read_to_string(&file).expect("read"), "ELF");
        assert_eq!(fs::read(root.path().join(BINARY_PATH)).expect("there"), b"newer");
    }

    #[test]
    fn what_is_installed_is_right() {
        let config = Config::parse(Path::new(CONFIG_PATH), CONFIG).expect("valid");
        assert_eq!(config, Config::default(), "everything is commented out");
        assert!(UNIT.contains(&format!("ExecStart=/{BINARY_PATH} run\n")));
        // `labd down` ends the daemon for good; its death does not.
        assert!(UNIT.contains("Restart=on-failure\n") && UNIT.contains("KillMode=process\n"));
    }
}

//! Check whether the directories that `[[mounts]]` names are there. Judging is pure, given what was seen.
//!
//! Types and [`Config::parse`] cannot express it, and the daemon starts without them: a network file system may come
//! after it.

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use super::{Config, ConfigError, HostMount, line};

/// Longest wait for one directory: on a network file system whose server is away, the question may never end.
const PATIENCE: Duration = Duration::from_secs(3);
/// File systems that are mounted at boot.
const FSTAB: &str = "/etc/fstab";

/// State of a mount's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    There,
    Missing,
    /// No answer.
    Silent,
}

/// Finding about a mount whose source is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    /// Index of the entry in `[[mounts]]`.
    index: usize,
    /// Whether it may still come by itself.
    may_come: bool,
    /// Text that says what is wrong and what would be right.
    text: String,
}

/// Checks the source of every mount. Fails for one that is missing; of those that may come later it returns a warning
/// each, in one line with file, line and setting.
pub fn check(config: &Config, path: &Path) -> Result<Vec<String>, ConfigError> {
    if config.mounts.is_empty() {
        return Ok(Vec::new());
    }
    // An absent file has no mounts, and the text was read a moment ago.
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let fstab = std::fs::read_to_string(FSTAB).unwrap_or_default();
    let mut warnings = Vec::new();
    for finding in judge(&config.mounts, look, &fstab) {
        let key = ["mounts".to_owned(), finding.index.to_string(), "source".to_owned()];
        let error = ConfigError {
            path: path.to_owned(),
            line: line::of_key(&text, &key),
            text: format!("`{}`: {}", line::dotted(&key), finding.text),
        };
        if !finding.may_come {
            return Err(error);
        }
        warnings.push(error.to_string());
    }
    Ok(warnings)
}

fn look(source: &Path) -> Source {
    let (tell, hear) = mpsc::channel();
    let path = source.to_owned();
    // Left behind when it hangs in the kernel.
    std::thread::spawn(move || tell.send(path.exists()));
    match hear.recv_timeout(PATIENCE) {
        Ok(true) => Source::There,
        Ok(false) => Source::Missing,
        Err(_) => Source::Silent,
    }
}

fn judge(mounts: &[HostMount], seen: impl Fn(&Path) -> Source, fstab: &str) -> Vec<Finding> {
    let awaited = mount_points(fstab);
    let finding = |(index, mount): (usize, &HostMount)| {
        let source = mount.source.display();
        let on = awaited.iter().find(|point| mount.source.starts_with(point));
        let (may_come, text) = match (seen(&mount.source), on) {
            (Source::There, _) => return None,
            (Source::Silent, _) => (
                true,
                format!("{source} does not answer; containers with it cannot start until its file system is back"),
            ),
            (Source::Missing, Some(point)) => (
                true,
                format!(
                    "{source} is not there yet; containers with it cannot start until {} of {FSTAB} is mounted",
                    point.display()
                ),
            ),
            (Source::Missing, None) => {
                (false, format!("{source} does not exist; make it, or name a directory of this machine"))
            }
        };
        Some(Finding { index, may_come, text })
    };
    mounts.iter().enumerate().filter_map(finding).collect()
}

/// Mount points in a text like that of `/etc/fstab`, but for `/`.
fn mount_points(fstab: &str) -> Vec<PathBuf> {
    fstab
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter(|point| point.starts_with('/') && *point != "/")
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_mount_is_a_mistake_unless_it_may_come_later() {
        let mount = |source: &str| HostMount { source: source.into(), target: "/mnt/d".into(), read_only: true };
        let mounts = ["/srv/there", "/srv/typo", "/nfs/food11", "/nfs-old", "/dead"].map(mount);
        let seen = |path: &Path| match path.to_str() {
            Some("/srv/there") => Source::There,
            Some("/dead") => Source::Silent,
            _ => Source::Missing,
        };
        let fstab =
            "# /srv/typo is not one\nUUID=1 / ext4 defaults 0 1\nnas:/x  /nfs  nfs  _netdev 0 0\nswap none swap\n";
        let found = judge(&mounts, seen, fstab);
        let said: Vec<(usize, bool)> = found.iter().map(|f| (f.index, f.may_come)).collect();
        assert_eq!(said, [(1, false), (2, true), (3, false), (4, true)]);
        assert!(found[1].text.contains("/nfs of /etc/fstab"), "{}", found[1].text);
    }

    #[test]
    fn it_is_said_with_file_line_and_setting() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("labd.toml");
        let text = format!(
            "[[mounts]]\nsource = \"{0}\"\ntarget = \"/mnt/a\"\n[[mounts]]\nsource = \"{0}/none\"\ntarget = \"/mnt/b\"\n",
            dir.path().display()
        );
        std::fs::write(&file, &text).expect("written");
        let config = Config::parse(&file, &text).expect("right but for what is missing");
        let line = check(&config, &file).expect_err("missing").to_string();
        assert!(line.contains("labd.toml:5: `mounts.source`: ") && line.contains("/none does not exist"), "{line}");
        std::fs::create_dir(dir.path().join("none")).expect("made");
        assert_eq!(check(&config, &file), Ok(Vec::new()));
    }
}

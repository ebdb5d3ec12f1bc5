//! The lab's credentials: made once, kept in the data directory, readable by labd alone.

use std::{fs, io, path::Path};

use rand::{Rng as _, distr::Alphanumeric};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{config::Config, files, minio::Keys, secret::Secret};

/// Secrets that containers and people log in with. Made once, kept in the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets {
    /// Ray's token.
    pub ray_token: Secret,
    /// The access key that jobs and notebooks hold: a user of MinIO for one bucket, or another store's.
    pub s3_access_key: Secret,
    /// The secret key to it.
    pub s3_secret_key: Secret,
    /// MinIO's root, for labd alone.
    pub minio_root: Keys,
    /// JupyterLab's token.
    pub jupyter_token: Secret,
    /// Secret by which JupyterLab knows the page's door. Whoever writes a notebook can read it: it opens nothing else.
    pub jupyter_door: Secret,
    /// Password of Grafana's user `admin`.
    pub grafana_password: Secret,
}

/// Credential that a person needs to log in to a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Name of what it opens, such as `minio`.
    pub name: String,
    /// User name, where there is one.
    pub user: Option<String>,
    /// Password or token.
    pub secret: Secret,
    /// Address at which to use it.
    pub url: String,
}

/// File in the data directory.
const FILE: &str = "secrets.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    ray_token: String,
    s3_access_key: String,
    s3_secret_key: String,
    jupyter_token: String,
    grafana_password: String,
}

/// MinIO's root keys, apart from the others: until they were, jobs had them. The keys that jobs hold stay what they are, and
/// become those of a user for one bucket; an older labd that is put back reads its own file as before.
const ROOT_FILE: &str = "minio-root.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Root {
    access_key: String,
    secret_key: String,
}

/// Secret of the page's door to JupyterLab, in a file of its own: older versions had none, and refuse a field that they do
/// not know.
const DOOR_FILE: &str = "jupyter-door.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JupyterDoor {
    jupyter_door: String,
}

/// Reads the credentials, making them when there are none yet, and those of another S3 store when `labd.toml` names one.
///
/// Fails in one line that never carries a credential.
pub fn load_or_make(config: &Config) -> Result<Secrets, String> {
    let dir = &config.lab.data_dir;
    let stored = read_or_make(dir, FILE, random)?;
    let root = read_or_make(dir, ROOT_FILE, random_root)?;
    let door = read_or_make(dir, DOOR_FILE, random_door)?;
    with_s3(config, stored, root, door)
}

fn read_or_make<T: Serialize + DeserializeOwned>(dir: &Path, file: &str, fresh: fn() -> T) -> Result<T, String> {
    let path = dir.join(file);
    if let Some(stored) = read(&path)? {
        return Ok(stored);
    }
    let made = fresh();
    write(dir, &path, &made).map_err(|e| {
        format!("cannot write {}: {e}; run labd as root, or set `lab.data_dir` in labd.toml", path.display())
    })?;
    Ok(made)
}

/// Reads the credentials, or makes some that are kept nowhere: for showing the plan only.
pub fn load_or_pretend(config: &Config) -> Result<Secrets, String> {
    let dir = &config.lab.data_dir;
    let stored = read(&dir.join(FILE)).ok().flatten().unwrap_or_else(random);
    let root = read(&dir.join(ROOT_FILE)).ok().flatten().unwrap_or_else(random_root);
    let door = read(&dir.join(DOOR_FILE)).ok().flatten().unwrap_or_else(random_door);
    with_s3(config, stored, root, door)
}

fn with_s3(config: &Config, stored: Stored, root: Root, door: JupyterDoor) -> Result<Secrets, String> {
    let (access, secret) = match &config.s3 {
        Some(s3) => (read_key(&s3.access_key_file)?, read_key(&s3.secret_key_file)?),
        None => (stored.s3_access_key, stored.s3_secret_key),
    };
    Ok(Secrets {
        ray_token: Secret::new(stored.ray_token),
        s3_access_key: Secret::new(access),
        s3_secret_key: Secret::new(secret),
        minio_root: Keys { access: Secret::new(root.access_key), secret: Secret::new(root.secret_key) },
        jupyter_token: Secret::new(stored.jupyter_token),
        jupyter_door: Secret::new(door.jupyter_door),
        grafana_password: Secret::new(stored.grafana_password),
    })
}

fn read_key(path: &Path) -> Result<String, String> {
    let text =
        fs::read_to_string(path).map_err(|e| format!("cannot read {} (named in `[s3]`): {e}", path.display()))?;
    let key = text.trim();
    if key.is_empty() || key.contains(char::is_whitespace) {
        return Err(format!("{} (named in `[s3]`) must hold one key and nothing else", path.display()));
    }
    Ok(key.to_owned())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    match fs::read(path) {
        // The parser's own words could quote the file.
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|_| {
            format!("{} is damaged; move it away and labd makes new credentials at its next start", path.display())
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("cannot read {}: {e}; run labd as root", path.display())),
    }
}

/// Writes a file whole or not at all: a half-written one would lock everybody out of their data.
fn write(dir: &Path, path: &Path, stored: &impl Serialize) -> io::Result<()> {
    files::private_folder(dir)?;
    files::write_private(path, &serde_json::to_vec_pretty(stored)?)
}

/// Random word from the thread's generator, a cryptographic one that the kernel seeds. Letters and digits need no
/// quoting anywhere.
fn word(n: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(n).map(char::from).collect()
}

fn random_root() -> Root {
    Root { access_key: word(20), secret_key: word(40) }
}

fn random_door() -> JupyterDoor {
    JupyterDoor { jupyter_door: word(40) }
}

fn random() -> Stored {
    Stored {
        // Ray wants at least 32 hexadecimal digits' worth; MinIO takes 3 to 20 and 8 to 40 characters.
        ray_token: word(48),
        s3_access_key: word(20),
        s3_secret_key: word(40),
        jupyter_token: word(32),
        grafana_password: word(24),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn they_are_made_once_and_kept_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::default();
        config.lab.data_dir = dir.path().join("labd");
        let first = load_or_make(&config).expect("made");
        assert_eq!(load_or_make(&config).expect("read"), first);
        let path = config.lab.data_dir.join(FILE);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        // An older labd gave MinIO's root keys to jobs. What jobs hold stays theirs, and root gets others.
        let root = config.lab.data_dir.join(ROOT_FILE);
        assert_eq!(fs::metadata(&root).expect("there").permissions().mode() & 0o777, 0o600);
        assert_ne!(first.minio_root.access, first.s3_access_key);
        fs::remove_file(&root).expect("removable");
        let upgraded = load_or_make(&config).expect("read");
        assert_eq!(upgraded.s3_access_key, first.s3_access_key);
        assert_ne!(upgraded.minio_root, first.minio_root);
        assert_eq!(upgraded.jupyter_door, first.jupyter_door);
        let door = config.lab.data_dir.join(DOOR_FILE);
        assert_eq!(fs::metadata(&door).expect("there").permissions().mode() & 0o777, 0o600);
        fs::remove_file(&door).expect("removable");
        assert_ne!(load_or_make(&config).expect("read").jupyter_door, first.jupyter_door);
        fs::write(&path, "{\"ray_token\": \"abc").expect("writable");
        let error = load_or_make(&config).expect_err("damaged");
        assert!(error.contains("damaged") && !error.contains("abc"), "{error}");
    }

    #[test]
    fn keys_of_another_store_come_from_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let (access, secret) = (dir.path().join("a"), dir.path().join("s"));
        fs::write(&access, "AKIA\n").expect("writable");
        fs::write(&secret, "two words").expect("writable");
        let toml = format!(
            "[lab]\ndata_dir = {:?}\n[s3]\nendpoint = \"https://s3.lab\"\naccess_key_file = {access:?}\nsecret_key_file = {secret:?}",
            dir.path()
        );
        let config = Config::parse(Path::new("labd.toml"), &toml).expect("valid");
        let error = load_or_make(&config).expect_err("refused");
        assert!(error.contains("one key") && !error.contains("words"), "{error}");
        fs::write(&secret, "s3cret").expect("writable");
        assert_eq!(load_or_make(&config).expect("read").s3_secret_key, Secret::new("s3cret"));
    }
}

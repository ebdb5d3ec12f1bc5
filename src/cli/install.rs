//! `labd install` and `labd uninstall`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use clap_complete::Shell;
use tokio::process::Command;

use super::{
    args::{self, DEFAULT_SOCKET, Global},
    client::Client,
    completion,
    exit::{Exit, Failure},
    man_page,
    text::Out,
};
use crate::{
    config::Config,
    engine::{Engine as _, docker::DockerEngine},
    install::{self, BINARY_PATH, CONFIG_PATH, UNIT_PATH},
    snapshot::Snapshot,
};

/// Longest wait for the engine to say whether the lab runs.
const ENGINE: Duration = Duration::from_secs(5);

/// Installs; a second time nothing changes.
pub(super) async fn install(global: &Global, args: &args::Install, out: &mut Out) -> Result<(), Failure> {
    let root = root(args.root.as_ref(), "install")?;
    // Not by its path, which another one may have by now.
    let binary = fs::read("/proc/self/exe")?;
    let script = |shell: &str| shell.parse::<Shell>().map(completion).unwrap_or_default();
    let (mut binary_changed, mut unit_changed) = (false, false);
    for item in install::items(&root, binary, script, man_page()?) {
        let path = root.join(&item.path);
        let done = install::put(&root, &item)
            .map_err(|e| Failure::new(Exit::Failure, format!("cannot write {}: {e}", path.display())))?;
        binary_changed |= done.changed() && item.path == Path::new(BINARY_PATH);
        unit_changed |= done.changed() && item.path == Path::new(UNIT_PATH);
        say(out, done.as_str(), &path.display().to_string())?;
    }
    if args.root.is_some() {
        return Ok(());
    }
    if !Path::new("/run/systemd/system").is_dir() {
        return say(out, "skipped", "systemd does not run this machine: start labd with `labd up`");
    }
    start(global, args.no_start, binary_changed, unit_changed, out).await
}

/// Tells systemd what has changed, and nothing that is so already: telling it to read its units again takes the GPU
/// from containers that got it the old way.
async fn start(global: &Global, no_start: bool, binary: bool, unit: bool, out: &mut Out) -> Result<(), Failure> {
    if unit {
        systemctl(&["daemon-reload"]).await?;
        say(out, "done", "systemctl daemon-reload")?;
    }
    if !is("is-enabled").await {
        systemctl(&["enable", "--quiet", "labd"]).await?;
        say(out, "enabled", "labd.service")?;
    }
    let active = is("is-active").await;
    if no_start {
        let what =
            if active { "the daemon keeps running unchanged" } else { "`systemctl start labd` starts the daemon" };
        return say(out, "skipped", what);
    }
    if active && !binary && !unit {
        return say(out, "unchanged", "labd.service is active");
    }
    if !active && let Some(pid) = by_hand(global).await {
        return Err(Failure::new(
            Exit::Failure,
            format!(
                "installed, but a labd that systemd did not start runs (pid {pid}); `kill {pid}` ends it and leaves the \
                 containers running, then `systemctl start labd`"
            ),
        ));
    }
    systemctl(&["restart", "labd"]).await?;
    say(out, if active { "restarted" } else { "started" }, "labd.service; `labd up` shows how the lab starts")
}

/// Process id of a daemon that somebody started without systemd, on the socket that the unit uses.
async fn by_hand(global: &Global) -> Option<u32> {
    let global = Global { socket: DEFAULT_SOCKET.into(), ..global.clone() };
    let client = Client::new(&global);
    let snapshot = client.json::<Snapshot>("/api/v1/snapshot");
    tokio::time::timeout(ENGINE, snapshot).await.ok()?.ok().map(|s| s.labd.pid)
}

/// Removes what was installed.
pub(super) async fn uninstall(global: &Global, args: &args::Uninstall, out: &mut Out) -> Result<(), Failure> {
    let root = root(args.root.as_ref(), "uninstall")?;
    let live = args.root.is_none();
    // A broken file is no reason to stay installed.
    let config = Config::load(&global.config).map(|(config, _)| config).unwrap_or_default();
    let systemd = live && Path::new("/run/systemd/system").is_dir();
    if live {
        let running = containers(&config).await;
        if running > 0 {
            return Err(Failure::new(
                Exit::Failure,
                format!(
                    "the lab `{}` runs ({running} containers); end it with `labd down`, then uninstall labd",
                    config.lab.name
                ),
            ));
        }
    }
    let unit = root.join(UNIT_PATH).exists();
    if systemd && unit {
        systemctl(&["disable", "--quiet", "--now", "labd"]).await?;
        say(out, "stopped", "labd.service")?;
    }
    let mut removed = 0;
    for path in install::removed() {
        let shown = root.join(&path).display().to_string();
        let gone = install::remove(&root, &path)
            .map_err(|e| Failure::new(Exit::Failure, format!("cannot remove {shown}: {e}")))?;
        if gone {
            removed += 1;
            say(out, "removed", &shown)?;
        }
    }
    if removed == 0 {
        say(out, "unchanged", "labd is not installed")?;
    }
    if systemd && unit {
        systemctl(&["daemon-reload"]).await?;
    }
    let kept =
        [root.join(CONFIG_PATH), root.join(config.lab.data_dir.strip_prefix("/").unwrap_or(&config.lab.data_dir))];
    for path in kept.iter().filter(|p| p.exists()) {
        say(out, "kept", &path.display().to_string())?;
    }
    if live {
        let name = &config.lab.name;
        say(
            out,
            "kept",
            &format!("volumes and images: docker volume ls -f label={}={name}", crate::engine::LABEL_LAB),
        )?;
    }
    Ok(())
}

/// Number of the lab's containers; 0 where no engine answers.
async fn containers(config: &Config) -> usize {
    let Ok(engine) = DockerEngine::connect(&config.engine.socket, &config.lab.name) else { return 0 };
    match tokio::time::timeout(ENGINE, engine.list()).await {
        Ok(Ok(found)) => found.len(),
        _ => 0,
    }
}

/// Folder below which to install; on the machine itself only root may.
fn root(given: Option<&PathBuf>, verb: &str) -> Result<PathBuf, Failure> {
    if let Some(dir) = given {
        return Ok(dir.clone());
    }
    let owner = fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m))?;
    if owner == 0 {
        return Ok(PathBuf::from("/"));
    }
    Err(Failure::new(Exit::NoPermission, format!("only root may {verb} labd; run `sudo labd {verb}`")))
}

fn say(out: &mut Out, what: &str, about: &str) -> Result<(), Failure> {
    out.line(&format!("{what:<10} {about}"))
}

/// Whether systemd says yes.
async fn is(question: &str) -> bool {
    let asked = Command::new("systemctl").args([question, "--quiet", "labd"]).stderr(Stdio::null()).status();
    asked.await.is_ok_and(|s| s.success())
}

async fn systemctl(args: &[&str]) -> Result<(), Failure> {
    let said = Command::new("systemctl").args(args).output().await?;
    if said.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&said.stderr);
    let line = text.lines().find(|l| !l.trim().is_empty()).unwrap_or("no reason given").trim_end_matches('.');
    Err(Failure::new(
        Exit::Failure,
        format!("`systemctl {}` failed: {line}; see `journalctl -u labd -n 30`", args.join(" ")),
    ))
}

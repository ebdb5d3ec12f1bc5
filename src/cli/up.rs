//! `labd up` and `labd down`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hyper::Method;

use super::{
    args::{self, Global},
    client::{Client, Events, installed},
    exit::{Exit, Failure},
    local, log, status,
    text::Out,
    user,
};
use crate::{
    snapshot::{EngineView, ServiceState, Snapshot},
    time::Timestamp,
};

/// Longest wait for a daemon to answer.
const START: Duration = Duration::from_secs(15);
/// Longest absence of an engine before `up` gives up: it may be starting, too.
const ENGINE: Duration = Duration::from_secs(10);
/// Time between two checks for the daemon.
const LOOK: Duration = Duration::from_millis(50);
/// Time between two lines about the same build, where there is no terminal.
const SAY_AGAIN: Duration = Duration::from_secs(15);

/// Starts the daemon if needed and waits until the lab is ready.
pub(super) async fn up(global: &Global, args: &args::Up, out: &mut Out) -> Result<(), Failure> {
    let client = Client::new(global);
    if !client.answers().await? {
        start(global, args.run.simulate_gpus).await?;
    }
    let deadline = Duration::from_secs(args.timeout);
    let snapshot = if let Ok(snapshot) = tokio::time::timeout(deadline, wait(&client, out)).await {
        snapshot?
    } else {
        let snapshot: Snapshot = client.json("/api/v1/snapshot").await?;
        let missing: Vec<&str> = snapshot.on_their_way().iter().map(|s| s.name.as_str()).collect();
        let line = format!("not ready after {} s: {}", args.timeout, missing.join(", "));
        return Err(Failure::new(Exit::Timeout, line));
    };
    let text = status::render(&snapshot, Timestamp::now(), out.style());
    if out.is_terminal() {
        out.redraw(&text)?;
    } else {
        out.text(&format!("\n{text}"))?;
    }
    let broken: Vec<String> = snapshot
        .services
        .iter()
        .filter(|s| matches!(s.state, ServiceState::Blocked | ServiceState::CrashLoop))
        .map(|s| format!("{}: {}", s.name, s.last_reason))
        .collect();
    // For a person, and for nobody's log.
    if out.is_terminal()
        && let Ok(link) = user::link(&client).await
    {
        out.line(&format!("\nlog in ({})\n  {}", link.good, link.url))?;
        if let Some(text) = link.certificate() {
            out.line(&text)?;
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(Failure::new(Exit::Failure, broken.join("; "))) }
}

/// Starts the daemon, by systemd where that manages it, and waits until it answers.
async fn start(global: &Global, simulate: Option<u32>) -> Result<(), Failure> {
    let client = Client::new(global);
    let log = log::beside(&global.socket);
    let mut child = None;
    if installed(&global.socket) && simulate.is_none() {
        let status = Command::new("systemctl").args(["start", "labd"]).status()?;
        if !status.success() {
            return Err(Failure::new(Exit::Failure, "`systemctl start labd` failed; see `journalctl -u labd`"));
        }
    } else {
        child = Some(detach(global, simulate, &log)?);
    }
    let begun = Instant::now();
    while begun.elapsed() < START {
        if let Some(child) = &mut child
            && let Some(status) = child.try_wait()?
        {
            let exit = if status.code() == Some(78) { Exit::Config } else { Exit::Failure };
            return Err(Failure::new(exit, last_line(&log)));
        }
        if client.answers().await? {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(Failure::new(
        Exit::Timeout,
        format!("the daemon does not answer after {} s; see {}", START.as_secs(), log.display()),
    ))
}

/// Starts `labd run` in a process group of its own, so that Ctrl-C here does not reach it.
fn detach(global: &Global, simulate: Option<u32>, log: &Path) -> Result<Child, Failure> {
    let cannot = |e: std::io::Error| {
        Failure::new(Exit::Failure, format!("cannot write {}: {e}; run it with sudo", log.display()))
    };
    if let Some(dir) = log.parent() {
        std::fs::create_dir_all(dir).map_err(cannot)?;
    }
    let file = log::begin(log).map_err(cannot)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("run").arg("--config").arg(&global.config).arg("--socket").arg(&global.socket);
    if let Some(n) = simulate {
        command.arg(format!("--simulate-gpus={n}"));
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .current_dir("/")
        .process_group(0)
        .spawn()?;
    Ok(child)
}

/// Last line that the daemon itself logged.
fn last_line(log: &Path) -> String {
    let mut text = String::new();
    let read = File::open(log).and_then(|f| f.take(1 << 20).read_to_string(&mut text));
    let last = text.lines().rev().find(|l| !l.trim().is_empty());
    match (read, last) {
        (Ok(_), Some(line)) => line.strip_prefix("labd: ").unwrap_or(line).to_owned(),
        _ => format!("the daemon ended at once; see {}", log.display()),
    }
}

/// Shows what happens until nothing more is expected to.
async fn wait(client: &Client<'_>, out: &mut Out) -> Result<Snapshot, Failure> {
    let mut events = Events::new(client.send(Method::GET, "/api/v1/stream").await?);
    let mut said: BTreeMap<String, (ServiceState, Instant)> = BTreeMap::new();
    let begun = Instant::now();
    let mut last: Option<Snapshot> = None;
    loop {
        match tokio::time::timeout(Duration::from_secs(1), events.next()).await {
            Ok(Some((name, data))) if name == "snapshot" => last = serde_json::from_str(&data).ok(),
            Ok(Some(_)) | Err(_) => {}
            Ok(None) => return Err(Failure::new(Exit::Failure, "the daemon ended; see labd.log beside its socket")),
        }
        let Some(snapshot) = &last else { continue };
        if let EngineView::Unreachable { reason, .. } = &snapshot.engine
            && begun.elapsed() > ENGINE
        {
            return Err(Failure::new(Exit::Failure, reason.clone()));
        }
        if !snapshot.services.is_empty()
            && matches!(snapshot.engine, EngineView::Reachable { .. })
            && snapshot.on_their_way().is_empty()
        {
            return Ok(snapshot.clone());
        }
        if out.is_terminal() {
            let table = status::services(&snapshot.services, Timestamp::now(), out.style());
            let seconds = begun.elapsed().as_secs();
            out.redraw(&format!("the lab is starting ({seconds} s)\n\n{table}"))?;
            continue;
        }
        // Services that wait for the same image would all say the same.
        let mut told: Vec<&str> = Vec::new();
        for service in &snapshot.services {
            if let Some(progress) = &service.progress {
                if told.contains(&progress.as_str()) {
                    continue;
                }
                told.push(progress);
            }
            let news = match said.get(&service.name) {
                Some((state, at)) => {
                    *state != service.state || (service.progress.is_some() && at.elapsed() > SAY_AGAIN)
                }
                None => true,
            };
            if news {
                said.insert(service.name.clone(), (service.state, Instant::now()));
                let why = service.progress.as_ref().unwrap_or(&service.last_reason);
                out.line(&format!("{}: {} ({})", service.name, service.state.as_str(), status::clean(why)))?;
            }
        }
    }
}

/// Brings the lab down and waits until it is.
pub(super) async fn down(global: &Global, args: &args::Down, out: &mut Out) -> Result<(), Failure> {
    const DONE: &str = "the lab is down; volumes and images are kept";
    let client = Client::new(global);
    if !client.answers().await? {
        let removed = local::down(global).await?;
        return out.line(if removed == 0 { "the lab is down already" } else { DONE });
    }
    let line = client.command("/api/v1/down").await?;
    out.line(&line)?;
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    while client.answers().await.unwrap_or(false) {
        if Instant::now() > deadline {
            return Err(Failure::new(Exit::Timeout, format!("not down after {} s; see `labd status`", args.timeout)));
        }
        tokio::time::sleep(LOOK).await;
    }
    // What the engine did not let go of is still there, and it says why once more.
    local::down(global).await.map_err(|failure| failure.because("the lab is down except for what the engine keeps"))?;
    out.line(DONE)
}

//! Reload of `labd.toml`, and new plans for other GPUs, while the daemon runs.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::FutureExt as _;

use super::{StartError, machine::Machine};
use crate::{
    config::{self, Config},
    node,
    pins::{self, Pins},
    supervise,
    time::{Timestamp, human},
};

/// Function that reads `labd.toml` again and refuses what a running daemon cannot change, compared with what it was
/// started with.
pub(super) fn reload(path: PathBuf, first: Config, machine: Machine) -> supervise::Reload {
    let read = move || {
        let (config, _) = Config::load(&path).map_err(|e| e.to_string())?;
        for (key, same) in [
            ("lab.name", config.lab.name == first.lab.name),
            ("lab.data_dir", config.lab.data_dir == first.lab.data_dir),
            ("lab.host_names", config.lab.host_names == first.lab.host_names),
            ("lab.page", config.lab.page == first.lab.page),
            ("engine.socket", config.engine.socket == first.engine.socket),
            ("network.subnet", config.network.subnet == first.network.subnet),
            ("node.address", config.node.address == first.node.address),
        ] {
            if !same {
                return Err(format!(
                    "{}: `{key}` cannot change while labd runs; use `labd down`, change it, then `labd up`",
                    path.display()
                ));
            }
        }
        if let Some(warning) = config::tls::check(&config, &path, Timestamp::now()).map_err(|e| e.to_string())? {
            tracing::warn!("{warning}");
        }
        // The machine as it is now is what a person who asks for this wants to be planned for.
        let facts = node::facts();
        let now = Machine { facts: Arc::new(Mutex::new(facts.clone())), ..machine.clone() };
        let desired = now.resolve(config, &path, false).map_err(|e| e.to_string())?;
        workspace_maker(&desired.config)().map_err(|e| e.to_string())?;
        *machine.planned() = facts.clone();
        let dir = &desired.config.lab.data_dir;
        pins::save(dir, &Pins { machine: Some(facts), ..pins::load(dir) });
        Ok(desired)
    };
    let read = Arc::new(read);
    Box::new(move || {
        let read = read.clone();
        async move { in_time(WORKSPACE, "labd.toml", move || read()).await?.map_err(|Late(line)| line) }.boxed()
    })
}

/// Function that plans again with the GPUs as they are.
pub(super) fn replan(path: PathBuf, machine: Machine) -> supervise::Replan {
    Box::new(move |config| {
        let (path, machine) = (path.clone(), machine.clone());
        let plan = move || machine.resolve(config, &path, false).map_err(|e| e.to_string());
        async move { in_time(WORKSPACE, "labd.toml", plan).await?.map_err(|Late(line)| line) }.boxed()
    })
}

pub(super) fn workspace_maker(config: &Config) -> impl FnOnce() -> Result<(), StartError> + Send + 'static {
    let dir = config.workspace();
    move || {
        let cannot = |e| format!("cannot make {}: {e}; set `lab.workspace` in labd.toml", dir.display());
        std::fs::create_dir_all(&dir).map_err(|e| StartError::Other(cannot(e)))
    }
}

/// Error in one line: something did not come to an end in time.
pub(super) struct Late(pub(super) String);

/// Runs what reads or writes files in a thread of its own: on a network file system that is dead it may never end, and
/// neither the loop nor the daemon's end may wait for it. `what` is the setting that names the files.
pub(super) async fn in_time<T: Send + 'static, E: Send + 'static>(
    limit: Duration,
    what: &str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<Result<T, Late>, E> {
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done.map(Ok),
        Ok(Err(_)) => Ok(Err(Late(format!("what `{what}` names could not be read")))),
        Err(_) => Ok(Err(Late(format!(
            "what `{what}` names does not answer within {}: is it on a network file system whose server is away?",
            human(limit)
        )))),
    }
}

/// Longest time for reading or making what `labd.toml` names on file systems.
pub(super) const WORKSPACE: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_that_do_not_answer_block_nothing_and_are_said() {
        let (_never, wait) = std::sync::mpsc::channel::<()>();
        let hangs = move || wait.recv().map_err(|e| e.to_string());
        let late = in_time(Duration::from_millis(50), "lab.workspace", hangs).await.expect("no failure of its own");
        let Err(Late(line)) = late else { panic!("it hangs") };
        assert!(line.starts_with("what `lab.workspace` names does not answer within 50 ms"), "{line}");
        let fails = in_time(Duration::from_secs(5), "x", || Err::<(), _>("no")).await;
        assert!(matches!(fails, Err("no")));
        assert!(matches!(in_time(Duration::from_secs(5), "x", || Ok::<_, ()>(7)).await, Ok(Ok(7))));
    }
}

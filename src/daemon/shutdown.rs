//! Ends of the daemon: a signal, or the lab that a person took down.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::StartError;
use crate::control::{Command, Control};

/// Waits for a signal or for the lab to be down; returns whether it is.
pub(super) async fn until_end(
    control: &Control,
    stop: &watch::Sender<bool>,
    mut supervision: tokio::task::JoinHandle<bool>,
) -> Result<bool, StartError> {
    let catch = |kind| signal(kind).map_err(|e| StartError::Other(format!("cannot listen for signals: {e}")));
    let (mut term, mut int, mut hup) =
        (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?, catch(SignalKind::hangup())?);
    loop {
        tokio::select! {
            ended = &mut supervision => {
                return ended.map_err(|e| StartError::Other(format!("supervision ended by a bug, please report it: {e}")));
            }
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => match control.ask(Command::Reload).await {
                Ok(line) => tracing::info!("{line}"),
                Err(refusal) => tracing::error!("{refusal}"),
            },
        }
    }
    stop.send_replace(true);
    Ok(supervision.await.unwrap_or(false))
}

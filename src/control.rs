//! Commands that a person can give the running daemon, and the way back of the answer.

use tokio::sync::{mpsc, oneshot};

/// Command of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Release a held service.
    Start {
        /// Service name.
        service: String,
    },
    /// Stop a service gracefully and hold it.
    Stop {
        /// Service name.
        service: String,
    },
    /// Stop a service gracefully and start it again.
    Restart {
        /// Service name.
        service: String,
    },
    /// Read `labd.toml` again.
    Reload,
    /// Recreate what waits with changed settings, whatever runs on it.
    Apply,
    /// Stop and remove every container, keep all data, and end the daemon.
    Down,
}

/// Reason why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No service (GPU, fault) has that name; the text names those there are, or says what lists them.
    #[error("{0}")]
    UnknownService(String),
    /// The command is wrong, such as a reload of a broken `labd.toml`; nothing was changed.
    #[error("{0}")]
    Invalid(String),
    /// Something else must be done first, which the text names.
    #[error("{0}")]
    Barred(String),
    /// The daemon is on its way out.
    #[error("labd is shutting down")]
    ShuttingDown,
}

/// Command together with the channel for its answer: one line that says what happens now.
#[derive(Debug)]
pub struct Request {
    /// Command.
    pub command: Command,
    /// Channel for the answer.
    pub reply: oneshot::Sender<Result<String, Refusal>>,
}

/// Handle that passes commands to the supervision loop.
#[derive(Debug, Clone)]
pub struct Control(mpsc::Sender<Request>);

impl Control {
    /// Handle, and the end that the loop listens on.
    pub fn channel() -> (Self, mpsc::Receiver<Request>) {
        let (tx, rx) = mpsc::channel(32);
        (Self(tx), rx)
    }

    /// Sends a command and waits for the answer.
    pub async fn ask(&self, command: Command) -> Result<String, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Request { command, reply }).await.map_err(|_| Refusal::ShuttingDown)?;
        answer.await.map_err(|_| Refusal::ShuttingDown)?
    }
}

//! End of a command: a code for scripts and one line for people.

use std::process::ExitCode;

use crate::{config::ConfigError, daemon::StartError};

/// Exit codes. Part of the interface: scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something failed; the line says what.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The daemon does not run.
    NotRunning = 3,
    /// The socket may not be used by this user.
    NoPermission = 4,
    /// It took longer than it may.
    Timeout = 5,
    /// There is no such service.
    NoService = 6,
    /// `labd.toml` is wrong (`EX_CONFIG` of sysexits.h).
    Config = 78,
    /// Interrupted with Ctrl-C (128 + SIGINT).
    Interrupted = 130,
}

/// Failure of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Exit code.
    pub exit: Exit,
    /// One line for a person; empty says nothing.
    pub line: String,
}

impl Failure {
    /// Failure with its line.
    pub fn new(exit: Exit, line: impl Into<String>) -> Self {
        Self { exit, line: line.into() }
    }

    /// The same failure with what it means in front.
    #[must_use]
    pub fn because(self, what: &str) -> Self {
        Self { line: format!("{what}: {}", self.line), ..self }
    }
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        Self::from(failure.exit as u8)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // `labd logs ray-head | head`: whoever read has seen enough.
            return Self::new(Exit::Failure, "");
        }
        Self::new(Exit::Failure, error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Config, error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let exit = match error {
            StartError::Config(_) | StartError::Plan { .. } => Exit::Config,
            StartError::Other(_) => Exit::Failure,
        };
        Self::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_stay_as_they_were_released() {
        let all = [
            (Exit::Failure, 1),
            (Exit::Usage, 2),
            (Exit::NotRunning, 3),
            (Exit::NoPermission, 4),
            (Exit::Timeout, 5),
            (Exit::NoService, 6),
            (Exit::Config, 78),
            (Exit::Interrupted, 130),
        ];
        assert!(all.iter().all(|&(exit, code)| exit as u8 == code));
    }
}

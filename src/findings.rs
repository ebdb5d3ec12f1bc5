//! Findings of `labd doctor`: what it prints, and what the API answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::without_logins;

/// Report of `labd doctor --json`.
#[derive(Debug, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "DoctorReport")]
pub struct Report<C = Check> {
    /// Version of labd.
    pub version: String,
    /// Number of checks that found nothing.
    pub ok: usize,
    /// Number of checks that were not made.
    pub skipped: usize,
    /// Number of warnings.
    pub warn: usize,
    /// Number of failures.
    pub fail: usize,
    /// What each check found.
    pub checks: Vec<C>,
}

/// Verdict of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Not checked; `why` says why.
    Skipped,
    /// Works now, and will hurt.
    Warn,
    /// Broken, or will not work.
    Fail,
}

impl Verdict {
    /// The word on the screen and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// Finding of one check.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Check {
    /// Name of the check, such as `live-restore`. Several findings of one kind share it.
    pub name: String,
    /// Verdict.
    pub verdict: Verdict,
    /// Reason, in one line.
    pub why: String,
    /// Fix, for a root shell, one command per line. What only a person can do is a comment (`# ...`).
    pub fix: Option<String>,
}

impl Check {
    pub(crate) fn new(name: &str, verdict: Verdict, why: impl Into<String>, fix: Option<String>) -> Self {
        // People paste what doctor says into mails, and addresses of mirrors and proxies may hold logins.
        let why: String = why.into();
        let fix = fix.map(|text| without_logins(&text));
        Self { name: name.to_owned(), verdict, why: without_logins(&why), fix }
    }

    pub(crate) fn ok(name: &str, why: impl Into<String>) -> Self {
        Self::new(name, Verdict::Ok, why, None)
    }

    pub(crate) fn skipped(name: &str, why: impl Into<String>) -> Self {
        Self::new(name, Verdict::Skipped, why, None)
    }

    pub(crate) fn warn(name: &str, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warn, why, Some(fix.into()))
    }

    pub(crate) fn fail(name: &str, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(name, Verdict::Fail, why, Some(fix.into()))
    }
}

//! Progress of a build or a pull, in one line for a person. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    engine::docker::explain::{DISK_FULL, is_disk_full, one_line},
    text::{clip, without_logins},
};

/// Number of lines kept for finding the one that says why a build failed.
const KEPT: usize = 40;

/// Progress of a build, from its output.
#[derive(Debug, Default)]
pub(super) struct BuildProgress {
    step: Option<Step>,
    unfinished: String,
    lines: VecDeque<String>,
}

/// One step of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Number of the step, from 1.
    pub(super) number: u32,
    /// Number of all steps.
    pub(super) of: u32,
    /// The Dockerfile's instruction, on one line.
    pub(super) instruction: String,
}

impl BuildProgress {
    /// Takes a piece of output, which need not end at a line's end; returns the whole lines that it completed.
    pub(super) fn feed(&mut self, piece: &str) -> Vec<String> {
        self.unfinished.push_str(piece);
        let mut done = Vec::new();
        // Progress bars rewrite their line with a carriage return.
        while let Some(at) = self.unfinished.find(['\n', '\r']) {
            let line = plain(&self.unfinished[..at]);
            self.unfinished.drain(..=at);
            if !line.is_empty() {
                self.line(&line);
                done.push(line);
            }
        }
        done
    }

    fn line(&mut self, line: &str) {
        if let Some(step) = parse_step(line) {
            self.step = Some(step);
            self.lines.clear();
        } else if !is_chatter(line) {
            self.lines.push_back(line.to_owned());
            if self.lines.len() > KEPT {
                self.lines.pop_front();
            }
        }
    }

    /// The step under way.
    pub(super) fn step(&self) -> Option<&Step> {
        self.step.as_ref()
    }

    /// Line such as `step 4/12: RUN pip install …: Downloading …`, at most 160 characters.
    pub(super) fn detail(&self) -> String {
        let Some(step) = &self.step else { return "sending the build's files".to_owned() };
        let head = format!("step {}/{}: {}", step.number, step.of, clip(&step.instruction, 60));
        match self.lines.back() {
            Some(last) => clip(&one_line(&without_logins(&format!("{head} | {last}"))), 160),
            None => one_line(&head),
        }
    }

    /// Reason why the build failed, given the engine's error.
    pub(super) fn failure(&self, image: &str, engine: &str) -> String {
        if is_disk_full(engine) || self.lines.iter().any(|l| is_disk_full(l)) {
            return format!("building image {image} failed: {DISK_FULL}");
        }
        let place = self.step.as_ref().map_or_else(String::new, |s| {
            format!(" at step {}/{} ({})", s.number, s.of, one_line(&clip(&s.instruction, 60)))
        });
        let why = self.useful_line().unwrap_or(engine);
        clip(&without_logins(&format!("building image {image} failed{place}: {}", one_line(why))), 360)
            + &format!("; see `labd images build {image}`")
    }

    /// Last line that speaks of an error, else the last one.
    fn useful_line(&self) -> Option<&str> {
        let speaks = |l: &&String| {
            let lower = l.to_ascii_lowercase();
            ["error", "e: ", "fatal", "failed", "not found", "cannot", "denied"].iter().any(|w| lower.contains(w))
        };
        self.lines.iter().rev().find(speaks).or(self.lines.back()).map(String::as_str)
    }
}

/// Step in a line such as `Step 4/12 : RUN pip install ray`.
fn parse_step(line: &str) -> Option<Step> {
    let (count, instruction) = line.strip_prefix("Step ")?.split_once(" : ")?;
    let (number, of) = count.split_once('/')?;
    Some(Step {
        number: number.trim().parse().ok()?,
        of: of.trim().parse().ok()?,
        instruction: instruction.split_whitespace().collect::<Vec<_>>().join(" "),
    })
}

/// Whether a line is the engine's own between a step's output.
fn is_chatter(line: &str) -> bool {
    line.starts_with("---> ") || line.starts_with("Removing intermediate container") || line.starts_with("[Warning]")
}

/// Line without terminal escapes and surrounding blanks.
fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' {
            // An escape sequence ends with its first letter.
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else if !c.is_control() || c == '\t' {
            out.push(c);
        }
    }
    out.trim().to_owned()
}

/// Progress of a pull, summed over its layers.
#[derive(Debug, Default)]
pub(super) struct PullProgress {
    layers: BTreeMap<String, Layer>,
}

#[derive(Debug, Default)]
struct Layer {
    current: u64,
    total: u64,
    fetched: bool,
}

impl PullProgress {
    /// Takes one message of the pull.
    pub(super) fn feed(&mut self, id: Option<&str>, status: &str, current: Option<i64>, total: Option<i64>) {
        let Some(id) = id else { return };
        match status {
            "Downloading" => {
                let layer = self.layers.entry(id.to_owned()).or_default();
                let number = |n: Option<i64>| u64::try_from(n.unwrap_or(0)).unwrap_or(0);
                layer.total = layer.total.max(number(total));
                layer.current = layer.current.max(number(current));
            }
            "Pulling fs layer" | "Waiting" => {
                self.layers.entry(id.to_owned()).or_default();
            }
            // Extracting counts the same bytes once more; only its beginning says something new.
            "Verifying Checksum" | "Download complete" | "Extracting" | "Pull complete" | "Already exists" => {
                let layer = self.layers.entry(id.to_owned()).or_default();
                layer.current = layer.total;
                layer.fetched = true;
            }
            _ => {}
        }
    }

    /// Line such as `pulling 120/400 MB`; the second number grows while layers are announced.
    pub(super) fn detail(&self) -> String {
        let (current, total) = self.layers.values().fold((0, 0), |(c, t), l| (c + l.current.min(l.total), t + l.total));
        if self.layers.is_empty() {
            "asking the registry".to_owned()
        } else if self.layers.values().all(|l| l.fetched) {
            format!("unpacking {} MB", total.div_ceil(1_000_000))
        } else {
            format!("pulling {}/{} MB", current / 1_000_000, total.div_ceil(1_000_000))
        }
    }
}

/// Reason why a pull failed, from the engine's error.
pub(super) fn pull_failure(reference: &str, engine: &str) -> String {
    format!("image cannot be pulled: {}", why_not_pulled(reference, engine))
}

fn why_not_pulled(reference: &str, engine: &str) -> String {
    let text = engine.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
    let registry = registry(reference);
    if is_disk_full(engine) {
        DISK_FULL.to_owned()
    } else if has(&["toomanyrequests", "rate limit"]) {
        format!(
            "the registry {registry} limits how much this address may pull; log in with `docker login` or try later"
        )
    } else if has(&["x509", "certificate"]) {
        format!(
            "the engine does not trust the certificate of the registry {registry}; put its CA into \
             /etc/docker/certs.d/{registry}/ca.crt"
        )
    } else if has(&["pull access denied", "unauthorized", "authentication required"]) {
        format!(
            "the registry {registry} has no {reference}, or not for everyone; correct it in labd.toml or `docker login`"
        )
    } else if has(&["manifest unknown", "not found", "does not exist", "name unknown", "no matching manifest"])
        && !has(&["lookup", "no such host"])
    {
        format!("the registry {registry} has no {reference}; correct it in labd.toml")
    } else if has(&[
        "no such host",
        "dial tcp",
        "i/o timeout",
        "connection refused",
        "client.timeout",
        "tls handshake",
        "unreachable",
        "request canceled",
        "proxyconnect",
        "deadline exceeded",
        "forbidden",
        "bad gateway",
        "eof",
    ]) {
        format!("no registry answers at {registry}; connect this machine to it or name another image in labd.toml")
    } else {
        one_line(engine)
    }
}

/// The registry a reference points to.
fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// Splits `name:tag` for a pull; a digest stays with its name, and a missing tag becomes `latest`, since an engine asked
/// for no tag pulls them all.
pub(super) fn split_reference(reference: &str) -> (String, Option<String>) {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    if reference.contains('@') || last.contains(':') {
        return (reference.to_owned(), None);
    }
    (reference.to_owned(), Some("latest".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_across_pieces() {
        let mut p = BuildProgress::default();
        assert_eq!(p.detail(), "sending the build's files");
        p.feed("Step 4/1");
        p.feed("2 : RUN pip install \t ray\n ---> Running in 0f\n\u{1b}[32mDownloading ray-2.60.0\u{1b}[0m\n   12%\r  34%\r");
        assert_eq!(p.step().map(|s| (s.number, s.of)), Some((4, 12)));
        assert_eq!(p.detail(), "step 4/12: RUN pip install ray | 34%");
        p.feed("Step 5/12 : USER root\n ---> Using cache\n");
        assert_eq!(p.detail(), "step 5/12: USER root");
    }

    #[test]
    fn a_failure_names_step_and_reason() {
        let mut p = BuildProgress::default();
        p.feed(
            "Step 2/3 : RUN pip install nosuch\nCollecting nosuch\nERROR: No matching distribution found for nosuch\n",
        );
        p.feed("[notice] a new release of pip is available\n");
        assert_eq!(
            p.failure("ray", "The command '/bin/sh -c pip install nosuch' returned a non-zero code: 1"),
            "building image ray failed at step 2/3 (RUN pip install nosuch): ERROR: No matching distribution found for \
             nosuch; see `labd images build ray`"
        );
        assert_eq!(
            BuildProgress::default().failure("ray", "dockerfile parse error line 3"),
            "building image ray failed: dockerfile parse error line 3; see `labd images build ray`"
        );
    }

    #[test]
    fn a_full_disk_is_called_that() {
        let mut p = BuildProgress::default();
        p.feed("Step 2/3 : RUN x\nOSError: [Errno 28] No space left on device\n");
        assert!(p.failure("ray", "returned a non-zero code: 1").contains("disk is full"));
    }

    #[test]
    fn a_pull_adds_up_its_layers() {
        let mut p = PullProgress::default();
        assert_eq!(p.detail(), "asking the registry");
        p.feed(Some("12.0"), "Pulling from grafana/grafana", None, None);
        p.feed(Some("a"), "Pulling fs layer", None, None);
        p.feed(Some("b"), "Already exists", None, None);
        p.feed(Some("a"), "Downloading", Some(120_000_000), Some(300_000_000));
        p.feed(Some("c"), "Downloading", Some(100_000_000), Some(100_000_000));
        assert_eq!(p.detail(), "pulling 220/400 MB");
        p.feed(Some("c"), "Download complete", None, None);
        p.feed(Some("a"), "Download complete", None, None);
        p.feed(Some("a"), "Extracting", Some(5), Some(300_000_000));
        assert_eq!(p.detail(), "unpacking 400 MB");
    }

    #[test]
    fn pull_failures_are_told_apart() {
        for (text, part) in [
            (
                "Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io: no such host",
                "no registry answers at docker.io",
            ),
            (
                "net/http: request canceled while waiting for connection (Client.Timeout exceeded)",
                "no registry answers",
            ),
            ("manifest for grafana/grafana:0 not found: manifest unknown", "has no grafana/grafana:0"),
            ("toomanyrequests: You have reached your pull rate limit", "limits how much"),
            ("x509: certificate signed by unknown authority", "does not trust"),
            (
                "pull access denied for grafana/grafana, repository does not exist or may require 'docker login'",
                "not for everyone",
            ),
            ("something new", "something new"),
        ] {
            let line = pull_failure("grafana/grafana:0", text);
            assert!(line.starts_with("image cannot be pulled: ") && line.contains(part), "{line}");
        }
        assert_eq!(registry("reg.example:5000/a/b:1"), "reg.example:5000");
    }

    #[test]
    fn a_pull_always_has_one_tag() {
        assert_eq!(split_reference("grafana/grafana"), ("grafana/grafana".into(), Some("latest".into())));
        assert_eq!(split_reference("reg:5000/a:1"), ("reg:5000/a:1".into(), None));
        assert_eq!(split_reference("reg:5000/a"), ("reg:5000/a".into(), Some("latest".into())));
        assert_eq!(split_reference("a@sha256:0"), ("a@sha256:0".into(), None));
    }
}

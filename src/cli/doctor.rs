//! `labd doctor`: asks the daemon for its snapshot, then shows each finding as it comes.

use std::{path::PathBuf, time::Duration};

use super::{
    args::Global,
    client::Client,
    exit::{Exit, Failure},
    status::{Paint, clean, paint, wrap},
    text::{Out, Style},
};
use crate::{
    doctor::{self, DaemonSeen, Subject},
    findings::{Check, Report, Verdict},
    snapshot::Snapshot,
};

/// Longest wait for the daemon.
const DAEMON: Duration = Duration::from_secs(5);
/// Column at which each finding's words begin.
const INDENT: usize = 25;

/// Runs `labd doctor`.
pub(super) async fn doctor(global: &Global, json: bool, out: &mut Out) -> Result<(), Failure> {
    let subject = Subject {
        root: PathBuf::from("/"),
        config: global.config.clone(),
        socket: global.socket.clone(),
        daemon: daemon(global).await,
    };
    let style = out.style();
    // Whoever reads may have seen enough; the verdict counts all the same.
    let mut told = Ok(());
    let checks = doctor::examine(subject, |check| {
        if !json && told.is_ok() {
            told = out.text(&render(check, style));
        }
    })
    .await;
    told?;
    let all = report(&checks);
    if json {
        out.json(&all)?;
    } else {
        let Report { ok, skipped, warn, fail, .. } = all;
        out.line(&format!("\n{ok} ok, {skipped} skipped, {warn} with warnings, {fail} failed"))?;
    }
    if all.fail == 0 {
        return Ok(());
    }
    let mut names: Vec<&str> = checks.iter().filter(|c| c.verdict == Verdict::Fail).map(|c| c.name.as_str()).collect();
    names.dedup();
    Err(Failure::new(Exit::Failure, format!("checks failed: {}", names.join(", "))))
}

/// Report that `--json` prints, and the API answers.
fn report(checks: &[Check]) -> Report<&Check> {
    let count = |verdict| checks.iter().filter(|c| c.verdict == verdict).count();
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ok: count(Verdict::Ok),
        skipped: count(Verdict::Skipped),
        warn: count(Verdict::Warn),
        fail: count(Verdict::Fail),
        checks: checks.iter().collect(),
    }
}

async fn daemon(global: &Global) -> DaemonSeen {
    let client = Client::new(global);
    match tokio::time::timeout(DAEMON, client.json::<Snapshot>("/api/v1/snapshot")).await {
        Ok(Ok(snapshot)) => DaemonSeen::Running(Box::new(snapshot)),
        Ok(Err(f)) if f.exit == Exit::NotRunning => DaemonSeen::Absent,
        Ok(Err(f)) if f.exit == Exit::NoPermission => DaemonSeen::NotForUs,
        Ok(Err(f)) => DaemonSeen::Ill(f.line),
        Err(_) => DaemonSeen::Ill(format!("the daemon does not answer within {} s", DAEMON.as_secs())),
    }
}

/// Finding as text, at most as wide as the terminal but for words that are longer.
fn render(check: &Check, style: Style) -> String {
    let color = match check.verdict {
        Verdict::Ok => Paint::Green,
        Verdict::Skipped => Paint::Dim,
        Verdict::Warn => Paint::Yellow,
        Verdict::Fail => Paint::Red,
    };
    let room = style.width - INDENT;
    let mut text = String::new();
    for (i, line) in wrap(&clean(&check.why), room).iter().enumerate() {
        if i == 0 {
            let verdict = paint(&format!("{:<7}", check.verdict.as_str()), color, style);
            text.push_str(&format!("{verdict}  {:<14}  {line}\n", check.name));
        } else {
            text.push_str(&format!("{:INDENT$}{line}\n", ""));
        }
    }
    for command in check.fix.iter().flat_map(|fix| fix.lines()) {
        for (i, line) in shell(&clean(command), style.width - 6).iter().enumerate() {
            let lead = if i == 0 { "  $ " } else { "    " };
            let lead = if command.starts_with('#') { "    " } else { lead };
            text.push_str(&format!("{}{}\n", paint(lead, Paint::Dim, style), paint(line, Paint::Cyan, style)));
        }
    }
    text
}

/// Command as lines that can still be pasted: broken between words outside of quotes, each but the last with ` \` at
/// its end. A comment is broken like text.
fn shell(command: &str, width: usize) -> Vec<String> {
    if let Some(comment) = command.strip_prefix("# ") {
        return wrap(comment, width - 2).iter().map(|l| format!("# {l}")).collect();
    }
    let mut words = vec![String::new()];
    let mut quote = None;
    for c in command.chars() {
        match quote {
            None if c == ' ' => {
                words.push(String::new());
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(q) if q == c => quote = None,
            _ => {}
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    let mut lines = vec![String::new()];
    for word in words {
        let Some(line) = lines.last_mut() else { break };
        let length = line.chars().count();
        if length > 0 && length + 1 + word.chars().count() > width - 2 {
            line.push_str(" \\");
            lines.push(word);
        } else {
            if length > 0 {
                line.push(' ');
            }
            line.push_str(&word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_the_api_documents() {
        let check = |verdict| Check { name: "a".into(), verdict, why: "b".into(), fix: Some("c".into()) };
        let checks = [Verdict::Ok, Verdict::Skipped, Verdict::Warn, Verdict::Fail].map(check);
        let printed = serde_json::to_value(report(&checks)).expect("plain values");
        let read: Report = serde_json::from_value(printed.clone()).expect("as documented");
        assert_eq!(serde_json::to_value(read).expect("plain values"), printed);
    }

    #[test]
    fn a_finding_fits_eighty_columns_and_its_fix_can_be_pasted() {
        let check = Check {
            name: "nvidia-toolkit".into(),
            verdict: Verdict::Fail,
            why: "something \x1b[2J long that goes on and on ".repeat(4),
            fix: Some(format!(
                "printf '%s %s\\n' {} 'a  b' >/dev/stdout\n# and then {}",
                "word ".repeat(30),
                "x ".repeat(60)
            )),
        };
        let text = render(&check, Style { color: false, width: 80 });
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        assert!(text.starts_with("fail     nvidia-toolkit  something"), "{text}");
        assert!(!text.contains('\x1b'));
        assert!(render(&check, Style { color: true, width: 80 }).contains("\x1b[31mfail"));
        let command = check.fix.as_deref().and_then(|f| f.lines().next()).expect("two lines");
        let run = |text: &str| std::process::Command::new("sh").args(["-c", text]).output().expect("a shell").stdout;
        let broken = shell(command, 74);
        assert!(broken.len() > 1);
        assert_eq!(run(&broken.join("\n")), run(command));
    }
}

//! `labd jobs`: each job once, with every attempt at it. Rendering is pure.

use hyper::Method;
use serde_json::Value;

use super::{
    args::{Jobs, JobsCommand},
    client::Client,
    exit::Failure,
    status::{age, clean, hard_wrap, id_cell, job_paint, paint, wrap},
    text::{Out, Style},
};
use crate::{
    config::Bytes,
    jobs::whole::{Folded, JobDetail, fold},
    snapshot::{JobOutcome, JobView, Snapshot},
    text::{path_segment, shell_word},
    time::Timestamp,
};

/// Width of an id beside the rest of its line; a longer one has lines of its own.
const ID: usize = 28;

pub(super) async fn run(client: &Client<'_>, args: &Jobs, out: &mut Out) -> Result<(), Failure> {
    if let Some(JobsCommand::Stop { id }) = &args.command {
        let line = client.command(&format!("/api/v1/jobs/{}/stop", path_segment(id))).await?;
        return out.line(&line);
    }
    let now = Timestamp::now();
    let Some(id) = &args.id else {
        let snapshot: Snapshot = client.json("/api/v1/snapshot").await?;
        let jobs = fold(&snapshot.jobs);
        return if args.json { out.json(&jobs) } else { out.text(&list(&jobs, now, out.style())) };
    };
    let path = format!("/api/v1/jobs/{}", path_segment(id));
    if args.csv {
        return out.bytes(&client.bytes(Method::GET, &format!("{path}/curve.csv")).await?);
    }
    if args.json {
        let told: Value = client.json(&path).await?;
        return out.json(&told);
    }
    let job: JobDetail = client.json(&path).await?;
    out.text(&one(&job, now, out.style()))
}

fn list(jobs: &[Folded<'_>], now: Timestamp, style: Style) -> String {
    if jobs.is_empty() {
        return "no jobs yet; `ray job submit` in JupyterLab's terminal submits one\n".to_owned();
    }
    let width = jobs.iter().map(|job| clean(job.id).chars().count()).filter(|n| *n <= ID).max().unwrap_or(3).max(3);
    let room = style.width.saturating_sub(width + 2 + 9 + 2 + 9 + 2 + 5 + 2);
    let mut text = format!("{:<width$}  {:<9}  {:<9}  {:>5}  RUN AND WORKERS\n", "JOB", "STATUS", "SINCE", "TRIES");
    for job in jobs {
        let (Some(first), Some(newest)) = (job.attempts.first(), job.attempts.last()) else { continue };
        let status = paint(&format!("{:<9}", job.status.as_str()), job_paint(newest), style);
        let since = newest.ended_at.or(newest.submitted_at).map_or_else(|| "-".to_owned(), |at| age(now, at));
        let run = job.run.as_deref().unwrap_or("-");
        let place =
            if job.workers.is_empty() { run.to_owned() } else { format!("{run} on {}", job.workers.join(", ")) };
        let id = id_cell(job.id, width, style, &mut text);
        let tries = first.attempt.map_or_else(|| "-".to_owned(), |_| job.attempts.len().to_string());
        let mut lines = wrap(&clean(&place), room).into_iter().flat_map(|line| hard_wrap(&line, room));
        let line = lines.next().unwrap_or_default();
        text.push_str(format!("{id:<width$}  {status}  {since:<9}  {tries:>5}  {line}").trim_end());
        text.push('\n');
        for line in lines {
            text.push_str(&format!("{:<1$}{line}\n", "", style.width - room));
        }
        let why = job.waits_for.or(Some(newest.message.as_str()).filter(|m| newest.attempt.is_some() && !m.is_empty()));
        for line in why.into_iter().flat_map(|why| wrap(&clean(why), style.width - 4)) {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text
}

fn one(job: &JobDetail, now: Timestamp, style: Style) -> String {
    const LABEL: usize = 13;
    let mut text = String::new();
    let mut row = |label: &str, what: &str| {
        let lines = wrap(&clean(what), style.width - LABEL).into_iter();
        for (i, line) in lines.flat_map(|line| hard_wrap(&line, style.width - LABEL)).enumerate() {
            text.push_str(&format!("{:<LABEL$}{line}\n", if i == 0 { label } else { "" }));
        }
    };
    let Some(newest) = job.attempts.last() else { return String::new() };
    let ago = |at: Option<Timestamp>| at.map_or_else(|| "-".to_owned(), |at| format!("{} ago", age(now, at)));
    let run = job.train_run.as_ref();
    row("job", &job.id);
    let as_which = if newest.submission_id == job.id { String::new() } else { format!(" as {}", newest.submission_id) };
    row("status", &format!("{}{as_which}", job.status.as_str()));
    row("command", &newest.entrypoint);
    row("submitted", &ago(job.attempts.first().and_then(|first| first.submitted_at)));
    if newest.ended_at.is_some() {
        row("ended", &ago(newest.ended_at));
    }
    if let Some(waits_for) = &job.waits_for {
        row("waits", waits_for);
    }
    for install in &job.installs {
        let (phase, bytes) = (install.phase.as_str(), Bytes::new(install.bytes));
        row("packages", &format!("{phase} on {}, {bytes} so far", install.node));
    }
    match (&job.run, run) {
        (Some(name), Some(run)) => row("run", &format!("{name}, {}", run.status.map_or("-", |status| status.as_str()))),
        (Some(name), None) => row("run", name),
        (None, _) => row("run", "none that Ray Train reports"),
    }
    if !job.workers.is_empty() {
        row("runs on", &job.workers.join(", "));
    }
    if let Some(checkpoint) = run.and_then(|run| run.checkpoint.as_ref()) {
        let (age, size) = (age(now, checkpoint.at), Bytes::new(checkpoint.bytes));
        row("checkpoint", &format!("{}, {age} old, {size}", checkpoint.name));
    }
    for note in newest.note.iter().chain(job.attempts.first().and_then(|first| first.note.as_ref())).take(1) {
        row("note", note);
    }
    if newest.attempt.is_some() {
        for (i, attempt) in job.attempts.iter().enumerate() {
            let what = match attempt.outcome {
                Some(JobOutcome::Succeeded) => "succeeded".to_owned(),
                Some(_) => attempt.message.clone(),
                None => attempt.status.as_str().to_owned(),
            };
            row(if i == 0 { "attempts" } else { "" }, &format!("{}: {what}", attempt.submission_id));
        }
    } else {
        row("attempts", "it did not come through labd's front door: labd does not resubmit it");
        if !newest.message.is_empty() {
            row("message", &newest.message);
        }
    }
    row("its log", &format!("ray job logs -f {}", shell_word(&job.id)));
    paint_status(text, newest, style)
}

fn paint_status(text: String, newest: &JobView, style: Style) -> String {
    let word = newest.status.as_str();
    if style.color { text.replacen(word, &paint(word, job_paint(newest), style), 1) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        jobs::whole::detail,
        snapshot::{CheckpointView, InstallPhase, InstallView, JobStatus, RunStatus, RunView},
    };

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1_000)
    }

    fn job(id: &str, root: &str, attempt: u32, status: JobStatus) -> JobView {
        JobView {
            submission_id: id.into(),
            status,
            run: Some("food11".into()),
            entrypoint: "python train.py".into(),
            submitted_at: Some(at(i64::from(attempt))),
            ended_at: None,
            message: String::new(),
            outcome: None,
            attempt: Some(attempt),
            resubmission_of: (id != root).then(|| root.to_owned()),
            resubmitted_as: None,
            waits_for: None,
            workers: Vec::new(),
            note: None,
            user: None,
        }
    }

    fn jobs() -> Vec<JobView> {
        let lost = JobView {
            outcome: Some(JobOutcome::Lost),
            message: "lost (ray-worker-0: container exited 137 (SIGKILL)); resubmitted as food11-r1".into(),
            resubmitted_as: Some("food11-r1".into()),
            note: Some("the id food11 was used before".into()),
            ended_at: Some(at(20)),
            ..job("food11", "food11", 1, JobStatus::Failed)
        };
        let runs = JobView {
            workers: vec!["ray-worker-0".into(), "ray-worker-1".into()],
            ..job("food11-r1", "food11", 2, JobStatus::Running)
        };
        let long = "a-very-long-id-".repeat(8) + "\u{1b}[2Jtail";
        let waits = JobView {
            waits_for: Some("waits for 2 GPU, 8 CPU, which no node has: the largest has 1 GPU, 8 CPU".into()),
            run: None,
            ..job(&long, &long, 1, JobStatus::Pending)
        };
        vec![
            waits,
            runs,
            lost,
            job("raysubmit_AbCdEfGhIjKlMnOp", "raysubmit_AbCdEfGhIjKlMnOp", 1, JobStatus::Succeeded),
        ]
    }

    #[test]
    fn each_job_is_shown_once_with_its_whole_id_and_what_it_waits_for() {
        let jobs = jobs();
        let folded = fold(&jobs);
        assert_eq!(folded.len(), 3);
        assert_eq!((folded[1].id, folded[1].status, folded[1].attempts.len()), ("food11", JobStatus::Running, 2));
        let text = list(&folded, at(125), Style { color: false, width: 80 });
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("raysubmit_AbCdEfGhIjKlMnOp  SUCCEEDED") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("food11 on ray-worker-0,") && text.contains("which no node has"), "{text}");
        assert!(text.replace('\n', "").contains(&"a-very-long-id-".repeat(8)), "not cut: {text}");
    }

    #[test]
    fn one_job_says_what_became_of_each_attempt_and_where_to_read_on() {
        let jobs = jobs();
        let run = RunView {
            name: "food11".into(),
            submission_id: None,
            status: Some(RunStatus::Running),
            started_at: None,
            attempts: 2,
            checkpoint: Some(CheckpointView { name: "checkpoint_1".into(), at: at(113), bytes: 350 << 20 }),
            checkpoints: 1,
            used_bytes: 0,
            looked_at: None,
            note: None,
        };
        let install = InstallView {
            node: "ray-worker-1".into(),
            job: "food11-r1".into(),
            phase: InstallPhase::Installing,
            since: at(1),
            ended_at: None,
            bytes: 1 << 20,
            packages: 0,
            reason: None,
        };
        let mut snapshot = crate::http::testing::a_snapshot();
        (snapshot.runs, snapshot.installs) = (vec![run], vec![install]);
        let folded = fold(&jobs);
        let job = detail(&folded[1], &snapshot, &[], None, at(125)).expect("a job");
        let text = one(&job, at(125), Style { color: false, width: 80 });
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for part in [
            "RUNNING as food11-r1",
            "food11: lost (ray-worker-0: container exited 137 (SIGKILL));",
            "resubmitted as food11-r1",
            "food11-r1: RUNNING",
            "ray-worker-0, ray-worker-1",
            "checkpoint_1, 12 s old, 350 MiB",
            "installing on ray-worker-1, 1 MiB so far",
            "was used before",
            "ray job logs -f food11",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert_eq!(shell_word("lr 0.01"), "'lr 0.01'");
    }
}

//! Answers about one job: as Ray reports it, and where the ledger knows more, as the ledger does. A job whose attempt
//! was lost is its newest attempt, so that a client that waits for its end waits for the right one; while the head is
//! away, the ledger answers.

use std::time::Duration;

use axum::{
    extract::{Path, Request, State as From},
    response::{IntoResponse as _, Response},
};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{FrontDoor, HOLD, answer, away};
use crate::{
    jobs::decide::{self, Job, Next, Outcome, State},
    ray::HttpJobs,
    snapshot::JobStatus,
};

/// Time between two checks while nothing is known yet.
const AGAIN: Duration = Duration::from_secs(1);

pub(super) async fn get(From(door): From<FrontDoor>, Path(id): Path<String>, request: Request) -> Response {
    if !door.is_ours(request.headers()) {
        return door.pass(request).await;
    }
    let until = Instant::now() + HOLD;
    let mut view = door.ledger.watch();
    loop {
        let Some(attempts) = door.ledger.attempts(&id).await else { return away("labd is shutting down") };
        let newest = attempts.last().map_or(id.as_str(), |job| job.id.as_str());
        let told = match door.head() {
            Some(head) => HttpJobs::new(head).job(newest).await.ok(),
            None => None,
        };
        let late = Instant::now() >= until;
        if attempts.is_empty() {
            match told {
                Some(reply) => return answer(reply),
                None if late => return away("the Ray head is away"),
                None => {}
            }
        } else {
            let told = told.filter(crate::ray::Reply::is_success);
            let told = told.and_then(|reply| serde_json::from_slice::<Map<String, Value>>(&reply.body).ok());
            let last = door.ray.borrow().jobs.as_ref().and_then(|told| {
                let entry = told.jobs.iter().find(|entry| entry.submission_id == newest)?;
                decide::is_about(attempts.last()?, entry).then_some(entry.status)
            });
            if let Some(shown) = shown(&id, &attempts, told, last, late) {
                return axum::Json(shown).into_response();
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            _ = view.changed() => {}
        }
    }
}

/// Answer for `id`, whose attempts these are: from what Ray reports of the newest one, or else from the ledger, with
/// what Ray reported last. `None` while Ray reports that it failed and the ledger does not know yet what that means,
/// unless it is late.
fn shown(
    id: &str,
    attempts: &[Job],
    told: Option<Map<String, Value>>,
    last: Option<JobStatus>,
    late: bool,
) -> Option<Map<String, Value>> {
    let newest = attempts.last()?;
    let is_told = told.is_some();
    let mut shown = told.unwrap_or_else(|| of_ledger(newest));
    let says = |shown: &Map<String, Value>| -> Option<JobStatus> {
        serde_json::from_value::<JobStatus>(shown.get("status")?.clone()).ok()
    };
    let status = match &newest.state {
        State::Queued { .. } => {
            // Ray may know a namesake.
            shown = of_ledger(newest);
            JobStatus::Pending
        }
        State::Submitted(known) => {
            let status = if is_told { says(&shown) } else { last }.unwrap_or(JobStatus::Pending);
            if status == JobStatus::Failed && known.stop_asked { JobStatus::Stopped } else { status }
        }
        State::Ended { outcome: Outcome::Succeeded, .. } => JobStatus::Succeeded,
        State::Ended { outcome: Outcome::Stopped, .. } => JobStatus::Stopped,
        State::Ended { outcome: Outcome::Failed { .. } | Outcome::Lost { .. }, .. } => JobStatus::Failed,
    };
    if status == JobStatus::Failed && !newest.is_over() && !late {
        return None;
    }
    if status != JobStatus::Failed {
        shown.insert("error_type".to_owned(), Value::Null);
    }
    let mut message = shown.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let State::Ended { at, outcome } = &newest.state {
        if !shown.get("end_time").is_some_and(Value::is_number) {
            shown.insert("end_time".to_owned(), json!(at.as_millis()));
        }
        match outcome {
            Outcome::Stopped if says(&shown) != Some(JobStatus::Stopped) => {
                "stopped by a person".clone_into(&mut message);
            }
            Outcome::Failed { why } if message.is_empty() => message.clone_from(why),
            Outcome::Lost { why, next } => {
                let next = if let Next::Not(reason) = next { reason.as_str() } else { "" };
                message = format!("lost ({why}); {next}\n{message}");
            }
            Outcome::Succeeded => {
                shown.insert("driver_exit_code".to_owned(), json!(0));
            }
            Outcome::Stopped | Outcome::Failed { .. } => {}
        }
    }
    if newest.id != id {
        let why = attempts.iter().rev().nth(1).and_then(|job| match &job.state {
            State::Ended { outcome: Outcome::Lost { why, .. }, .. } => Some(why.as_str()),
            _ => None,
        });
        let why = why.unwrap_or("its attempt was lost");
        message = format!("{} continues {id} ({why}). {message}", newest.id);
    }
    shown.insert("status".to_owned(), json!(status));
    shown.insert("submission_id".to_owned(), json!(id));
    shown.insert("message".to_owned(), json!(message.trim_end()));
    Some(shown)
}

/// Job as Ray would report it, from the ledger alone.
fn of_ledger(job: &Job) -> Map<String, Value> {
    let sent: Map<String, Value> = serde_json::from_str(&job.submission.to_json()).unwrap_or_default();
    let of = |key: &str| sent.get(key).cloned().unwrap_or_else(|| json!({}));
    let all = json!({
        "type": "SUBMISSION",
        "job_id": null,
        "submission_id": job.id,
        "driver_info": null,
        "status": JobStatus::Pending,
        "entrypoint": job.submission.entrypoint(),
        "message": "",
        "error_type": null,
        "start_time": job.submitted_at.as_millis(),
        "end_time": null,
        "metadata": of("metadata"),
        "runtime_env": of("runtime_env"),
        "driver_agent_http_address": null,
        "driver_node_id": null,
        "driver_exit_code": null,
    });
    if let Value::Object(all) = all { all } else { Map::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        jobs::{decide::Submitted, submission::Submission},
        time::Timestamp,
    };

    fn job(id: &str, state: State) -> Job {
        Job {
            id: id.into(),
            root: "a".into(),
            attempt: 1,
            submission: Submission::parse(br#"{"entrypoint": "x", "metadata": {"m": "n"}}"#).expect("one"),
            came_at: Timestamp::from_millis(5),
            submitted_at: Timestamp::from_millis(5),
            run: "a".into(),
            note: None,
            state,
        }
    }

    fn ended(outcome: Outcome) -> State {
        State::Ended { at: Timestamp::from_millis(9), outcome }
    }

    fn told(status: &str) -> Option<Map<String, Value>> {
        let told = json!({"submission_id": "a", "status": status, "message": "Ray's", "error_type": "X", "new": 1});
        told.as_object().cloned()
    }

    #[test]
    fn the_ledger_has_the_last_word_and_ray_the_details() {
        let handed = || State::Submitted(Submitted::new(Timestamp::from_millis(6)));
        let stopping = State::Submitted(Submitted { stop_asked: true, ..Submitted::new(Timestamp::from_millis(6)) });
        let lost = Outcome::Lost { why: "power".into(), next: Next::Not("not resubmitted".into()) };
        for (state, ray, last, status) in [
            (handed(), told("RUNNING"), None, Some("RUNNING")),
            (handed(), told("FAILED"), None, None),
            (handed(), None, None, Some("PENDING")),
            (handed(), None, Some(JobStatus::Running), Some("RUNNING")),
            (stopping, told("FAILED"), None, Some("STOPPED")),
            (
                State::Queued { not_before: Timestamp::from_millis(0), stop_first: None, tries: 0 },
                told("FAILED"),
                None,
                Some("PENDING"),
            ),
            (ended(Outcome::Stopped), told("FAILED"), None, Some("STOPPED")),
            (ended(Outcome::Succeeded), None, None, Some("SUCCEEDED")),
            (ended(Outcome::Failed { why: "own".into() }), told("FAILED"), None, Some("FAILED")),
            (ended(lost), told("FAILED"), None, Some("FAILED")),
        ] {
            let attempts = [job("a", state)];
            let shown = shown("a", &attempts, ray, last, false);
            let got = shown.as_ref().and_then(|s| s["status"].as_str());
            assert_eq!(got, status, "{attempts:?}");
            if let Some(shown) = shown.filter(|s| s["status"] != "FAILED") {
                assert_eq!(shown["error_type"], Value::Null);
            }
        }
        let late = shown("a", &[job("a", handed())], told("FAILED"), None, true).expect("late");
        assert_eq!((&late["status"], &late["new"]), (&json!("FAILED"), &json!(1)));
    }

    #[test]
    fn an_attempt_that_took_its_place_is_named_and_stands_for_it() {
        let next = Outcome::Lost { why: "ray-driver: SIGKILL".into(), next: Next::As("a-r1".into()) };
        let attempts = [job("a", ended(next)), job("a-r1", ended(Outcome::Succeeded))];
        let shown = shown("a", &attempts, None, None, false).expect("known");
        assert_eq!((&shown["submission_id"], &shown["driver_exit_code"]), (&json!("a"), &json!(0)));
        assert_eq!(
            (&shown["message"], &shown["end_time"]),
            (&json!("a-r1 continues a (ray-driver: SIGKILL)."), &json!(9))
        );
        assert_eq!(shown["metadata"], json!({"m": "n"}));
    }
}

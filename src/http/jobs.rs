//! One job whole, its log, and stopping it.

use std::{sync::Arc, time::Duration};

use axum::{Extension, Json, body::Body, extract::State as From, http::StatusCode};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ApiError, State,
    error::{Done, done},
    extract::{Path, Query, within},
    feed::without_command,
    openapi::Text,
    page::{self, Cursor, Paged},
    snapshot::shown,
    stopped,
    who::Who,
};
use crate::{
    jobs::{
        Stop,
        whole::{self, Folded, JobDetail},
    },
    ray::HttpJobs,
    snapshot::{JobView, Snapshot},
    time::Timestamp,
    training::{Curve, Which},
};

/// Number of lines of a log unless more are asked for.
const TAIL: u32 = 200;
/// Largest number of lines of a log.
const TAIL_MOST: u32 = 2_000;
/// Largest part of a log that is passed on, in bytes; what comes before it is cut off, since an error stands at the end.
const LOG: usize = 1 << 20;
/// Longest time for a log to come from Ray.
const IN_TIME: Duration = Duration::from_secs(30);

/// Job that somebody asked for.
pub(super) struct Found {
    id: String,
    jobs: Vec<JobView>,
    /// Time at which its owner's submission came, as Ray was told, where the ledger knows it.
    submitted: Option<String>,
    snapshot: Arc<Snapshot>,
}

/// Job with this id, or whose attempt has it.
pub(super) async fn find(state: &State, id: &str) -> Result<Found, ApiError> {
    let snapshot = state.snapshot.borrow().clone();
    let shown = snapshot.jobs.iter().find(|job| job.submission_id == id);
    let mut root = shown.and_then(|job| job.resubmission_of.clone()).unwrap_or_else(|| id.to_owned());
    let mut chain = state.jobs.attempts(&root).await.unwrap_or_default();
    if let Some(known) = chain.first().filter(|job| job.root != root) {
        root.clone_from(&known.root);
        let whole = state.jobs.attempts(&root).await.unwrap_or_default();
        chain = if whole.iter().any(|job| job.id == id) { whole } else { chain };
    }
    let submitted = chain.first().map(|job| job.came_at.to_string());
    let attempts = match chain.first() {
        Some(first) => state.jobs.told(&first.id).await.unwrap_or_default(),
        None => Vec::new(),
    };
    let jobs = whole::with_older(&snapshot.jobs, attempts);
    let found = Found { id: id.to_owned(), jobs, submitted, snapshot };
    found.folded()?;
    Ok(found)
}

impl Found {
    /// The job with every attempt at it.
    pub(super) fn folded(&self) -> Result<Folded<'_>, ApiError> {
        whole::fold(&self.jobs).into_iter().find(|job| job.is(&self.id)).ok_or_else(|| {
            let id = crate::text::one_line(&self.id, 128);
            ApiError::new(StatusCode::NOT_FOUND, format!("no job {id:?}; see `labd jobs`"))
        })
    }

    /// Its curve, where there is one.
    pub(super) async fn curve(&self, state: &State, run: Option<String>) -> Result<Option<Curve>, ApiError> {
        self.read(state, run, false).await
    }

    async fn read(&self, state: &State, run: Option<String>, without_points: bool) -> Result<Option<Curve>, ApiError> {
        let which =
            Which { root: self.folded()?.id.to_owned(), submitted: self.submitted.clone(), run, without_points };
        let read = state.training.read(which).await;
        let mut curve = read.map_err(|line| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, line))?;
        if let Some(curve) = &mut curve {
            let services = &self.snapshot.services;
            curve.name_nodes(|node| services.iter().find(|s| s.address == node).map(|s| s.name.as_str()));
        }
        Ok(curve)
    }
}

/// Page of jobs.
#[derive(Debug, JsonSchema, Serialize)]
pub(super) struct Jobs {
    /// Jobs, newest first.
    jobs: Vec<JobView>,
    /// Value of `before` for the next page; absent when this is the last.
    next: Option<String>,
}

/// Jobs of the snapshot, and those that the ledger has beyond them.
pub(super) async fn list(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Query(paged): Query<Paged>,
) -> Result<Json<Jobs>, ApiError> {
    let (before, limit) = paged.read()?;
    let snapshot = shown(&state, &who);
    let older = state.jobs.older(before.clone().map(|cursor| (cursor.at, cursor.id)), limit + 1).await;
    let mut jobs = snapshot.jobs.clone();
    let mut older = older.unwrap_or_default();
    older.retain(|job| snapshot.jobs.iter().all(|shown| shown.submission_id != job.submission_id));
    if who == Who::Nobody {
        older.iter_mut().for_each(without_command);
    }
    jobs.append(&mut older);
    let place = |job: &JobView| Cursor { at: job.submitted_at.unwrap_or_default(), id: job.submission_id.clone() };
    let (jobs, next) = page::of(jobs, place, before.as_ref(), limit);
    Ok(Json(Jobs { jobs, next }))
}

/// One job whole.
pub(super) async fn get(From(state): From<State>, Path(id): Path<String>) -> Result<Json<JobDetail>, ApiError> {
    let found = find(&state, &id).await?;
    // What the job is, is told also when the file of curves cannot be read.
    let curve = found.read(&state, None, true).await.unwrap_or_default();
    let incidents = state.journal.incidents();
    let detail = whole::detail(&found.folded()?, &found.snapshot, &incidents, curve.as_ref(), Timestamp::now());
    let detail = detail.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "a job without attempts"))?;
    Ok(Json(detail))
}

/// Query for a log.
#[derive(Debug, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Number of last lines; 200 when absent.
    #[schemars(range(min = 1, max = TAIL_MOST))]
    tail: Option<u32>,
}

/// The last lines of the log of a job's newest attempt, as Ray has it.
pub(super) async fn logs(
    From(state): From<State>,
    Path(id): Path<String>,
    Query(Wanted { tail }): Query<Wanted>,
) -> Result<Text, ApiError> {
    let lines = within("tail", tail.unwrap_or(TAIL), 1, TAIL_MOST)?;
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    let found = find(&state, &id).await?;
    let newest = found.folded()?.attempts.last().map_or_else(|| id.clone(), |job| job.submission_id.clone());
    let head = state.head.borrow().clone();
    let Some(head) = head else {
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the Ray head is away: try again in a moment"));
    };
    let log = HttpJobs::new(head).log(&newest, lines).await;
    let log = log.map_err(|line| ApiError::new(StatusCode::BAD_GATEWAY, line))?;
    let last = tokio::time::timeout(IN_TIME, last_of(log.take_until(stopped(state.shutdown)))).await;
    let last =
        last.map_err(|_| ApiError::new(StatusCode::GATEWAY_TIMEOUT, "Ray did not send the whole log in time"))?;
    let last = last.map_err(|_| ApiError::new(StatusCode::BAD_GATEWAY, "Ray broke off in the middle of the log"))?;
    Ok(Text(Body::from(last)))
}

/// Last lines of a log that comes in pieces.
async fn last_of<E>(log: impl Stream<Item = Result<Bytes, E>>) -> Result<Vec<u8>, E> {
    let mut log = std::pin::pin!(log);
    let mut last = Last::default();
    while let Some(piece) = log.next().await {
        last.feed(&piece?);
    }
    Ok(last.end())
}

/// Last lines of a log in bounded memory. Of a line there is what a terminal shows of it: what stands after its last carriage
/// return.
#[derive(Debug, Default)]
struct Last {
    kept: Vec<u8>,
    /// Place at which the line begins that has no end yet.
    line: usize,
    /// Whether something before it was cut off.
    cut: bool,
}

impl Last {
    fn feed(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.kept.extend_from_slice(part);
            let ended = part.ends_with(b"\n");
            if ended || part.contains(&b'\r') {
                self.overwrite(ended);
            }
            if self.kept.len() > 2 * LOG {
                self.bound();
            }
        }
    }

    /// Takes away what was written over in the newest line. A carriage return at its end has not written over anything yet.
    fn overwrite(&mut self, ended: bool) {
        let line = &self.kept[self.line..];
        let text = line.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
        let from = line[..text].iter().rposition(|byte| *byte == b'\r').map_or(0, |last| last + 1);
        if ended {
            self.kept.truncate(self.line + text);
            self.kept.push(b'\n');
        }
        self.kept.drain(self.line..self.line + from);
        if ended {
            self.line = self.kept.len();
        }
    }

    fn bound(&mut self) {
        let beyond = self.kept.len().saturating_sub(LOG);
        if beyond > 0 {
            self.kept.drain(..beyond);
            self.line = self.line.saturating_sub(beyond);
            self.cut = true;
        }
    }

    /// What is left, from the beginning of a line where there is one.
    fn end(mut self) -> Vec<u8> {
        self.overwrite(self.kept.ends_with(b"\r"));
        self.bound();
        let begins = self.kept.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        if let Some(begins) = begins.filter(|at| self.cut && *at < self.kept.len()) {
            self.kept.drain(..begins);
        }
        self.kept
    }
}

/// Stops the attempt that runs now, or waits.
pub(super) async fn stop(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
) -> Result<Json<Done>, ApiError> {
    let ending = || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "labd is shutting down");
    let attempts = state.jobs.attempts(&id).await.ok_or_else(ending)?;
    let Some(newest) = attempts.last() else {
        let text = format!("no job {id:?} came through labd's front door; `ray job stop` asks Ray");
        return Err(ApiError::new(StatusCode::NOT_FOUND, text));
    };
    if newest.is_over() {
        return Ok(done(format!("{} has ended already", newest.id)));
    }
    state.asked(&who, None, &format!("stop job {id}"));
    // Ray is told by the ledger, as often as it takes.
    match state.jobs.stop(&id).await.ok_or_else(ending)? {
        Stop::Pass(now) => Ok(done(format!("{now} is being stopped"))),
        Stop::Done => Ok(done(format!("{} is stopped: it had not begun", newest.id))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn last(pieces: &[&[u8]]) -> Vec<u8> {
        let pieces = pieces.iter().map(|piece| Ok::<_, ()>(Bytes::copy_from_slice(piece)));
        last_of(futures_util::stream::iter(pieces)).await.expect("nothing breaks off")
    }

    #[tokio::test]
    async fn of_a_long_log_the_end_is_shown_from_the_beginning_of_a_line() {
        let line = [b"x".repeat(999), b"\n".to_vec()].concat();
        let mut pieces: Vec<&[u8]> = vec![&line; 3_000];
        pieces.push(b"ValueError: x\n");
        let shown = last(&pieces).await;
        assert!(shown.len() <= LOG && shown.len() > LOG - 1_000, "{}", shown.len());
        assert!(shown.starts_with(&line) && shown.ends_with(b"x\nValueError: x\n"));
        let endless = last(&[&b"x".repeat(3 * LOG)]).await;
        assert_eq!(endless.len(), LOG, "a line that has no beginning in there");
    }

    #[tokio::test]
    async fn of_a_progress_bar_the_last_state_is_shown_however_it_comes() {
        for (log, shown) in [
            ("a\n1 %\r2 %\r3 %\nb\n", "a\n3 %\nb\n"),
            ("1 %\r2 %\r", "2 %\n"),
            ("1 %\r2 %", "2 %"),
            ("a\r\n\r\nb\r\r\n", "a\n\nb\n"),
            ("\r1 %\r\n", "1 %\n"),
            ("", ""),
        ] {
            for size in 1..6 {
                let pieces: Vec<&[u8]> = log.as_bytes().chunks(size).collect();
                assert_eq!(String::from_utf8_lossy(&last(&pieces).await), shown, "{log:?} by {size}");
            }
        }
        let bar = "x".repeat(1_000) + "\r";
        let mut pieces = vec![b"begins\n".as_slice()];
        pieces.extend(std::iter::repeat_n(bar.as_bytes(), 5_000));
        assert!(last(&pieces).await.starts_with(b"begins\nx"), "what is written over takes no room");
    }
}

//! Package installations under way, as the nodes report them: `POST /labd/installs`.
//!
//! A job's packages are installed on each node by Ray's agent, which tells nobody; labd's wrapper of it posts here at the
//! start, about every 2 s, and at the end. One task owns the entries, drops those that are not posted any more, and tells
//! what is left through a `watch`. Whatever is posted is shown and nothing else: no decision is made from it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State as From},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde::Deserialize;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    FrontDoor,
    posts::{self, Trust},
};
use crate::{
    config::Bytes,
    journal::{Entry as Record, Journal, Kind},
    snapshot::{InstallPhase, InstallView, InstallsView},
    text::clip,
    time::{Timestamp, human},
};

/// Largest body of a report.
const LARGEST: usize = 16 << 10;
/// Largest number of entries at once: more than any lab has nodes and jobs that begin together.
const MOST: usize = 256;
/// Time after its last report at which an entry is dropped; a node reports every 2 s.
const SILENT: Duration = Duration::from_secs(15);
/// Time for which a failure is shown, since nobody reports after it and a person should find out why.
const FAILED_SHOWN: Duration = Duration::from_mins(5);
/// Largest number of characters of a job's id on a screen.
const JOB_SHOWN: usize = 128;
/// Largest number of characters of a reason on a screen.
const REASON_SHOWN: usize = 300;

/// Handle on the task that keeps the entries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Installs {
    reports: mpsc::Sender<(Report, oneshot::Sender<bool>)>,
}

/// Report of a node, as it is posted.
#[derive(Debug, Clone, Deserialize)]
struct Report {
    node: String,
    #[serde(default)]
    job: Option<String>,
    key: String,
    phase: InstallPhase,
    since_ms: i64,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    packages: u32,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    store_bytes: Option<u64>,
}

/// Starts the task that keeps the entries. It ends with the last [`Installs`].
pub fn spawn(journal: Journal) -> (Installs, watch::Receiver<Arc<InstallsView>>) {
    let (reports, mut heard) = mpsc::channel::<(Report, oneshot::Sender<bool>)>(64);
    let (tell, view) = watch::channel(Arc::new(InstallsView::default()));
    tokio::spawn(async move {
        let mut book = Book::default();
        loop {
            let next = book.next_end();
            let over = async move {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                report = heard.recv() => {
                    let Some((report, reply)) = report else { return };
                    let taken = book.take(report, Instant::now(), Timestamp::now());
                    // Whoever posted may have gone.
                    let _ = reply.send(taken.is_ok());
                    if let Ok(Some(record)) = taken {
                        tracing::info!("{}", record.reason);
                        journal.record(record);
                    }
                }
                () = over => {}
            }
            book.drop_silent(Instant::now());
            let now = book.view();
            tell.send_if_modified(|old| {
                let news = **old != now;
                if news {
                    *old = Arc::new(now);
                }
                news
            });
        }
    });
    (Installs { reports }, view)
}

/// The router for reports, beside the front door's own.
pub fn router(door: FrontDoor, installs: Installs) -> Router {
    of(posts::trust(door), installs)
}

fn of(trust: Trust, installs: Installs) -> Router {
    Router::new().route("/labd/installs", post(report)).with_state((trust, installs))
}

async fn report(From((trust, installs)): From<(Trust, Installs)>, request: Request) -> Response {
    let say = |status: StatusCode, text: &'static str| (status, text).into_response();
    let body = match posts::body(&trust, request, LARGEST, "a report exceeds 16 KiB\n").await {
        Ok(body) => body,
        Err(refusal) => return refusal.into_response(),
    };
    let Some(report) = Report::parse(&body) else {
        return say(
            StatusCode::BAD_REQUEST,
            "not a report: JSON with node, job, key, phase, since_ms, bytes, packages\n",
        );
    };
    let (reply, answer) = oneshot::channel();
    if installs.reports.send((report, reply)).await.is_err() {
        return super::away("labd is shutting down");
    }
    match answer.await {
        Ok(true) => StatusCode::NO_CONTENT.into_response(),
        Ok(false) => say(StatusCode::TOO_MANY_REQUESTS, "256 installations are reported already\n"),
        Err(_) => super::away("labd is shutting down"),
    }
}

impl Report {
    /// Reads a report and makes its texts fit for a screen.
    fn parse(body: &[u8]) -> Option<Self> {
        let mut report: Self = serde_json::from_slice(body).ok()?;
        let word = |text: &str| {
            (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !word(&report.node) || !word(&report.key) {
            return None;
        }
        report.job = report.job.map(|job| shown(&job, JOB_SHOWN)).filter(|job| !job.is_empty());
        report.reason = report.reason.map(|reason| shown(&reason, REASON_SHOWN)).filter(|reason| !reason.is_empty());
        Some(report)
    }
}

/// Text from a container as one line that steers no terminal and hides nothing.
fn shown(text: &str, most: usize) -> String {
    let visible = |c: &char| {
        !matches!(*c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).filter(visible).collect();
    clip(&plain.split_whitespace().collect::<Vec<_>>().join(" "), most)
}

/// Key of an installation: node, job, environment.
type Key = (String, String, String);

struct Kept {
    view: InstallView,
    /// Moment at which it is dropped unless it is reported again.
    until: Instant,
}

/// Error: there is no room for another entry.
#[derive(Debug)]
struct Full;

#[derive(Default)]
struct Book {
    entries: BTreeMap<Key, Kept>,
    store_bytes: Option<u64>,
}

impl Book {
    /// Takes a report. Returns a journal entry when an installation is over by it.
    fn take(&mut self, report: Report, at: Instant, now: Timestamp) -> Result<Option<Record>, Full> {
        let job = report.job.unwrap_or_default();
        let key = (report.node.clone(), job.clone(), report.key);
        if self.entries.len() >= MOST && !self.entries.contains_key(&key) {
            return Err(Full);
        }
        self.store_bytes = report.store_bytes.or(self.store_bytes);
        let was_over = self.entries.get(&key).and_then(|kept| kept.view.ended_at);
        // A clock that is wrong in there must not show an installation from tomorrow.
        let since = Timestamp::told(report.since_ms.clamp(0, now.as_told()));
        let over = matches!(report.phase, InstallPhase::Done | InstallPhase::Failed);
        let view = InstallView {
            node: report.node,
            job,
            phase: report.phase,
            since,
            ended_at: over.then(|| was_over.unwrap_or(now)),
            bytes: report.bytes,
            packages: report.packages,
            reason: report.reason,
        };
        let record = (over && was_over.is_none()).then(|| Record {
            at: now,
            service: Some(view.node.clone()),
            kind: Kind::Job,
            what: if view.phase == InstallPhase::Done { "installed" } else { "not-installed" }.to_owned(),
            reason: in_words(&view, now),
        });
        let stays = if view.phase == InstallPhase::Failed { FAILED_SHOWN } else { SILENT };
        self.entries.insert(key, Kept { view, until: at + stays });
        Ok(record)
    }

    fn next_end(&self) -> Option<Instant> {
        self.entries.values().map(|kept| kept.until).min()
    }

    fn drop_silent(&mut self, at: Instant) {
        self.entries.retain(|_, kept| kept.until > at);
    }

    fn view(&self) -> InstallsView {
        let mut installs: Vec<InstallView> = self.entries.values().map(|kept| kept.view.clone()).collect();
        installs.sort_by(|a, b| (a.since, &a.job, &a.node).cmp(&(b.since, &b.job, &b.node)));
        InstallsView { installs, store_bytes: self.store_bytes }
    }
}

/// An installation in one line.
pub fn in_words(i: &InstallView, now: Timestamp) -> String {
    let job = if i.job.is_empty() { String::new() } else { format!("{}: ", i.job) };
    let packages = match i.packages {
        0 => "packages".to_owned(),
        1 => "1 package".to_owned(),
        n => format!("{n} packages"),
    };
    let took = human(i.ended_at.unwrap_or(now).since(i.since));
    let size = if i.bytes > 0 { format!(", {}", Bytes::new(i.bytes)) } else { String::new() };
    let reason = i.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
    let node = &i.node;
    match i.phase {
        InstallPhase::Resolving => format!("{job}choosing {packages} on {node} for {took}{reason}"),
        InstallPhase::Installing => format!("{job}installing {packages} on {node} for {took}{size}{reason}"),
        InstallPhase::Waiting => {
            format!("{job}{node} waits for {packages} that another node installs, for {took}{size}{reason}")
        }
        InstallPhase::Done => format!("{job}installed {packages} on {node} in {took}{size}"),
        InstallPhase::Failed => format!("{job}{packages} could not be installed on {node}, after {took}{reason}"),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::HeaderMap};
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;

    fn report(phase: &str) -> Value {
        json!({
            "node": "ray-worker-0", "job": "food11", "key": "0a1b", "phase": phase,
            "since_ms": 1_000, "bytes": 386 << 20, "packages": 37, "reason": null,
        })
    }

    fn parse(report: &Value) -> Option<Report> {
        Report::parse(report.to_string().as_bytes())
    }

    fn with(changes: &Value) -> Value {
        let mut all = report("installing");
        for (name, value) in changes.as_object().expect("an object") {
            all[name] = value.clone();
        }
        all
    }

    fn ts(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1_000)
    }

    #[test]
    fn a_report_is_read_and_what_is_no_report_is_not() {
        for (what, changes) in [
            ("a path", json!({"node": "../x"})),
            ("no name", json!({"node": ""})),
            ("a long name", json!({"node": "n".repeat(65)})),
            ("a key with a newline", json!({"key": "a\nb"})),
            ("another phase", json!({"phase": "dancing"})),
            ("a negative size", json!({"bytes": -1})),
            ("a fraction", json!({"packages": 1.5})),
        ] {
            assert!(parse(&with(&changes)).is_none(), "{what}");
        }
        assert!(parse(&json!([])).is_none() && Report::parse(b"{").is_none());
        let extra = parse(&with(&json!({"surprise": 1, "store_bytes": 7}))).expect("fields may be added");
        assert_eq!(extra.store_bytes, Some(7));
    }

    #[test]
    fn what_is_shown_steers_no_terminal_and_hides_nothing() {
        let nasty = with(&json!({"job": "a\u{202e}b\x1b[2J\n\u{200b}c", "reason": "x\r\ny".repeat(500)}));
        let read = parse(&nasty).expect("a report");
        assert_eq!(read.job.as_deref(), Some("ab [2J c"));
        assert!(read.reason.is_some_and(|r| r.chars().count() == REASON_SHOWN && !r.contains(['\r', '\n'])));
        assert_eq!(
            parse(&with(&json!({"job": "é".repeat(500)}))).and_then(|r| r.job).map(|j| j.chars().count()),
            Some(128)
        );
    }

    #[test]
    fn an_entry_ends_some_time_after_its_last_report_and_a_failure_later() {
        let (mut book, began) = (Book::default(), Instant::now());
        let take = |book: &mut Book, phase, s| {
            let at = began + Duration::from_secs(s);
            book.take(parse(&report(phase)).expect("a report"), at, ts(100)).expect("there is room")
        };
        assert!(take(&mut book, "installing", 0).is_none());
        assert!(take(&mut book, "installing", 10).is_none(), "reported again");
        book.drop_silent(began + Duration::from_secs(24));
        assert_eq!(book.view().installs.len(), 1);
        book.drop_silent(began + Duration::from_secs(25));
        assert_eq!(book.view().installs, []);
        let told = take(&mut book, "failed", 30).expect("it is over");
        assert_eq!((told.what.as_str(), told.service.as_deref()), ("not-installed", Some("ray-worker-0")));
        assert!(take(&mut book, "failed", 31).is_none(), "told once");
        book.drop_silent(began + Duration::from_mins(5));
        assert_eq!(book.view().installs.len(), 1, "a person can still read why");
        book.drop_silent(began + Duration::from_secs(331));
        assert_eq!(book.next_end(), None);
    }

    #[test]
    fn there_is_room_for_so_many_and_known_ones_always_have_theirs() {
        let mut book = Book::default();
        let mut take = |n: usize| {
            let one = parse(&with(&json!({"key": format!("k{n}")}))).expect("a report");
            book.take(one, Instant::now(), ts(100)).is_ok()
        };
        assert!((0..MOST).all(&mut take));
        assert!(!take(MOST) && take(0));
    }

    #[tokio::test(start_paused = true)]
    async fn reports_are_taken_from_the_lab_only_and_are_gone_when_nobody_reports_any_more() {
        let (installs, mut view) = spawn(Journal::in_memory());
        let router = of(Arc::new(|headers: &HeaderMap| headers.contains_key("authorization")), installs);
        let post = |body: String, known: bool| {
            let mut request = Request::post("/labd/installs");
            if known {
                request = request.header("authorization", "Bearer x");
            }
            let router = router.clone();
            async move { router.oneshot(request.body(Body::from(body)).expect("valid")).await.expect("infallible").status() }
        };
        let body = report("installing").to_string();
        assert_eq!(post(body.clone(), false).await, StatusCode::UNAUTHORIZED);
        assert_eq!(post(" ".repeat(LARGEST + 1), true).await, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(post("{}".into(), true).await, StatusCode::BAD_REQUEST);
        assert_eq!(view.borrow_and_update().installs, []);
        assert_eq!(post(body, true).await, StatusCode::NO_CONTENT);
        view.changed().await.expect("the task lives");
        assert_eq!(view.borrow_and_update().installs[0].job, "food11");
        let began = Instant::now();
        view.changed().await.expect("the task lives");
        assert_eq!(view.borrow_and_update().installs, []);
        assert_eq!(began.elapsed().as_secs(), SILENT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_that_never_ends_is_given_up() {
        let router = of(Arc::new(|_: &HeaderMap| true), spawn(Journal::in_memory()).0);
        let body = Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
        let answer = router.oneshot(Request::post("/labd/installs").body(body).expect("valid"));
        let answer = tokio::time::timeout(Duration::from_secs(20), answer).await.expect("given up");
        assert_eq!(answer.expect("infallible").status(), StatusCode::REQUEST_TIMEOUT);
    }

    #[test]
    fn it_reads_as_a_person_would_say_it() {
        let mut book = Book::default();
        let mut said = |changes: Value| {
            book.entries.clear();
            book.take(parse(&with(&changes)).expect("a report"), Instant::now(), ts(43)).expect("there is room");
            in_words(&book.view().installs[0], ts(43))
        };
        assert_eq!(said(json!({})), "food11: installing 37 packages on ray-worker-0 for 42 s, 386 MiB");
        assert_eq!(
            said(json!({"phase": "resolving", "packages": 0, "job": null})),
            "choosing packages on ray-worker-0 for 42 s"
        );
        assert_eq!(
            said(json!({"phase": "waiting", "bytes": 0})),
            "food11: ray-worker-0 waits for 37 packages that another node installs, for 42 s"
        );
        assert_eq!(said(json!({"phase": "done"})), "food11: installed 37 packages on ray-worker-0 in 42 s, 386 MiB");
        assert_eq!(
            said(json!({"phase": "failed", "reason": "no matching distribution for torchh"})),
            "food11: 37 packages could not be installed on ray-worker-0, after 42 s: no matching distribution for torchh"
        );
        assert_eq!(
            said(json!({"since_ms": 99_000_000_000_000_i64, "bytes": 0})),
            "food11: installing 37 packages on ray-worker-0 for 0 ms"
        );
    }
}

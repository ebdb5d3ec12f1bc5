//! Checkpoints: what the S3 store keeps of each training run. It is read, never changed.
//!
//! * `store`: requests to it.
//! * [`listing`]: from objects to runs and checkpoints. Pure.
//! * [`view`]: what Ray reports of runs and what the store has of them, as one. Pure.
//!
//! One task lists the bucket: every 10 s while a run trains or a job runs that leaves something there, every 60 s
//! otherwise, and at once on request. It reads nothing but names, sizes and Ray's own small record of each run. A store
//! that is away leaves what was known, with its time; nobody waits for it.

pub mod listing;
mod store;
pub mod view;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::{Notify, watch};
use url::Url;

use crate::{
    ray::{RayJob, RayView},
    secret::Secret,
    snapshot::JobStatus,
    time::Timestamp,
};
use listing::{Listing, Record, StoredRun};
use store::S3;

/// Time between two listings while checkpoints are written.
const BUSY: Duration = Duration::from_secs(10);
/// Time between two listings otherwise.
const CALM: Duration = Duration::from_mins(1);
/// Time until the next listing of a store that was away: a MinIO that starts answers within seconds.
const AWAY: Duration = Duration::from_secs(5);
/// Inverse of the largest part of the time that listing takes, however large the bucket.
const SHARE: u32 = 20;
/// Largest number of pages of 1,000 objects that one listing reads.
const PAGES: usize = 500;
/// Largest number of records that one listing reads; the others in the next one.
const RECORDS: usize = 50;

/// Store in which checkpoints are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Address, as labd reaches it.
    pub endpoint: Url,
    /// The bucket.
    pub bucket: String,
    /// Region name.
    pub region: String,
    /// Access key.
    pub access_key: Secret,
    /// Secret key.
    pub secret_key: Secret,
}

/// View of the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreView {
    /// Bucket that was listed last.
    pub bucket: String,
    /// Time at which it was listed last; what is below is of that time.
    pub looked_at: Option<Timestamp>,
    /// Reason why it could not be listed since, in one line.
    pub trouble: Option<String>,
    /// Runs by prefix.
    pub runs: Vec<StoredRun>,
    /// Size of everything in the bucket, in bytes.
    pub total_bytes: u64,
    /// Whether all was listed; false when the bucket has more than 500,000 objects: those that come last by name were
    /// left out.
    pub complete: bool,
}

/// Handle on the task; cheap to clone. The task ends with the last handle.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    set_endpoint: Arc<watch::Sender<Option<Store>>>,
    view: watch::Receiver<Arc<StoreView>>,
    refresh_now: Arc<Notify>,
}

impl Checkpoints {
    /// Starts the task. Must be called inside a tokio runtime.
    pub fn spawn(ray: watch::Receiver<Arc<RayView>>) -> Self {
        let (set_endpoint, heard) = watch::channel(None);
        let (tell, view) = watch::channel(Arc::new(StoreView::default()));
        let refresh_now = Arc::new(Notify::new());
        tokio::spawn(run(heard, ray, tell, refresh_now.clone()));
        Self { set_endpoint: Arc::new(set_endpoint), view, refresh_now }
    }

    /// Handle on no task: nothing is ever listed.
    #[cfg(test)]
    pub(crate) fn simulated() -> Self {
        let (set_endpoint, view) = (watch::channel(None).0, watch::channel(Arc::new(StoreView::default())).1);
        Self { set_endpoint: Arc::new(set_endpoint), view, refresh_now: Arc::default() }
    }

    /// Sets where the store is now; `None` while it does not run. What was known is kept.
    pub fn set_endpoint(&self, store: Option<Store>) {
        self.set_endpoint.send_if_modified(|old| {
            let changed = *old != store;
            *old = store;
            changed
        });
    }

    /// View of the store, whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<StoreView>> {
        self.view.clone()
    }

    /// Lists at once. To be called when a worker died: the newest checkpoint of that moment is the one a run resumes
    /// from.
    pub fn refresh_now(&self) {
        self.refresh_now.notify_one();
    }
}

async fn run(
    mut set_endpoint: watch::Receiver<Option<Store>>,
    mut ray: watch::Receiver<Arc<RayView>>,
    tell: watch::Sender<Arc<StoreView>>,
    refresh_now: Arc<Notify>,
) {
    // Ray's records as read before, with their ETags: a record is read again when it changed.
    let mut records: BTreeMap<String, (String, Record)> = BTreeMap::new();
    let mut s3 = None;
    let mut pause = BUSY;
    loop {
        if set_endpoint.has_changed().unwrap_or(true) || s3.is_none() {
            s3 = set_endpoint.borrow_and_update().clone().map(|store| (S3::new(&store), store.bucket));
            records.clear();
        }
        let Some((way, bucket)) = &s3 else {
            if set_endpoint.changed().await.is_err() {
                return;
            }
            set_endpoint.mark_changed();
            continue;
        };
        let begun = tokio::time::Instant::now();
        let at = Timestamp::now();
        let seen = match way {
            Ok(s3) => look(s3, &mut records).await,
            Err(reason) => Err(reason.clone()),
        };
        let took = begun.elapsed();
        let stage = stage(&ray.borrow_and_update());
        let looked = match &seen {
            Ok(_) if stage.runs + stage.jobs == 0 => Looked::NothingTrains,
            Ok(seen) if seen.runs != tell.borrow().runs => Looked::New,
            Ok(_) => Looked::Same,
            Err(_) if way.is_ok() => Looked::Away,
            Err(_) => Looked::NoWay,
        };
        pause = rest(&looked, pause, took);
        tell.send_modify(|view| *view = Arc::new(next(view, seen, bucket, at)));
        if tell.borrow().runs.iter().any(|run| run.carried_over) {
            pause = pause.min(AWAY);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = refresh_now.notified() => {}
            changed = set_endpoint.changed() => {
                if changed.is_err() {
                    return;
                }
                set_endpoint.mark_changed();
            }
            // An error says that Ray's watcher ended, and with it the daemon.
            Ok(_) = ray.wait_for(|view| self::stage(view) != stage) => pause = BUSY / 2,
        }
    }
}

/// Result of a listing.
enum Looked {
    /// A run trains or a job runs, and left something new.
    New,
    /// A run trains or a job runs, and left nothing new.
    Same,
    /// No run trains, no job runs.
    NothingTrains,
    /// No answer of the store, or not with what was asked for.
    Away,
    /// A store that labd cannot speak to.
    NoWay,
}

/// Time until the next listing, after one that took this long and a pause of that length before it. Pure.
fn rest(looked: &Looked, before: Duration, took: Duration) -> Duration {
    let pause = match looked {
        Looked::New => BUSY,
        Looked::Same => (before * 2).clamp(BUSY, CALM),
        Looked::NothingTrains => CALM,
        // Time spent waiting is no work for the store: one that hung for 10 s is not left alone for 200 s.
        Looked::Away => return AWAY,
        Looked::NoWay => return CALM,
    };
    pause.max(took * SHARE)
}

/// Stage of what is under way. When it changes, a run began, ended or resumes, and the checkpoint of that moment
/// matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Stage {
    /// Number of runs.
    runs: usize,
    /// Number of the worker groups they had.
    attempts: usize,
    /// Number of jobs: Ray does not list a Tune sweep as a run.
    jobs: usize,
}

fn stage(ray: &RayView) -> Stage {
    let running = |job: &&RayJob| job.status == JobStatus::Running;
    let jobs = ray.jobs.as_ref().map_or(0, |jobs| jobs.jobs.iter().filter(running).count());
    let active = ray.runs.iter().filter(|run| run.status.is_active());
    active.fold(Stage { jobs, ..Stage::default() }, |stage, run| Stage {
        runs: stage.runs + 1,
        attempts: stage.attempts + run.attempts.len(),
        ..stage
    })
}

/// Contents of one listing.
struct Look {
    runs: Vec<StoredRun>,
    total_bytes: u64,
    complete: bool,
}

async fn look(s3: &S3, records: &mut BTreeMap<String, (String, Record)>) -> Result<Look, String> {
    let mut listing = Listing::default();
    let mut next = None;
    let mut complete = false;
    for _ in 0..PAGES {
        let page = s3.page(next.take()).await?;
        page.objects.into_iter().for_each(|object| listing.add(object));
        next = page.next;
        if next.is_none() {
            complete = true;
            break;
        }
    }
    records.retain(|prefix, (etag, _)| listing.records.get(prefix) == Some(etag));
    let new: Vec<(&String, &String)> = listing.records.iter().filter(|(p, _)| !records.contains_key(*p)).collect();
    for (prefix, etag) in new.into_iter().take(RECORDS) {
        if let Some(record) = s3.record(prefix).await {
            records.insert(prefix.clone(), (etag.clone(), record));
        }
    }
    let known = records.iter().map(|(prefix, (_, record))| (prefix.clone(), record.clone())).collect();
    Ok(Look { runs: listing.runs(&known), total_bytes: listing.total_bytes, complete })
}

/// View after a listing. Pure.
fn next(before: &StoreView, seen: Result<Look, String>, bucket: &str, at: Timestamp) -> StoreView {
    match seen {
        Ok(mut look) => {
            if before.bucket == bucket {
                listing::carry_over(&before.runs, &mut look.runs);
                listing::remember(&before.runs, &mut look.runs);
            }
            StoreView {
                bucket: bucket.to_owned(),
                looked_at: Some(at),
                trouble: None,
                runs: look.runs,
                total_bytes: look.total_bytes,
                complete: look.complete,
            }
        }
        Err(reason) if before.bucket == bucket => StoreView { trouble: Some(reason), ..before.clone() },
        Err(reason) => StoreView { trouble: Some(reason), bucket: bucket.to_owned(), ..StoreView::default() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ray::Ray;

    #[test]
    fn a_store_that_hung_is_asked_again_soon_and_a_large_one_is_spared() {
        let long = Duration::from_secs(10);
        assert_eq!(rest(&Looked::Away, BUSY, long), AWAY);
        assert_eq!(rest(&Looked::New, AWAY, long), long * SHARE);
        assert_eq!(rest(&Looked::New, CALM, Duration::ZERO), BUSY);
        assert_eq!(rest(&Looked::Same, BUSY, Duration::ZERO), BUSY * 2);
        assert_eq!(rest(&Looked::Same, CALM, Duration::ZERO), CALM);
    }

    /// Store that answers every question with `answer`, and the requests that reach it.
    async fn store(answer: &'static str) -> (Store, tokio::sync::mpsc::UnboundedReceiver<String>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("a URL");
        let (asked, questions) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let mut buffer = vec![0; 8_192];
                let n = connection.read(&mut buffer).await.unwrap_or(0);
                let _ = asked.send(String::from_utf8_lossy(&buffer[..n]).into_owned());
                let _ = connection.write_all(answer.as_bytes()).await;
            }
        });
        let store = Store {
            endpoint,
            bucket: "ray".to_owned(),
            region: "us-east-1".to_owned(),
            access_key: Secret::new("acc3ss"),
            secret_key: Secret::new("s3cret"),
        };
        (store, questions)
    }

    async fn until(checkpoints: &Checkpoints, what: impl Fn(&StoreView) -> bool) -> Arc<StoreView> {
        let mut view = checkpoints.watch();
        let wait = view.wait_for(|view| what(view));
        let found = tokio::time::timeout(Duration::from_secs(20), wait).await.expect("in time");
        found.expect("the task runs").clone()
    }

    const LIST: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<?xml version=\"1.0\"?>\
        <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>ray</Name><IsTruncated>false</IsTruncated>\
        <EncodingType>url</EncodingType><Contents><Key>my+run/checkpoint_000001/a%2Bb.pt</Key>\
        <LastModified>2026-11-24T23:09:06.328Z</LastModified><ETag>&#34;e&#34;</ETag><Size>64</Size></Contents>\
        </ListBucketResult>";

    #[tokio::test]
    async fn a_store_that_goes_away_leaves_what_was_known() {
        let checkpoints = Checkpoints::spawn(Ray::spawn().watch());
        let (here, mut questions) = store(LIST).await;
        checkpoints.set_endpoint(Some(here.clone()));
        let seen = until(&checkpoints, |view| view.looked_at.is_some()).await;
        assert_eq!((seen.runs[0].prefix.as_str(), seen.runs[0].count, seen.total_bytes), ("my run", 1, 64));
        let question = questions.recv().await.expect("it was asked");
        assert!(question.starts_with("GET /ray/?") && question.contains("X-Amz-Signature="), "{question}");
        assert!(!question.contains("s3cret"), "{question}");

        let (refusing, _) = store("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        checkpoints.set_endpoint(Some(Store { bucket: "ray".to_owned(), ..refusing }));
        let away = until(&checkpoints, |view| view.trouble.is_some()).await;
        assert_eq!((away.looked_at, &away.runs), (seen.looked_at, &seen.runs));
        assert!(away.trouble.as_ref().is_some_and(|t| t.contains("credentials")), "{away:?}");
        assert!(!format!("{away:?}{here:?}").contains("s3cret"));

        // Back, and looked at without waiting for the next turn.
        checkpoints.set_endpoint(Some(here));
        until(&checkpoints, |view| view.trouble.is_none()).await;
        questions.recv().await.expect("it was asked again");
    }

    #[tokio::test]
    async fn what_labd_cannot_look_at_is_said() {
        for (answer, https, says) in [
            ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>hello</html>", false, "s3.endpoint"),
            ("nonsense", false, "does not answer"),
            (LIST, true, "TLS"),
        ] {
            let (mut store, _) = store(answer).await;
            if https {
                store.endpoint.set_scheme("https").expect("a scheme");
            }
            let checkpoints = Checkpoints::spawn(Ray::spawn().watch());
            checkpoints.set_endpoint(Some(store));
            let view = until(&checkpoints, |view| view.trouble.is_some()).await;
            assert!(view.trouble.as_ref().is_some_and(|t| t.contains(says)), "{view:?}");
            assert_eq!(view.looked_at, None);
        }
    }
}

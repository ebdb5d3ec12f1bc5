//! What the S3 store keeps of each training run: looked at, never changed.
//!
//! * `store`: the questions put to it.
//! * [`listing`]: from objects to runs and checkpoints. Pure.
//! * [`view`]: what Ray says of runs and what the store has of them, as one. Pure.
//!
//! One task lists the bucket: every 10 s while a run trains and leaves something there, every 60 s otherwise, and at once
//! when it is poked. It reads nothing but names, sizes and Ray's own small record of each run. A store that is away leaves
//! what was known, with its time; nobody waits for it.

pub mod listing;
mod store;
pub mod view;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::{Notify, watch};
use url::Url;

use crate::{ray::RayView, secret::Secret, time::Timestamp};
use listing::{Listing, Record, StoredRun};
use store::S3;

/// Between two looks while checkpoints are written.
const BUSY: Duration = Duration::from_secs(10);
/// Between two looks otherwise.
const CALM: Duration = Duration::from_mins(1);
/// After a look at a store that was away: a MinIO that starts answers within seconds.
const AWAY: Duration = Duration::from_secs(5);
/// A look takes at most this part of the time, however large the bucket.
const SHARE: u32 = 20;
/// Pages of 1,000 objects that one look reads at most.
const PAGES: usize = 500;
/// Records that one look reads at most; the others in the next look.
const RECORDS: usize = 50;

/// Where checkpoints are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Its address, as labd reaches it.
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

/// What is known of the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreView {
    /// The bucket that was looked at last.
    pub bucket: String,
    /// When it was looked at last; what is below is of that time.
    pub looked_at: Option<Timestamp>,
    /// Why it could not be looked at since, in one line.
    pub trouble: Option<String>,
    /// Runs by prefix.
    pub runs: Vec<StoredRun>,
    /// Everything in the bucket, in bytes.
    pub total_bytes: u64,
    /// False when the bucket has more than 500,000 objects: those that come last by name were not looked at.
    pub complete: bool,
}

/// Handle on the task; cheap to clone. The task ends with the last handle.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    aim: Arc<watch::Sender<Option<Store>>>,
    view: watch::Receiver<Arc<StoreView>>,
    poke: Arc<Notify>,
}

impl Checkpoints {
    /// Starts the task. Must be called inside a tokio runtime.
    pub fn spawn(ray: watch::Receiver<Arc<RayView>>) -> Self {
        let (aim, heard) = watch::channel(None);
        let (tell, view) = watch::channel(Arc::new(StoreView::default()));
        let poke = Arc::new(Notify::new());
        tokio::spawn(run(heard, ray, tell, poke.clone()));
        Self { aim: Arc::new(aim), view, poke }
    }

    /// Says where the store is now; `None` while it does not run. What was known is kept.
    pub fn aim(&self, store: Option<Store>) {
        self.aim.send_if_modified(|old| {
            let changed = *old != store;
            *old = store;
            changed
        });
    }

    /// What is known, whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<StoreView>> {
        self.view.clone()
    }

    /// Looks at once. To be called when a worker died: the newest checkpoint of that moment is the one a run resumes from.
    pub fn poke(&self) {
        self.poke.notify_one();
    }
}

async fn run(
    mut aim: watch::Receiver<Option<Store>>,
    mut ray: watch::Receiver<Arc<RayView>>,
    tell: watch::Sender<Arc<StoreView>>,
    poke: Arc<Notify>,
) {
    // Ray's records as read before, with their ETags: a record is read again when it changed.
    let mut records: BTreeMap<String, (String, Record)> = BTreeMap::new();
    let mut s3 = None;
    let mut pause = BUSY;
    loop {
        if aim.has_changed().unwrap_or(true) || s3.is_none() {
            s3 = aim.borrow_and_update().clone().map(|store| (S3::new(&store), store.bucket));
            records.clear();
        }
        let Some((way, bucket)) = &s3 else {
            if aim.changed().await.is_err() {
                return;
            }
            aim.mark_changed();
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
        pause = match &seen {
            Ok(_) if stage.0 == 0 => CALM,
            Ok(seen) if seen.runs != tell.borrow().runs => BUSY,
            Ok(_) => (pause * 2).clamp(BUSY, CALM),
            Err(_) if way.is_ok() => AWAY,
            Err(_) => CALM,
        };
        pause = pause.max(took * SHARE);
        tell.send_modify(|view| *view = Arc::new(next(view, seen, bucket, at)));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = poke.notified() => {}
            changed = aim.changed() => {
                if changed.is_err() {
                    return;
                }
                aim.mark_changed();
            }
            // An error says that Ray's watcher ended, and with it the daemon.
            Ok(_) = ray.wait_for(|view| self::stage(view) != stage) => pause = BUSY / 2,
        }
    }
}

/// How many runs are under way, and how many worker groups they had. When it changes, a run began, ended or resumes, and
/// the checkpoint of that moment matters.
fn stage(ray: &RayView) -> (usize, usize) {
    let active = ray.runs.iter().filter(|run| run.status.is_active());
    active.fold((0, 0), |(runs, attempts), run| (runs + 1, attempts + run.attempts.len()))
}

/// What one look brought.
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

/// What is known after a look. Pure.
fn next(before: &StoreView, seen: Result<Look, String>, bucket: &str, at: Timestamp) -> StoreView {
    match seen {
        Ok(mut look) => {
            if before.bucket == bucket {
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

//! Images: built from the embedded folder `images/` through the engine, or pulled.
//!
//! * `progress`: progress of builds and pulls in words. Pure.
//! * `make`: one build, pull or bootstrap; `bootstrap`: the base image where no registry answers.
//!
//! What an image is made of, and the reference that follows, is in [`crate::plan::images`].
//!
//! One task owns what is under way. It receives requests ([`Images::want`] and the like never block) and publishes every image's
//! state through one `watch` channel. Images are made side by side; only the base, which all builds share, is made once.

mod bootstrap;
#[cfg(test)]
mod live;
mod make;
mod progress;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use make::{Failure, Log, Present, Reporter};

use super::docker::DockerEngine;
use crate::{
    config::Build,
    spec::{ImageName, ImageSource, ImageSpec},
    time::Timestamp,
};

/// Age at which the state of a present image is checked again when the image is wanted.
const LOOK_AGAIN: Duration = Duration::from_mins(1);
/// Delay until an image is tried again after the engine went away.
const ENGINE_GONE: Duration = Duration::from_secs(5);

/// State of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum ImageState {
    /// Not checked yet.
    Unknown,
    /// The engine does not have it, and nothing is being done about it.
    Missing,
    /// Is being built or pulled.
    Preparing {
        /// Progress, such as `step 4/12: RUN pip install …` or `pulling 120/400 MB`.
        detail: String,
        /// Time since which it has been prepared.
        since: Timestamp,
    },
    /// The engine has it.
    Present {
        /// Id that the engine gave it.
        id: String,
        /// Size in bytes, shared layers included.
        size_bytes: u64,
        /// Time at which it was built, by whoever built it.
        built_at: Timestamp,
    },
    /// Cannot be had now.
    Unavailable {
        /// Reason, in one line.
        reason: String,
        /// Time at which it is tried again, as long as it is wanted.
        retry_at: Timestamp,
    },
}

/// Row of `labd images list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageRow {
    /// Name of the image.
    pub name: ImageName,
    /// Its reference.
    pub reference: String,
    /// True when it is built here, false when it is pulled.
    pub built: bool,
    /// Its state; size and time of building are in [`ImageState::Present`].
    #[serde(flatten)]
    pub state: ImageState,
}

/// Handle on the images' task; cheap to clone. The task ends, and gives up what is under way, with the last handle.
#[derive(Debug, Clone)]
pub struct Images {
    tx: mpsc::UnboundedSender<Request>,
    states: watch::Receiver<BTreeMap<ImageName, ImageState>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    specs: Mutex<BTreeMap<ImageName, ImageSpec>>,
    logs: Mutex<BTreeMap<ImageName, Log>>,
}

#[derive(Debug)]
enum Request {
    Want(ImageName),
    Force(ImageName),
    MarkMissing(ImageName),
    Update(Vec<ImageSpec>, Box<Build>),
}

impl Images {
    /// Starts the task and checks every image once. Must be called inside a tokio runtime.
    pub fn spawn(engine: DockerEngine, specs: Vec<ImageSpec>, settings: Build) -> Self {
        let (tx, heard) = mpsc::unbounded_channel();
        let (tell, states) = watch::channel(BTreeMap::new());
        let shared = Arc::new(Shared::default());
        let mut task = Task {
            engine,
            settings,
            shared: shared.clone(),
            tell: Arc::new(tell),
            entries: BTreeMap::new(),
            jobs: JoinSet::new(),
            base: Arc::default(),
            generation: 0,
        };
        task.update(specs, None);
        tokio::spawn(task.run(heard));
        Self { tx, states, shared }
    }

    /// Images with the states they are told, for simulated labs.
    #[cfg(test)]
    pub(crate) fn simulated(states: watch::Receiver<BTreeMap<ImageName, ImageState>>) -> Self {
        Self { tx: mpsc::unbounded_channel().0, states, shared: Arc::default() }
    }

    /// Asks for an image to be there, now and until the next [`Self::update`] that drops it. Made or pulled when
    /// missing, tried again by itself when that fails; a present one is checked again at most every 60 s. Never blocks.
    pub fn want(&self, name: ImageName) {
        self.send(Request::Want(name));
    }

    /// Makes an image now, by hand: rebuilds a present one (without the layer cache, or pulls it again), and tries a
    /// failed one at once. Does nothing while it is being made. A present image that could not be rebuilt shows the
    /// failure for 5 s and is then present again.
    pub fn force(&self, name: ImageName) {
        self.send(Request::Force(name));
    }

    /// Takes note that the engine turned out not to have an image; it is made again when it is wanted.
    pub fn mark_missing(&self, name: ImageName) {
        self.send(Request::MarkMissing(name));
    }

    /// Replaces specs and settings, as after a reload. Unchanged images are left alone, also while they are being made;
    /// what failed is tried again at once.
    pub fn update(&self, specs: Vec<ImageSpec>, settings: Build) {
        self.send(Request::Update(specs, Box::new(settings)));
    }

    /// States of all images.
    pub fn watch(&self) -> watch::Receiver<BTreeMap<ImageName, ImageState>> {
        self.states.clone()
    }

    /// Rows of all images with reference and state, in the order of [`ImageName::ALL`].
    pub fn list(&self) -> Vec<ImageRow> {
        let states = self.states.borrow();
        lock(&self.shared.specs)
            .values()
            .map(|spec| ImageRow {
                name: spec.name,
                reference: spec.reference.clone(),
                built: matches!(spec.source, ImageSource::Build { .. }),
                state: states.get(&spec.name).cloned().unwrap_or(ImageState::Unknown),
            })
            .collect()
    }

    /// Output of the last build or pull of an image, oldest line first, at most 500 lines.
    pub fn log(&self, name: ImageName) -> Vec<String> {
        lock(&self.shared.logs).get(&name).map(Log::lines).unwrap_or_default()
    }

    fn send(&self, wish: Request) {
        // The task lives as long as a handle does; when the runtime goes down nobody wants images any more.
        let _ = self.tx.send(wish);
    }
}

struct Task {
    engine: DockerEngine,
    settings: Build,
    shared: Arc<Shared>,
    tell: Arc<watch::Sender<BTreeMap<ImageName, ImageState>>>,
    entries: BTreeMap<ImageName, Entry>,
    jobs: JoinSet<(ImageName, u64, Job, Outcome)>,
    base: Arc<tokio::sync::Mutex<()>>,
    /// Number of the newest job, so that a late message of an abandoned one is not taken for the present one's.
    generation: u64,
}

/// Memory of the task about one image.
struct Entry {
    spec: ImageSpec,
    wanted: bool,
    job: Option<(u64, AbortHandle)>,
    failures: u32,
    looked: Option<Instant>,
    retry: Option<Instant>,
}

/// Kind of job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    /// Only check.
    Look,
    /// Make it when it is missing.
    Ensure,
    /// Rebuild it.
    Force,
}

enum Outcome {
    Present(Present),
    Missing,
    Failed(Failure),
}

impl Task {
    async fn run(mut self, mut heard: mpsc::UnboundedReceiver<Request>) {
        loop {
            let retry = self.entries.values().filter(|e| e.job.is_none()).filter_map(|e| e.retry).min();
            tokio::select! {
                wish = heard.recv() => match wish {
                    None => return,
                    Some(wish) => self.hear(wish),
                },
                Some(done) = self.jobs.join_next() => {
                    // An abandoned job is no news, and a panic is on stderr already; its image is checked again when wanted.
                    if let Ok((name, generation, what, outcome)) = done {
                        self.done(name, generation, what, outcome);
                    }
                }
                () = tokio::time::sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {
                    let now = Instant::now();
                    let due = |e: &Entry| e.job.is_none() && e.retry.is_some_and(|at| at <= now);
                    let due: Vec<_> = self.entries.iter().filter(|(_, e)| due(e)).map(|(n, e)| (*n, e.wanted)).collect();
                    for (name, wanted) in due {
                        // Nobody wants it: it was tried by hand, and what there is of it is all to find out.
                        self.start(name, if wanted { Job::Ensure } else { Job::Look });
                    }
                }
            }
        }
    }

    fn hear(&mut self, wish: Request) {
        match wish {
            Request::Want(name) => {
                let state = self.state(name);
                let Some(entry) = self.entries.get_mut(&name) else { return };
                entry.wanted = true;
                let fresh = entry.looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN);
                let idle = match state {
                    ImageState::Present { .. } => !fresh,
                    // The timer in `run` has it.
                    ImageState::Unavailable { .. } => entry.retry.is_none(),
                    ImageState::Unknown | ImageState::Missing | ImageState::Preparing { .. } => true,
                };
                if idle && entry.job.is_none() {
                    self.start(name, Job::Ensure);
                }
            }
            Request::Force(name) => {
                let present = matches!(self.state(name), ImageState::Present { .. });
                let Some(entry) = self.entries.get_mut(&name) else { return };
                if entry.job.is_some() && matches!(self.state(name), ImageState::Preparing { .. }) {
                    return;
                }
                if let Some((_, job)) = self.entries.get_mut(&name).and_then(|e| e.job.take()) {
                    job.abort();
                }
                if let Some(entry) = self.entries.get_mut(&name) {
                    entry.failures = 0;
                }
                self.start(name, if present { Job::Force } else { Job::Ensure });
            }
            Request::MarkMissing(name) => {
                let Some(entry) = self.entries.get_mut(&name) else { return };
                entry.looked = None;
                let (busy, wanted) = (entry.job.is_some(), entry.wanted);
                if !busy && matches!(self.state(name), ImageState::Present { .. }) {
                    self.tell(name, ImageState::Missing);
                    if wanted {
                        self.start(name, Job::Ensure);
                    }
                }
            }
            Request::Update(specs, settings) => self.update(specs, Some(*settings)),
        }
    }

    fn update(&mut self, specs: Vec<ImageSpec>, settings: Option<Build>) {
        if let Some(settings) = settings {
            self.settings = settings;
        }
        let mut before = std::mem::take(&mut self.entries);
        *lock(&self.shared.specs) = specs.iter().map(|s| (s.name, s.clone())).collect();
        let mut starts = Vec::new();
        for spec in specs {
            let name = spec.name;
            let entry = match before.remove(&name) {
                Some(mut entry) if entry.spec == spec => {
                    entry.failures = 0;
                    if entry.retry.take().is_some() && entry.wanted && entry.job.is_none() {
                        starts.push((name, Job::Ensure));
                    }
                    entry
                }
                old => {
                    let wanted = old.as_ref().is_some_and(|e| e.wanted);
                    if let Some((_, job)) = old.and_then(|e| e.job) {
                        job.abort();
                    }
                    self.tell(name, ImageState::Unknown);
                    starts.push((name, if wanted { Job::Ensure } else { Job::Look }));
                    Entry { spec, wanted, job: None, failures: 0, looked: None, retry: None }
                }
            };
            self.entries.insert(name, entry);
        }
        for (name, entry) in before {
            if let Some((_, job)) = entry.job {
                job.abort();
            }
            self.tell.send_modify(|states| {
                states.remove(&name);
            });
        }
        for (name, job) in starts {
            self.start(name, job);
        }
    }

    fn start(&mut self, name: ImageName, what: Job) {
        let Some(entry) = self.entries.get_mut(&name) else { return };
        self.generation += 1;
        let generation = self.generation;
        entry.retry = None;
        let log = lock(&self.shared.logs).entry(name).or_default().clone();
        let (engine, spec, settings, base) =
            (self.engine.clone(), entry.spec.clone(), self.settings.clone(), self.base.clone());
        let (tell, since) = (self.tell.clone(), Timestamp::now());
        let job = async move {
            let work = async {
                let found = make::inspect(&engine, &spec.reference).await?;
                match (what, found) {
                    (Job::Look | Job::Ensure, Some(present)) => return Ok(Outcome::Present(present)),
                    (Job::Look, None) => return Ok(Outcome::Missing),
                    (Job::Ensure, None) | (Job::Force, _) => {}
                }
                log.clear();
                let said = move |detail: String| {
                    tell.send_modify(|states| {
                        states.insert(name, ImageState::Preparing { detail, since });
                    });
                };
                let report = Reporter::new(log, said);
                make::make(&engine, &spec, &settings, &base, what == Job::Force, report).await.map(Outcome::Present)
            };
            let outcome = work.await.unwrap_or_else(Outcome::Failed);
            (name, generation, what, outcome)
        };
        entry.job = Some((generation, self.jobs.spawn(job)));
    }

    fn done(&mut self, name: ImageName, generation: u64, what: Job, outcome: Outcome) {
        let Some(entry) = self.entries.get_mut(&name) else { return };
        if entry.job.as_ref().is_none_or(|(g, _)| *g != generation) {
            return;
        }
        entry.job = None;
        let state = match outcome {
            Outcome::Present(p) => {
                entry.failures = 0;
                entry.looked = Some(Instant::now());
                ImageState::Present { id: p.id, size_bytes: p.size_bytes, built_at: p.built_at }
            }
            Outcome::Missing => ImageState::Missing,
            Outcome::Failed(failure) => {
                let (reason, delay) = match failure {
                    Failure::Engine(reason) => (reason, ENGINE_GONE),
                    Failure::Image(reason) => {
                        entry.failures += 1;
                        tracing::warn!(image = name.as_str(), "{reason}");
                        // A failed remake usually leaves the old image: look soon.
                        let delay = if what == Job::Force { ENGINE_GONE } else { retry_delay(entry.failures) };
                        (reason, delay)
                    }
                };
                entry.retry = Some(Instant::now() + delay);
                ImageState::Unavailable { reason, retry_at: Timestamp::now().plus(delay) }
            }
        };
        let wanted = entry.wanted;
        let missing = state == ImageState::Missing;
        self.tell(name, state);
        // It was wanted while it was only looked at.
        if wanted && missing {
            self.start(name, Job::Ensure);
        }
    }

    fn state(&self, name: ImageName) -> ImageState {
        self.tell.borrow().get(&name).cloned().unwrap_or(ImageState::Unknown)
    }

    fn tell(&self, name: ImageName, state: ImageState) {
        self.tell.send_if_modified(|states| {
            let changed = states.get(&name) != Some(&state);
            states.insert(name, state);
            changed
        });
    }
}

/// Delay after the `failures`-th failure in a row until an image is tried again: 1 min doubling to 10. A registry or a
/// mirror may be back any time, and what else makes a build fail rarely passes; `labd images build` and `labd reload`
/// try at once.
fn retry_delay(failures: u32) -> Duration {
    Duration::from_mins(1_u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX).clamp(1, 10))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing that is held under these locks can panic half way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_grow_and_stay_bounded() {
        let minutes = [1, 2, 3, 4, 5, 6, 64, u32::MAX].map(|n| retry_delay(n).as_secs() / 60);
        assert_eq!(minutes, [1, 2, 4, 8, 10, 10, 10, 10]);
    }

    #[tokio::test]
    async fn without_an_engine_an_image_is_unavailable_and_says_why() {
        let engine = DockerEngine::connect("/nowhere/x.sock", "lab").expect("a path");
        let spec = ImageSpec { name: ImageName::Grafana, reference: "g/g:1".into(), source: ImageSource::Pull };
        let images = Images::spawn(engine, vec![spec], Build::default());
        images.want(ImageName::Grafana);
        let mut states = images.watch();
        let state = states
            .wait_for(|s| matches!(s.get(&ImageName::Grafana), Some(ImageState::Unavailable { .. })))
            .await
            .expect("the task runs")
            .clone();
        let ImageState::Unavailable { reason, .. } = &state[&ImageName::Grafana] else { unreachable!() };
        assert!(reason.starts_with("no container engine answers"), "{reason}");
        assert_eq!(images.list().len(), 1);
    }
}

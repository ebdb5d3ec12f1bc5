//! Notifications: somebody is told what happens to the lab, as `[[notify]]` in `labd.toml` says.
//!
//! One task looks at the snapshot, and keeps what each target was not told yet in the journal's memory, so that the next labd
//! tells it. Deliveries are tasks of their own with an end: whoever hangs delays nobody. A target that is not told is a notice
//! and a line in the journal, with its name and the reason; its address, from, to and secrets are in neither.
//!
//! * `decide`: what is told. Pure.
//! * `outbox`: when each target is told it. Pure.
//! * `shape`: a message as each kind of target takes it. Pure.
//! * `send`, `http`, `mail`: delivery.

mod decide;
mod http;
mod mail;
mod outbox;
mod send;
mod shape;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

use self::{
    decide::Decider,
    outbox::{Message, Outbox},
    send::Refused,
    shape::Sender,
};
use crate::{
    config::{Config, Notify, NotifyEvent, NotifyKind},
    journal::{Entry, Journal, Kind},
    snapshot::Snapshot,
    time::{Moment, Now, Timestamp, human},
};

/// Shortest time between two looks at the snapshot, which changes every second: what is told has lasted longer.
const LOOK: Duration = Duration::from_secs(5);
/// Journal key for what was told, and what could not be yet.
const MEMORY: &str = "notify";

/// Parts that the task is given.
#[derive(Debug)]
pub struct Parts {
    /// The lab as it is.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Configuration, for who is told.
    pub config: watch::Receiver<Arc<Config>>,
    /// The journal.
    pub journal: Journal,
}

/// Target, without anything that is secret.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct TargetView {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: NotifyKind,
    /// Events that it is told of.
    pub events: Vec<NotifyEvent>,
    /// Number of notifications that it was not told yet.
    pub waiting: usize,
    /// Reason why it is not told, in one line; absent while it is.
    pub trouble: Option<String>,
}

/// Outcome of a test message to one target.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Tested {
    /// Name of the target.
    pub name: String,
    /// Its kind.
    pub kind: NotifyKind,
    /// Whether it took the message.
    pub delivered: bool,
    /// Reason why it did not, in one line.
    pub reason: Option<String>,
}

/// Reason why nothing was tested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TestError {
    /// No target has that name, or there is none at all.
    #[error("{0}")]
    Unknown(String),
    /// A test is under way.
    #[error("a test is under way; try again in half a minute")]
    Busy,
}

/// Handle for those who ask about targets. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Notifier {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    config: watch::Receiver<Arc<Config>>,
    targets: watch::Receiver<Arc<Vec<TargetView>>>,
    testing: Arc<Semaphore>,
}

impl Notifier {
    /// Targets and what they were not told, whenever that changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Vec<TargetView>>> {
        self.targets.clone()
    }

    /// Sends a test message to one target or to all, at once and beside what waits for them.
    pub async fn test(&self, name: Option<&str>) -> Result<Vec<Tested>, TestError> {
        let config = self.config.borrow().clone();
        let targets: Vec<&Notify> = config.notify.iter().filter(|t| name.is_none_or(|name| t.name == name)).collect();
        if targets.is_empty() {
            let names: Vec<&str> = config.notify.iter().map(|t| t.name.as_str()).collect();
            let there = match names.as_slice() {
                [] => "labd.toml has no `[[notify]]`; add one, then `labd reload`".to_owned(),
                names => format!("no target of that name; there are: {}", names.join(", ")),
            };
            return Err(TestError::Unknown(there));
        }
        let _one = self.testing.try_acquire().map_err(|_| TestError::Busy)?;
        let sender = sender(&config, &self.snapshot.borrow());
        let text = "this is a test: notifications reach this target".to_owned();
        let message = Message { test: true, ..Message::of(NotifyEvent::LabWhole, text, Now::read()) };
        let told = targets.iter().map(|target| send::deliver(target, &config, &sender, &message));
        let all = join_all(told).await;
        let of = |(target, done): (&&Notify, Result<(), Refused>)| Tested {
            name: target.name.clone(),
            kind: target.kind,
            delivered: done.is_ok(),
            reason: done.err().map(|refused| refused.why),
        };
        Ok(targets.iter().zip(all).map(of).collect())
    }

    /// Handle of no task, for a lab that is told nothing of.
    #[cfg(test)]
    pub(crate) fn none(snapshot: watch::Receiver<Arc<Snapshot>>, config: watch::Receiver<Arc<Config>>) -> Self {
        Self { snapshot, config, targets: watch::channel(Arc::default()).1, testing: Arc::new(Semaphore::new(1)) }
    }
}

/// Starts the task. It ends when the snapshot does.
pub fn spawn(parts: Parts) -> Notifier {
    let (tell, targets) = watch::channel(Arc::default());
    let (snapshot, config) = (parts.snapshot.clone(), parts.config.clone());
    let now = config.borrow().clone();
    let task = Task {
        config: now,
        parts,
        decider: None,
        outboxes: BTreeMap::new(),
        looked: Moment::now(),
        deliveries: JoinSet::new(),
        dirty: false,
        tell,
    };
    tokio::spawn(task.run());
    Notifier { snapshot, config, targets, testing: Arc::new(Semaphore::new(1)) }
}

fn sender(config: &Config, snapshot: &Snapshot) -> Sender {
    Sender { lab: config.lab.name.clone(), host: snapshot.node.hostname.clone() }
}

/// What the next labd must know.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    decider: decide::Memory,
    targets: BTreeMap<String, outbox::Memory>,
}

struct Task {
    parts: Parts,
    /// Configuration that was acted on.
    config: Arc<Config>,
    /// Decider; absent while nobody is told anything.
    decider: Option<Decider>,
    outboxes: BTreeMap<String, Outbox>,
    looked: Moment,
    deliveries: JoinSet<(String, Result<(), Refused>)>,
    dirty: bool,
    tell: watch::Sender<Arc<Vec<TargetView>>>,
}

impl Task {
    async fn run(mut self) {
        self.remember();
        loop {
            self.configure();
            self.send_due();
            self.keep();
            self.publish();
            let now = Moment::now();
            let wake = self.wake().map(|at| at.since(now));
            let look = self.looked.plus(LOOK).since(now);
            let told = self.decider.is_some();
            let snapshots = &mut self.parts.snapshot;
            let news = async move {
                tokio::time::sleep(look).await;
                snapshots.changed().await
            };
            let ended = tokio::select! {
                changed = self.parts.config.changed() => changed.is_err(),
                changed = news, if told => {
                    let ended = changed.is_err();
                    if !ended {
                        self.observe();
                    }
                    ended
                }
                Some(done) = self.deliveries.join_next(), if !self.deliveries.is_empty() => {
                    if let Ok((name, outcome)) = done {
                        self.delivered(&name, outcome);
                    }
                    false
                }
                () = wait(wake) => {
                    if self.decider.as_ref().and_then(Decider::next).is_some_and(|at| at <= Moment::now()) {
                        self.observe();
                    }
                    false
                }
            };
            if ended {
                return;
            }
        }
    }

    /// Reads what the labd before left.
    fn remember(&mut self) {
        let Some(text) = self.parts.journal.memory(MEMORY).filter(|text| !text.is_empty()) else { return };
        let now = Now::read();
        // What another version wrote is begun anew.
        if let Ok(kept) = serde_json::from_str::<Kept>(&text) {
            self.decider = Some(Decider::new(Some(kept.decider), now));
            let outboxes = kept.targets.into_iter();
            self.outboxes = outboxes.map(|(name, memory)| (name, Outbox::restore(memory, now))).collect();
        }
    }

    /// Acts on the configuration in force.
    fn configure(&mut self) {
        let config = self.parts.config.borrow_and_update().clone();
        let known = |name: &str| config.notify.iter().any(|target| target.name == name);
        let before = self.outboxes.len();
        self.outboxes.retain(|name, _| known(name));
        self.dirty |= self.outboxes.len() != before;
        for target in &config.notify {
            let outbox = self.outboxes.entry(target.name.clone()).or_default();
            if self.config.notify.iter().any(|old| old.name == target.name && old != target) {
                outbox.changed();
            }
        }
        let nobody = config.notify.is_empty();
        self.config = config;
        match (&self.decider, nobody) {
            (None, false) => {
                self.decider = Some(Decider::new(None, Now::read()));
                self.observe();
            }
            (Some(_), true) => {
                self.decider = None;
                self.dirty = false;
                self.parts.journal.set_memory(MEMORY, "");
            }
            _ => {}
        }
    }

    fn observe(&mut self) {
        let now = Now::read();
        self.looked = now.moment;
        let Some(decider) = &mut self.decider else { return };
        let snapshot = self.parts.snapshot.borrow_and_update().clone();
        for news in decider.observe(&snapshot, now) {
            for target in &self.config.notify {
                if let Some(outbox) = self.outboxes.get_mut(&target.name) {
                    self.dirty |= outbox.push(&target.events, &news, now);
                }
            }
        }
    }

    /// Sends what is due, and gives up what is too old.
    fn send_due(&mut self) {
        let now = Moment::now();
        let sender = sender(&self.config, &self.parts.snapshot.borrow());
        let mut notes = Vec::new();
        for target in &self.config.notify {
            let Some(outbox) = self.outboxes.get_mut(&target.name) else { continue };
            let given_up = outbox.give_up(now);
            if given_up > 0 {
                self.dirty = true;
                let why = outbox.trouble().unwrap_or("too much was to be told");
                let (s, are) = if given_up == 1 { ("", "is") } else { ("s", "are") };
                let (name, age) = (&target.name, human(outbox::GIVEN_UP));
                notes.push(format!("{given_up} notification{s} to `{name}` {are} given up after {age}: {why}"));
            }
            let Some(message) = outbox.take(now) else { continue };
            let (config, sender, target) = (self.config.clone(), sender.clone(), target.clone());
            self.deliveries.spawn(async move {
                let outcome = send::deliver(&target, &config, &sender, &message).await;
                (target.name, outcome)
            });
        }
        for text in notes {
            self.note(&text);
        }
    }

    fn delivered(&mut self, name: &str, outcome: Result<(), Refused>) {
        let Some(outbox) = self.outboxes.get_mut(name) else { return };
        self.dirty = true;
        let now = Moment::now();
        match outcome {
            Ok(()) => {
                if outbox.delivered(now) {
                    self.note(&format!("notifications to `{name}` are delivered again"));
                }
            }
            Err(Refused { why, after }) => {
                if outbox.failed(now, why.clone(), after, rand::random()) {
                    self.note(&format!("notifications to `{name}` are not delivered, and tried again: {why}"));
                }
            }
        }
    }

    fn note(&self, text: &str) {
        tracing::warn!("{text}");
        self.parts.journal.record(Entry {
            at: Timestamp::now(),
            service: None,
            kind: Kind::Daemon,
            what: "notify".to_owned(),
            reason: text.to_owned(),
        });
    }

    /// Keeps what the next labd must know, if it has changed.
    fn keep(&mut self) {
        let now = Now::read();
        let Some(decider) = &mut self.decider else { return };
        let news = decider.take_memory(now);
        if news.is_none() && !self.dirty {
            return;
        }
        self.dirty = false;
        let targets = self.outboxes.iter().map(|(name, outbox)| (name.clone(), outbox.memory(now))).collect();
        let kept = Kept { decider: news.unwrap_or_else(|| decider.memory(now)), targets };
        if let Ok(text) = serde_json::to_string(&kept) {
            self.parts.journal.set_memory(MEMORY, text);
        }
    }

    fn publish(&self) {
        let view = |target: &Notify| {
            let outbox = self.outboxes.get(&target.name);
            TargetView {
                name: target.name.clone(),
                kind: target.kind,
                events: target.events.clone(),
                waiting: outbox.map_or(0, Outbox::undelivered),
                trouble: outbox.and_then(Outbox::trouble).map(str::to_owned),
            }
        };
        let views: Vec<TargetView> = self.config.notify.iter().map(view).collect();
        self.tell.send_if_modified(|old| {
            let news = **old != views;
            if news {
                *old = Arc::new(views);
            }
            news
        });
    }

    /// Moment at which there is something to do though nothing happens.
    fn wake(&self) -> Option<Moment> {
        // Not sooner than the next look: what is pending may have to be seen again.
        let decider = self.decider.as_ref().and_then(Decider::next).map(|at| at.max(self.looked.plus(LOOK)));
        let outboxes = self.outboxes.values().flat_map(|outbox| [outbox.due(), outbox.gives_up()]);
        decider.into_iter().chain(outboxes.flatten()).min()
    }
}

async fn wait(time: Option<Duration>) {
    match time {
        // A moment is in whole milliseconds, and may not be over yet when its last one begins.
        Some(time) => tokio::time::sleep(time + Duration::from_millis(1)).await,
        None => std::future::pending().await,
    }
}

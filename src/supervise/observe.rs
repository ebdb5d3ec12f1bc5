//! Observation of containers through the engine and its events, and the health checks of what runs.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use super::{
    decide::{EngineOutage, Health, OutsideActions, Wanted},
    health_check,
    memory::{EVENTS_HEARD, keep_shortage},
    oom,
    service::{Entry, Prober},
    supervisor::{LOOKS, Supervisor, TaskMsg},
};
use crate::{
    engine::{Engine, EngineError, EngineEvent, EngineEventKind, ListedContainer, Observed},
    ray::RayView,
    snapshot::EngineView,
    time::{Moment, Timestamp},
};

impl<E: Engine> Supervisor<E> {
    /// Passes Ray's view on to the health checks.
    pub(super) fn pass_on(&self, ray: &mut watch::Receiver<Arc<RayView>>) {
        let view = ray.borrow_and_update().clone();
        for prober in self.entries.values().filter_map(|e| e.prober.as_ref()) {
            prober.ray.send_replace(view.clone());
        }
    }

    /// Reacts to a change of whether the engine answers.
    pub(super) fn mind_engine(&mut self) {
        let now = Timestamp::now();
        let answers = matches!(*self.p.engine_view.borrow(), EngineView::Reachable { .. });
        if answers && !self.engine {
            for away in self.away.iter_mut().filter(|away| away.to.is_none()) {
                away.to = Some(now);
            }
        } else if !answers && self.away.is_none_or(|away| away.to.is_some()) {
            // One that has not answered in this labd's life yet: after a power cut nobody knows since when.
            let from = if self.engine { now } else { Timestamp::default() };
            self.away = Some(EngineOutage { from, to: None });
        }
        if self.engine != answers {
            // What was seen before is no ground for a step.
            self.entries.values_mut().for_each(|e| (e.stale, e.network_there) = (true, false));
        }
        self.engine = answers;
        self.resync_all();
    }

    /// Handles an event of the engine: keeps it with the container it is about, and observes that container.
    pub(super) fn happened(&mut self, nudge: EngineEvent) {
        let EngineEvent { service, id, what, at } = nudge;
        self.p.journal.set_memory(EVENTS_HEARD, at.as_millis().to_string());
        let entry = self.entries.entry(service.clone()).or_insert_with(|| Entry::new(None, Timestamp::now()));
        entry.last_event = Some(at);
        if what == EngineEventKind::OutOfMemory
            && let Some(limit) = entry.spec.as_ref().map(|s| s.container.memory_bytes)
        {
            let shortage = oom::Shortage::after(entry.shortage.take(), &id, at, limit);
            keep_shortage(&self.p.journal, &service, &shortage);
            entry.shortage = Some(shortage);
        }
        let own = entry.own_stop.as_ref().is_some_and(|own| own.covers(&id, at, Timestamp::now()));
        if !own && !matches!(what, EngineEventKind::OutOfMemory | EngineEventKind::Other) {
            let touched = match &mut entry.touched {
                Some(touched) if touched.id == id => touched,
                other => other.insert(OutsideActions { id, signalled: None, stopped: None, by_hand: None }),
            };
            match what {
                EngineEventKind::Signal(9) | EngineEventKind::OutOfMemory | EngineEventKind::Other => {}
                EngineEventKind::Signal(_) => touched.signalled = Some(at),
                EngineEventKind::Stopped => touched.stopped = Some(at),
                EngineEventKind::StoppedByHand => (touched.stopped, touched.by_hand) = (Some(at), Some(at)),
            }
        }
        self.observe(&service);
    }

    /// Asks for every service's container, and for the list of all, which may have others.
    pub(super) fn resync_all(&mut self) {
        self.observe_those(|_, _| true);
        self.list();
    }

    /// Looks whether everything is as it was: asks for the list of all containers, which says what is not, and at once for
    /// what no list can say.
    pub(super) fn look(&mut self) {
        // A list that is not there by the next look may be what the engine hangs at. And a job that failed is judged by what
        // its containers did: the engine lists one as running until it has cleared up after it.
        let each = self.looks.is_multiple_of(LOOKS) || self.listing || self.p.jobs.borrow().unjudged;
        self.looks = self.looks.wrapping_add(1);
        self.observe_those(|lab, name| each || !lab.is_known(name));
        self.list();
    }

    fn observe_those(&mut self, which: impl Fn(&Self, &str) -> bool) {
        let names: Vec<String> = self.entries.keys().filter(|name| which(self, name)).cloned().collect();
        for name in names {
            self.observe(&name);
        }
    }

    pub(super) fn list(&mut self) {
        if !std::mem::replace(&mut self.listing, true) {
            let (engine, tx) = (self.p.engine.clone(), self.tx.clone());
            tokio::spawn(async move {
                let _ = tx.send(TaskMsg::Listed(engine.list().await));
            });
        }
    }

    /// Whether a list of all containers can say that the service's is as it was seen.
    fn is_known(&self, name: &str) -> bool {
        let Some(entry) = self.entries.get(name) else { return false };
        let in_list = match &entry.seen {
            Some(Observed::Ours(c)) => c.run.word().is_some(),
            // Somebody else's container in its place is in no list of the lab's.
            Some(Observed::Absent) => self.wanted(name) != Wanted::Up,
            Some(Observed::Foreign { .. }) | None => false,
        };
        // An engine may hang at one that is not well.
        let is_well = matches!(entry.health, Health::Unknown | Health::Passing);
        in_list && is_well && !entry.stale && !entry.acting && entry.observing.is_none()
    }

    /// Observes what the list of all containers does not confirm. What it does is no observation: that a container ended is
    /// known later from it than from an inspection, and a run that ended and began again not at all.
    pub(super) fn listed(&mut self, answer: Result<Vec<ListedContainer>, EngineError>) {
        let Ok(found) = answer else { return self.observe_those(Self::is_known) };
        let known: Vec<String> = self.entries.keys().filter(|name| self.is_known(name)).cloned().collect();
        let found: BTreeMap<&str, &ListedContainer> =
            found.iter().filter(|c| c.named).map(|c| (c.service.as_str(), c)).collect();
        self.listed_empty = found.is_empty();
        for name in &known {
            let seen = self.entries.get(name).and_then(Entry::container);
            let is_same = match (seen, found.get(name.as_str())) {
                (Some(seen), Some(listed)) => listed.is_still(seen),
                (seen, listed) => seen.is_none() && listed.is_none(),
            };
            if !is_same {
                self.observe(name);
            }
        }
        for name in found.keys() {
            if !self.entries.contains_key(*name) {
                self.observe(name);
            }
        }
    }

    pub(super) fn observe(&mut self, name: &str) {
        let entry = self.entries.entry(name.to_owned()).or_insert_with(|| Entry::new(None, Timestamp::now()));
        if entry.acting || entry.observing.is_some() {
            // Looked at when that is done.
            entry.look_again = true;
            return;
        }
        entry.look_again = false;
        entry.observing = Some(Moment::now());
        let (engine, tx, name) = (self.p.engine.clone(), self.tx.clone(), name.to_owned());
        tokio::spawn(async move {
            let seen = engine.observe(&name).await;
            let _ = tx.send(TaskMsg::Observed(name, seen));
        });
    }

    /// Keeps one health check per run of a container.
    pub(super) fn mind_prober(&mut self, name: &str) {
        let view = self.p.ray.watch().borrow().clone();
        let (tx, ask, engine) = (self.tx.clone(), self.p.ask.clone(), self.p.engine.clone());
        let Some(entry) = self.entries.get_mut(name) else { return };
        let key = entry.running().map(|(c, at)| (c.id.clone(), at));
        if entry.prober.as_ref().map(|p| &p.key) == key.as_ref() {
            return;
        }
        entry.prober = None;
        entry.health = Health::Unknown;
        let (Some(key), Some(spec), Some((container, started_at))) = (key, entry.spec.clone(), entry.running()) else {
            return;
        };
        let (service, told_key, container) = (name.to_owned(), key.clone(), container.clone());
        let end = {
            let (tx, engine, container) = (tx.clone(), engine.clone(), container.clone());
            let (service, key) = (service.clone(), key.clone());
            async move {
                engine.first_process_ended(container).await;
                let _ = tx.send(TaskMsg::FirstProcessEnded(service, key));
            }
        };
        let tell = move |health| {
            let _ = tx.send(TaskMsg::Health(service.clone(), told_key.clone(), health));
        };
        let (ray, heard) = watch::channel(view);
        let probes = health_check::run(engine, ask, spec, container, started_at, heard, tell);
        let task = tokio::spawn(async move { tokio::join!(probes, end) }).abort_handle();
        entry.prober = Some(Prober { key, ray, task });
    }
}

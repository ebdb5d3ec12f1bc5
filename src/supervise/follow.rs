//! Deaths, followed until the service is back and training again, and recorded in the journal.

use std::sync::Arc;

use super::{
    decide::Decision,
    incidents,
    memory::keep_shortage,
    segments,
    service::Entry,
    supervisor::{RECOVERY_WATCHED, Supervisor, TaskMsg},
};
use crate::{
    engine::Engine,
    incident::{Cause, Incident},
    jobs::decide::is_infrastructure,
    journal::{Entry as Record, Kind as RecordKind},
    recovery,
    snapshot::{Notice, ServiceState},
    time::Timestamp,
};

impl<E: Engine> Supervisor<E> {
    /// Records memory that ran out inside a container that lives on.
    pub(super) fn mind_memory(&mut self, now: Timestamp) {
        for (name, entry) in &mut self.entries {
            // What is not seen as it is now is no ground for a verdict.
            if entry.stale || entry.acting || entry.observing.is_some() || entry.seen.is_none() || !self.engine {
                continue;
            }
            let running = entry.running().map(|(c, started_at)| (c.id.clone(), started_at));
            let Some(shortage) = entry.shortage.as_mut().filter(|s| s.due_in(now).is_some_and(|d| d.is_zero())) else {
                continue;
            };
            if let Some(incident) = shortage.judge(name, running.as_ref().map(|(id, at)| (id.as_str(), *at)), now) {
                if let Some(times) = shortage.say(now) {
                    let reason = format!("{}{times}", incidents::in_words(&incident));
                    tracing::warn!(service = name, "{reason}");
                    self.p.journal.record(Record {
                        at: now,
                        service: Some(name.clone()),
                        kind: RecordKind::Incident,
                        what: incident.cause.as_str().to_owned(),
                        reason,
                    });
                }
                self.incidents.inside(incident);
            }
            keep_shortage(&self.p.journal, name, shortage);
        }
    }

    /// Notices about memory that ran out lately.
    pub(super) fn shortages(&self, now: Timestamp) -> Vec<Notice> {
        let services = self.p.desired.plan.services.iter().filter(|s| s.enabled);
        let short = services.filter_map(|spec| {
            let shortage = self.entries.get(&spec.name)?.shortage.as_ref()?;
            let over = shortage.is_over(Some(spec.container.memory_bytes), now);
            (!over).then(|| shortage.notice(&spec.name))
        });
        short.collect()
    }

    /// Opens an incident when the service ended, and follows the one that is open.
    pub(super) fn follow(&mut self, name: &str, decision: &Decision, now: Timestamp) {
        if let Some(mut ended) = decision.ended.clone()
            && let Some(cut_short) = {
                if self.down && ended.cause == Cause::Asked {
                    "stopped with the lab".clone_into(&mut ended.why);
                }
                // The newest checkpoint of this moment is the one that a run resumes from.
                self.p.checkpoints.refresh_now();
                self.incidents.open(name, ended, now)
            }
        {
            self.close(&cut_short, now);
        }
        let running = self.entries.get(name).and_then(|e| e.running().map(|(_, at)| at));
        let ready = decision.state == ServiceState::Ready;
        if let Some(over) = self.incidents.follow(name, running, ready, now) {
            self.close(&over, now);
            self.sweep_later(name);
        }
    }

    /// Looks later on what the ended processes of a service that is back left in the memory that it shares.
    fn sweep_later(&mut self, name: &str) {
        let volume = self.entries.get(name).and_then(|e| e.spec.as_ref()).and_then(|s| s.container.shared_memory());
        let Some(volume) = volume.filter(|_| !self.sweeping).map(str::to_owned) else { return };
        self.sweeping = true;
        let tx = self.tx.clone();
        tokio::spawn(async move {
            tokio::time::sleep(segments::LATER).await;
            let _ = tx.send(TaskMsg::SweepDue(volume));
        });
    }

    /// Looks what ended processes left in this volume in memory, and removes it.
    pub(super) fn sweep(&self, volume: &str) {
        let shares = |e: &&Entry| e.spec.as_ref().is_some_and(|s| s.container.shared_memory() == Some(volume));
        let running = self.entries.values().filter(shares).filter_map(|e| Some(e.running()?.0.id.clone()));
        let (engine, tx, containers) = (self.p.engine.clone(), self.tx.clone(), running.collect::<Vec<_>>());
        tokio::spawn(async move {
            let _ = tx.send(TaskMsg::Swept(segments::sweep(&*engine, &containers).await));
        });
    }

    /// Writes one line to the journal for an incident that is over. What an earlier labd ended on request is too old to
    /// tell.
    pub(super) fn close(&self, incident: &Incident, now: Timestamp) {
        if incident.cause == Cause::Asked && incident.died_at < self.p.daemon.started_at {
            return;
        }
        self.p.journal.record(Record {
            at: now,
            service: Some(incident.service.clone()),
            kind: RecordKind::Incident,
            what: incident.cause.as_str().to_owned(),
            reason: incidents::in_words(incident),
        });
    }

    /// Completes the incidents that are not long over by what the runs and the store say.
    pub(super) fn amend_incidents(&mut self, now: Timestamp) {
        let ray = self.p.ray.watch().borrow().clone();
        let store = self.p.checkpoints.watch().borrow().clone();
        let (entries, begun) = (&self.entries, self.p.daemon.started_at);
        let mut again = Vec::new();
        self.incidents.amend(|incident| {
            // When a run trained again is known only by who watched: this daemon, from its start on.
            let old = now.since(incident.died_at) > RECOVERY_WATCHED || incident.noticed_at < begun;
            // Which run lost a process inside a living container, Ray alone knows.
            if old || !incident.cause.ends() {
                return false;
            }
            let address = entries.get(&incident.service).and_then(|e| e.spec.as_ref()).map(|s| s.container.address);
            let training = recovery::training(incident, address, &ray.runs, &store);
            let changed = training != incident.training;
            for run in &training {
                let known = incident.training.iter().any(|old| old.run == run.run && old.training_at.is_some());
                if let (Some(at), false) = (run.training_at, known) {
                    again.push((incident.service.clone(), incidents::training_in_words(incident, run, at)));
                }
            }
            incident.training = training;
            changed
        });
        for (service, line) in again {
            self.note(RecordKind::Incident, Some(&service), "training", &line);
        }
    }

    /// Stores and publishes the incidents that changed.
    pub(super) fn tell_incidents(&mut self, now: Timestamp) {
        self.amend_incidents(now);
        if let Some(news) = self.incidents.news() {
            for incident in news.changed {
                self.p.journal.keep_incident(incident);
            }
            self.p.incidents.send_replace(Arc::new(news.all));
        }
        // One that a step is under way for is not looked at meanwhile, and its end is known: that is what the step is for.
        let carries_jobs = |e: &&Entry| !e.acting && e.spec.as_ref().is_some_and(|s| is_infrastructure(&s.name));
        if let Some(looked_at) = self.entries.values().filter(carries_jobs).map(|e| e.looked_at).min() {
            self.p.looked_at.send_if_modified(|old| std::mem::replace(old, looked_at) != looked_at);
        }
    }
}

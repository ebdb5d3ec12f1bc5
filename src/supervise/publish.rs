//! State and reason of each service, and the snapshot, as people are shown them.

use std::sync::Arc;

use super::{
    decide::{Decision, Health},
    service::Entry,
    supervisor::{INCIDENTS_SHOWN, Supervisor},
    view,
};
use crate::{
    engine::Engine,
    journal::{Entry as Record, Kind as RecordKind},
    services::{self, Optional},
    snapshot::{ServiceState, ServiceView},
    time::{Moment, Now, Timestamp, human},
};

impl<E: Engine> Supervisor<E> {
    /// Brings the shown state up to date, and the journal when the state changed. Returns whether it did.
    pub(super) fn show(&mut self, name: &str, decision: &Decision, now: Now) -> bool {
        let Some(entry) = self.entries.get_mut(name) else { return false };
        let before = entry.state;
        let unchanged_since = entry.running().is_some_and(|(_, started_at)| started_at <= entry.since);
        if entry.fresh
            && matches!(decision.state, ServiceState::Starting | ServiceState::Waiting)
            && entry.health == Health::Unknown
            && entry.recorded == Some(ServiceState::Ready)
            && unchanged_since
        {
            // It was ready before labd was restarted, and the first probe is under way: nothing has happened that the
            // journal should be told. A wait is shown with what it is for, not with the journal's word on how it began.
            entry.state = decision.state;
            entry.wake = decision.wake;
            if decision.state == ServiceState::Waiting {
                let journaled = std::mem::replace(&mut entry.reason, decision.reason.clone());
                entry.journaled.get_or_insert(journaled);
            }
            return before != decision.state;
        }
        let adopted = std::mem::take(&mut entry.fresh);
        let changed = before != decision.state || adopted;
        entry.state = decision.state;
        let same_wake = std::mem::replace(&mut entry.wake, decision.wake) == decision.wake;
        entry.next_try = match decision.state {
            // Said once, so that it does not move by the moment in which it is looked at.
            ServiceState::Backoff | ServiceState::CrashLoop if same_wake && entry.next_try.is_some() => entry.next_try,
            ServiceState::Backoff | ServiceState::CrashLoop | ServiceState::Blocked => {
                decision.wake.map(|at| now.wall_at(at))
            }
            _ => None,
        };
        entry.progress = (decision.state == ServiceState::Preparing).then(|| decision.reason.clone());
        let mut reason = decision.reason.clone();
        if decision.state == ServiceState::Ready && reason.is_empty() {
            let word = entry.journaled.take().unwrap_or_else(|| entry.reason.clone());
            reason = match entry.running() {
                // Adopted: the journal's word stands, if it has one.
                Some(_) if adopted && !word.is_empty() => word,
                Some((_, at)) if changed => format!("ready {} after its start", human(now.wall.since(at))),
                _ => entry.reason.clone(),
            };
        }
        if decision.state == ServiceState::Preparing {
            // Steps of a build are progress, not reasons: the journal would fill with them.
            reason = if changed { "its image is being prepared".to_owned() } else { entry.reason.clone() };
        }
        if !changed {
            entry.reason = reason;
            return false;
        }
        if before != decision.state || entry.recorded != Some(decision.state) {
            let recorded = entry.recorded.replace(decision.state);
            if recorded != Some(decision.state) {
                entry.since = now.wall;
                // An image that is tried again and again is told once, for all that need it.
                let no_image = |s| matches!(s, ServiceState::Preparing | ServiceState::Unavailable);
                if !(recorded.is_some_and(no_image) && no_image(decision.state)) {
                    self.p.journal.record(Record {
                        at: now.wall,
                        service: Some(name.to_owned()),
                        kind: RecordKind::State,
                        what: decision.state.as_str().to_owned(),
                        reason: reason.clone(),
                    });
                }
            }
        }
        entry.reason = reason;
        before != decision.state
    }

    pub(super) fn publish(&self) {
        let now = Timestamp::now();
        let restarts = self.p.journal.restarts();
        let plan = &self.p.desired.plan;
        let left_over = self.entries.values().filter(|e| e.spec.is_none()).count();
        let mut services: Vec<ServiceView> = Vec::with_capacity(plan.services.len() + left_over);
        for spec in &plan.services {
            let Some(entry) = self.entries.get(&spec.name) else { continue };
            services.push(ServiceView {
                name: spec.name.clone(),
                state: entry.state,
                since: entry.since,
                restarts: restarts.get(&spec.name).copied().unwrap_or(0),
                last_reason: entry.reason.clone(),
                progress: entry.progress.clone(),
                next_try: entry.next_try,
                container: entry.container().map(|_| plan.container_name(&spec.name)),
                image: spec.container.image.clone(),
                address: spec.container.address.to_string(),
                optional: services::of(&spec.name).is_some_and(|def| def.optional != Optional::Never),
            });
        }
        let ray = self.p.ray.watch().borrow().clone();
        let door = self.p.door.borrow().clone();
        let page = self.p.page.borrow().clone();
        let second = self.p.second.borrow().trouble.clone();
        let tls = self.p.tls.borrow().clone();
        let moment = Moment::now();
        let unanswered: Vec<&str> = self
            .entries
            .iter()
            .filter(|(_, e)| e.unanswered(moment).is_some())
            .map(|(name, _)| name.as_str())
            .collect();
        let ledger = self.p.jobs.borrow().clone();
        let installs = self.p.installs.borrow().clone();
        let notify = self.p.notify.borrow().clone();
        let store = self.p.checkpoints.watch().borrow().clone();
        let port_of = |service: &str, port: u16| {
            if service == services::front_door::DEF.name() {
                return door.port;
            }
            let entry = self.entries.get(service)?;
            entry.running()?.0.ports.get(&port).copied()
        };
        let dashboard = self.p.ray.endpoint().borrow().as_ref().map(|endpoint| endpoint.dashboard);
        let upstreams = services::upstreams(&self.p.desired.config, dashboard, port_of);
        self.p.upstreams.send_if_modified(|old| {
            let changed = **old != upstreams;
            if changed {
                *old = Arc::new(upstreams);
            }
            changed
        });
        let service_of = |container: &str| {
            let of = |e: &&Entry| e.container().is_some_and(|c| c.id == container);
            self.entries.values().find(of).and_then(|e| e.spec.as_ref()).map(|s| s.name.clone())
        };
        let mut snapshot = view::snapshot(view::Known {
            now,
            daemon: &self.p.daemon,
            node: self.p.node.borrow().clone(),
            engine: self.p.engine_view.borrow().clone(),
            journal: self.p.journal.health().borrow().clone(),
            ray: &ray,
            ledger: &ledger,
            installs: &installs,
            notify: &notify,
            door: door.trouble.as_deref(),
            page: page.as_deref(),
            second: second.as_deref(),
            tls: &tls,
            unanswered: &unanswered,
            scrapes: *self.p.scrapes.borrow(),
            store: &store,
            disks: &self.disks,
            config: &self.p.desired.config,
            gpus: &self.p.desired.gpus,
            inventory: &self.p.gpus.borrow().clone(),
            services,
            shortages: self.shortages(now),
            incidents: self.incidents.newest(INCIDENTS_SHOWN),
            service_of: &service_of,
            port_of: &port_of,
        });
        self.p.snapshot.send_if_modified(|old| {
            // The time alone is no news.
            snapshot.taken_at = old.taken_at;
            let same = snapshot == **old;
            if !same {
                snapshot.taken_at = now;
                *old = Arc::new(snapshot);
            }
            !same
        });
    }
}

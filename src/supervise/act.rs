//! Decisions and the steps that follow, one at a time for each service.

use std::{net::Ipv4Addr, time::Duration};

use super::{
    decide::{self, Action, Decision, Observation},
    memory::{started_after_key, stopping_key},
    service::OwnStop,
    supervisor::{AFTER_FAILURE, OUTDATED, Supervisor, TaskMsg},
};
use crate::{
    engine::{Engine, EngineError},
    journal::{Entry as Record, Kind as RecordKind},
    ray::Gcs,
    snapshot::ServiceState,
    spec::Kind,
    time::{Moment, Now, Timestamp},
};

impl<E: Engine> Supervisor<E> {
    /// Decides for one service and starts the step. Returns whether its state changed.
    pub(super) fn decide(&mut self, name: &str) -> bool {
        let now = Now::read();
        let Some(entry) = self.entries.get(name) else { return false };
        if entry.seen.is_none()
            || entry.acting
            || (entry.observing.is_some() && entry.unanswered(now.moment).is_none())
            || entry.not_before.is_some_and(|at| at > now.moment)
            || (self.down && self.carries_others(name))
        {
            return false;
        }
        let stale = entry.stale || entry.observing.is_some() || !self.engine;
        if !stale {
            self.mind_hold(name);
        }
        let wanted = self.wanted(name);
        let (unmet, turn, spare_worker) = (self.unmet(name), self.turn(name, now.moment), self.spare_worker(name));
        if !stale {
            self.mind_change(name, &turn, now);
        }
        let gcs = self.p.ray.watch().borrow().gcs == Gcs::Reachable;
        let seed = self.p.seed ^ name.bytes().fold(0, |h: u64, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let image = self.image(name);
        let bar = self.bar(name);
        let void = self.void(name);
        let container = self.p.desired.plan.container_name(name);
        let away = self.away;
        let Some(entry) = self.entries.get_mut(name) else { return false };
        let Some(there) = entry.seen.clone() else { return false };
        entry.not_before = None;
        let situation = Observation {
            name,
            container: &container,
            hash: &entry.hash,
            start_deadline: entry.spec.as_ref().map_or(Duration::MAX, |s| s.start_deadline),
            kill_silent: entry.spec.as_ref().is_none_or(|s| s.killed_when_silent),
            stop_timeout: entry.spec.as_ref().map_or(Duration::ZERO, |s| s.container.stop_timeout),
            is_ray_node: entry.kind().is_some_and(Kind::is_ray_node),
            wanted,
            seen: &there,
            touched: entry.touched.as_ref(),
            last_event: entry.last_event.filter(|&at| at >= entry.ran_at),
            away,
            oom: entry.container().and_then(|c| entry.shortage.as_ref()?.last_in(&c.id)),
            health: void.as_ref().unwrap_or(&entry.health),
            image: &image,
            unmet,
            gcs,
            turn,
            spare_worker,
            bar: bar.as_ref(),
            seed,
        };
        if stale {
            // Nothing is done about what may be no more, and nothing is concluded from it; it is only shown.
            let decision = decide::decide(&situation, &mut entry.memory.clone(), now);
            let decision = Decision { wake: None, ..decision };
            let shown =
                matches!(decision.state, ServiceState::Ready | ServiceState::Unhealthy | ServiceState::Starting);
            entry.wake = None;
            return shown && decision.action == Action::None && self.show(name, &decision, now);
        }
        let decision = decide::decide(&situation, &mut entry.memory, now);
        let changed = self.show(name, &decision, now);
        self.follow(name, &decision, now.wall);
        self.act(name, decision, now.wall);
        changed
    }

    pub(super) fn act(&mut self, name: &str, decision: Decision, now: Timestamp) {
        let Decision { action, reason, .. } = decision;
        let Some(entry) = self.entries.get_mut(name) else { return };
        let (engine, tx, service) = (self.p.engine.clone(), self.tx.clone(), name.to_owned());
        let network_there = std::mem::take(&mut entry.network_there);
        if matches!(action, Action::Create | Action::Start { .. }) && !network_there {
            // Its network may have been pruned while it was stopped; without one it is not started. An engine may take its
            // time over this, and what is to be done is decided again then.
            let (network, decided_at) = (self.p.desired.plan.network.clone(), Moment::now());
            entry.acting = true;
            tokio::spawn(async move {
                let found = engine.ensure_network(&network).await;
                let _ = tx.send(TaskMsg::Network(service, action, decided_at, found));
            });
            return;
        }
        let what = match &action {
            Action::None => return,
            Action::PrepareImage => {
                if let Some(spec) = &entry.spec {
                    self.p.images.want(spec.image);
                }
                return;
            }
            Action::TellGcs { .. } => "tell-gcs",
            Action::Create => "create",
            Action::Start { again: true, .. } => "restart",
            Action::Start { again: false, .. } => "start",
            Action::Stop { .. } => "stop",
            Action::Kill { .. } => "kill",
            Action::Remove { .. } => "remove",
        };
        tracing::info!(service = name, reason, "{what}");
        // What is tried because a step does not succeed is told once: it is tried for as long as nobody helps.
        if !entry.memory.is_stuck() {
            entry.told.clear();
        }
        if entry.told.insert(what) || !entry.memory.is_stuck() {
            self.p.journal.record(Record {
                at: now,
                service: Some(name.to_owned()),
                kind: RecordKind::Action,
                what: what.to_owned(),
                reason,
            });
        }
        entry.acting = true;
        if let Action::Stop { id } = &action {
            entry.own_stop = Some(OwnStop { id: id.clone(), from: now, to: None });
            // A labd that is killed meanwhile must not take it for a stop by hand when it is back.
            self.p.journal.set_memory(stopping_key(name), format!("{id} {}", now.as_millis()));
        }
        if let Action::TellGcs { reason } = action {
            let address = entry.spec.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |s| s.container.address);
            let ray = self.p.ray.clone();
            tokio::spawn(async move {
                let told = ray.unregister(address, now, &reason).await;
                let _ = tx.send(TaskMsg::Told(service, told));
            });
            return;
        }
        if let Action::Start { .. } = action {
            // By the order of the two: the clock may be set in between.
            let fault = self.p.gpus.borrow().of_worker(name).and_then(|gpu| Some(gpu.restart.as_ref()?.0));
            if let Some(at) = fault.filter(|_| fault != entry.started_after) {
                entry.started_after = fault;
                self.p.journal.set_memory(started_after_key(name), at.as_millis().to_string());
            }
        }
        let spec = entry.spec.clone();
        tokio::spawn(async move {
            let result = match (&action, spec) {
                (Action::Create, Some(spec)) => engine.create(&service, &spec.container).await,
                (Action::Start { id, .. }, _) => engine.start(id).await,
                (Action::Stop { id }, _) => engine.stop(id).await,
                (Action::Kill { id }, _) => engine.kill(id).await,
                (Action::Remove { id }, _) => engine.remove(id).await,
                _ => Ok(()),
            };
            let _ = tx.send(TaskMsg::Done(service, action, result));
        });
    }

    /// Takes note that the lab's network is there for a step that was decided on at `decided_at`.
    pub(super) fn network_found(&mut self, name: &str, decided_at: Moment) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.acting = false;
        entry.network_there = true;
        entry.memory.not_taken();
        if entry.look_again || Moment::now().since(decided_at) >= OUTDATED {
            self.observe(name);
        }
    }

    pub(super) fn done(&mut self, name: &str, action: &Action, result: Result<(), EngineError>) {
        let now = Now::read();
        let seed = self.p.seed;
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.acting = false;
        let news = entry.memory.done(&result, now, seed);
        if let Err(error) = result {
            entry.not_before = Some(now.moment.plus(AFTER_FAILURE));
            tracing::info!(service = name, %error, "a step failed");
            if let (EngineError::NotFound(_), Some(spec), Action::Create) = (&error, &entry.spec, action) {
                self.p.images.mark_missing(spec.image);
            }
        }
        if let Some(line) = news {
            self.note(RecordKind::Action, Some(name), "failed", &line);
        }
        self.observe(name);
    }
}

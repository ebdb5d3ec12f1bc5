//! Commands from people, and the effects of a new configuration or of other GPUs.

use std::sync::Arc;

use super::{
    decide::Hold,
    memory::{held_key, held_word},
    service::Entry,
    supervisor::{RESYNC, Supervisor, TaskMsg},
};
use crate::{
    control::{Command, Refusal, Request},
    desired::DesiredState,
    engine::{Engine, Observed},
    gpus::Gpu,
    journal::Kind as RecordKind,
    services::{self, Optional},
    snapshot::EngineView,
    time::{Now, Timestamp},
};

impl<E: Engine> Supervisor<E> {
    pub(super) fn obey(&mut self, request: Request) {
        if request.command == Command::Reload && !self.down {
            let (read, tx) = ((self.p.reload)(), self.tx.clone());
            tokio::spawn(async move {
                let _ = tx.send(TaskMsg::Reload(read.await.map(Box::new), request.reply));
            });
            return;
        }
        let answer = match request.command {
            Command::Start { service } => self.known(&service).and_then(|()| self.start(&service)),
            Command::Stop { service } => self.known(&service).map(|()| self.hold(&service)),
            Command::Restart { service } => self.known(&service).and_then(|()| self.restart(&service)),
            Command::Reload => Err(Refusal::ShuttingDown),
            Command::Apply => self.apply(),
            Command::Down if matches!(*self.p.engine_view.borrow(), EngineView::Unreachable { .. }) => {
                self.down = true;
                self.given_up = true;
                Ok("the container engine does not answer: labd ends, and what still runs is left as it is".to_owned())
            }
            Command::Down => {
                self.down = true;
                self.note(RecordKind::Daemon, None, "down", "a person asked for it");
                self.resync_all();
                Ok("stopping every container; volumes and images are kept".to_owned())
            }
        };
        // Whoever asked may have gone.
        let _ = request.reply.send(answer);
    }

    pub(super) fn known(&self, service: &str) -> Result<(), Refusal> {
        if self.down {
            return Err(Refusal::ShuttingDown);
        }
        match self.p.desired.plan.service(service) {
            Some(spec) if spec.enabled => Ok(()),
            // What is off by default is in no plan.
            other if other.is_some() || services::of(service).is_some_and(|def| def.optional != Optional::Never) => {
                Err(Refusal::Invalid(format!(
                    "{service} is switched off; set `services.{service}.enabled = true` in labd.toml"
                )))
            }
            _ => {
                let names: Vec<&str> = self.p.desired.plan.services.iter().map(|s| s.name.as_str()).collect();
                Err(Refusal::UnknownService(format!("no service `{service}`; there are: {}", names.join(", "))))
            }
        }
    }

    pub(super) fn start(&mut self, service: &str) -> Result<String, Refusal> {
        // A quarantine is ended by its own command: whoever ends it has seen to the GPU.
        let bar = self.bar(service);
        if !self.held.contains_key(service) {
            self.unbarred(service)?;
        }
        let released = self.held.remove(service).is_some();
        if released {
            self.p.journal.set_memory(held_key(service), held_word(None));
        }
        let entry = self.entries.get_mut(service).ok_or(Refusal::ShuttingDown)?;
        if !released && entry.ready() {
            return Ok(format!("{service}: is ready already"));
        }
        entry.memory.reset_failures();
        // What was said of its stop is answered by this.
        entry.touched = None;
        self.note(RecordKind::Action, Some(service), "released", "started by hand");
        self.observe(service);
        Ok(match bar {
            Some(bar) => format!("{service}: is not stopped by hand any more, and not started yet: {}", bar.reason),
            None => format!("{service}: is being started"),
        })
    }

    /// Refuses what a worker cannot do whose GPU cannot be used, and says what ends that.
    fn unbarred(&self, service: &str) -> Result<(), Refusal> {
        match self.bar(service) {
            Some(bar) => Err(Refusal::Barred(format!("{service} cannot be started now: {}", bar.reason))),
            None => Ok(()),
        }
    }

    pub(super) fn hold(&mut self, service: &str) -> String {
        if !self.held.contains_key(service) {
            self.held.insert(service.to_owned(), Hold::Asked);
            self.p.journal.set_memory(held_key(service), held_word(Some(Hold::Asked)));
            self.note(RecordKind::Action, Some(service), "held", "stopped by hand");
        }
        self.observe(service);
        format!("{service}: is being stopped, and held until `labd start {service}`")
    }

    pub(super) fn restart(&mut self, service: &str) -> Result<String, Refusal> {
        if self.held.contains_key(service) {
            return self.start(service);
        }
        self.unbarred(service)?;
        let entry = self.entries.get_mut(service).ok_or(Refusal::ShuttingDown)?;
        entry.memory.reset_failures();
        entry.memory.restart = entry.running().is_some() || entry.acting;
        self.observe(service);
        Ok(format!("{service}: is being restarted"))
    }

    /// Lets services with changed settings be recreated without further waiting (`labd apply`).
    pub(super) fn apply(&mut self) -> Result<String, Refusal> {
        if self.down {
            return Err(Refusal::ShuttingDown);
        }
        let mut names = Vec::new();
        for spec in &self.p.desired.plan.services {
            let Some(entry) = self.entries.get_mut(&spec.name).filter(|e| e.change().is_some()) else { continue };
            entry.applied = Some(entry.hash.clone());
            names.push(spec.name.clone());
        }
        if names.is_empty() {
            return Ok("nothing waits: every container is up to date".to_owned());
        }
        let message = format!("recreated now: {}", names.join(", "));
        self.note(RecordKind::Config, None, "applied", &message);
        self.resync_all();
        Ok(message)
    }

    /// Takes over what came of reading `labd.toml` again.
    pub(super) fn reloaded(&mut self, read: Result<Box<DesiredState>, String>) -> Result<String, Refusal> {
        if self.down {
            return Err(Refusal::ShuttingDown);
        }
        let desired = read.map_err(|reason| {
            self.note(RecordKind::Config, None, "refused", &reason);
            Refusal::Invalid(reason)
        })?;
        let changed = self.replace(*desired);
        // It was planned with the GPUs that were there when the reading began.
        self.mind_gpus();
        let message = if changed.is_empty() {
            "labd.toml was read; no container is concerned".to_owned()
        } else {
            format!(
                "labd.toml was read; concerned: {}; busy services keep their containers until idle, or until `labd apply`",
                changed.join(", ")
            )
        };
        self.note(RecordKind::Config, None, "reloaded", &message);
        Ok(message)
    }

    /// Takes over a new desired state. Returns the services that are concerned.
    pub(super) fn replace(&mut self, desired: DesiredState) -> Vec<String> {
        let before = std::mem::replace(&mut self.p.desired, desired);
        self.gpus_refused = None;
        let now = Timestamp::now();
        let mut changed = Vec::new();
        for spec in self.p.desired.plan.services.clone() {
            let name = spec.name.clone();
            let entry = self.entries.entry(name.clone()).or_insert_with(|| Entry::new(None, now));
            let hash = spec.container.hash();
            let toggled = before.plan.service(&name).is_none_or(|old| old.enabled != spec.enabled);
            if (hash != entry.hash && spec.enabled) || toggled {
                changed.push(name);
                // New settings are a new chance.
                entry.memory.reset_failures();
            }
            entry.network_there = false;
            entry.hash = hash;
            entry.hard = spec.container.hard_hash();
            entry.spec = Some(spec);
        }
        // What is not planned any more becomes a left-over container, and goes.
        for (name, entry) in &mut self.entries {
            if self.p.desired.plan.service(name).is_none() && entry.spec.take().is_some() {
                changed.push(name.clone());
            }
        }
        self.p.images.update(self.p.desired.plan.images.clone(), self.p.desired.config.images.build.clone());
        self.p.config.send_replace(Arc::new(self.p.desired.config.clone()));
        self.p.plan.send_replace(self.p.desired.view.clone());
        self.p.credentials.send_replace(Arc::new(self.p.desired.credentials.clone()));
        self.resync_all();
        changed
    }

    /// Plans again when the GPUs differ from those that were planned with.
    pub(super) fn mind_gpus(&mut self) {
        let (settled, gpus) = {
            let inventory = self.p.gpus.borrow();
            (inventory.settled, inventory.gpus())
        };
        if !settled || self.down || gpus == self.p.desired.gpus || self.gpus_refused.as_ref() == Some(&gpus) {
            return;
        }
        if std::mem::replace(&mut self.replanning, true) {
            return;
        }
        let (plan, tx) = ((self.p.replan)(self.p.desired.config.clone()), self.tx.clone());
        tokio::spawn(async move {
            let _ = tx.send(TaskMsg::Replanned(gpus, plan.await.map(Box::new)));
        });
    }

    /// Takes over the result of [`Self::mind_gpus`].
    pub(super) fn replanned(&mut self, gpus: Vec<Gpu>, result: Result<Box<DesiredState>, String>) {
        self.replanning = false;
        match result {
            // Simulated ones are planned whatever there is.
            Ok(desired) if desired.gpus == self.p.desired.gpus => self.gpus_refused = Some(gpus),
            Ok(desired) => {
                let before: Vec<String> = self.p.desired.gpus.iter().map(|g| g.id.clone()).collect();
                let line = gpu_change(&before, &desired.gpus);
                self.note(RecordKind::Daemon, None, "gpus", &line);
                self.replace(*desired);
                // They may have become others again meanwhile.
                self.mind_gpus();
            }
            Err(reason) => {
                self.gpus_refused = Some(gpus);
                self.note(
                    RecordKind::Daemon,
                    None,
                    "gpus",
                    &format!("GPUs changed and cannot be planned with: {reason}"),
                );
            }
        }
    }

    /// Whether the lab is down: no container left but those that the engine does not take away, and the network gone.
    pub(super) fn finished(&mut self) -> bool {
        if self.given_up {
            return true;
        }
        let now = Now::read();
        let there = |e: &&Entry| e.acting || e.observing.is_some() || matches!(e.seen, Some(Observed::Ours(_)));
        let left: Vec<Option<String>> =
            self.entries.values().filter(there).map(|e| e.memory.stays(now).map(str::to_owned)).collect();
        if !left.is_empty() && left.iter().all(Option::is_some) {
            for (name, entry) in self.entries.iter().filter(|(_, e)| there(e)) {
                let container = self.p.desired.plan.container_name(name);
                let why = entry.memory.stays(now).unwrap_or_default();
                let line = format!("the container {container} is left: {why}");
                tracing::error!("{line}");
                self.note(RecordKind::Daemon, Some(name), "left", &line);
            }
            return true;
        }
        let gone = self
            .entries
            .values()
            .all(|e| !e.acting && e.observing.is_none() && !matches!(e.seen, Some(Observed::Ours(_))));
        if !gone || !self.listed_empty {
            if gone {
                self.list();
            }
            return false;
        }
        true
    }

    pub(super) async fn clear_network(&self) {
        if self.given_up {
            return;
        }
        match tokio::time::timeout(RESYNC, self.p.engine.remove_network()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the lab's network is left"),
            Err(_) => tracing::warn!("the lab's network is left: the engine did not answer"),
        }
    }
}

/// GPUs that came and went, in one line.
fn gpu_change(before: &[String], now: &[Gpu]) -> String {
    let came: Vec<&str> = now.iter().map(|g| g.id.as_str()).filter(|id| !before.iter().any(|b| b == id)).collect();
    let went: Vec<&str> = before.iter().map(String::as_str).filter(|id| !now.iter().any(|g| g.id == *id)).collect();
    let part = |word: &str, ids: &[&str]| (!ids.is_empty()).then(|| format!("{word} {}", ids.join(", ")));
    let parts: Vec<String> = [part("new:", &came), part("gone:", &went)].into_iter().flatten().collect();
    if parts.is_empty() { "the devices that containers get of the GPUs changed".to_owned() } else { parts.join("; ") }
}

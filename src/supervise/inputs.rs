//! Inputs of a decision about a service, beside the observation of its container.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::{
    decide::{
        self, GpuBlock, Health, Image, Wanted,
        rollout::{self, Peer, RolloutTurn, Work},
    },
    health_check,
    memory::{change_key, disk_key, held_key, held_word},
    service::Entry,
    supervisor::Supervisor,
};
use crate::{
    checkpoints::Store,
    engine::{Engine, images::ImageState},
    gpus::Unit,
    journal::Kind as RecordKind,
    node::disk_guard,
    ray::{Endpoint, Gcs, TrainRun},
    services::ray_head,
    snapshot::{GpuState, GpuTrouble, ServiceState},
    spec::{Kind, Probe, Recreate, Requirement, ServiceSpec},
    time::{Moment, Now, Timestamp},
};

impl<E: Engine> Supervisor<E> {
    /// Points Ray's watcher at the head.
    pub(super) fn set_endpoint(&self) {
        let head = self.entries.values().find(|e| e.kind() == Some(Kind::RAY_HEAD));
        let endpoint = head.and_then(|head| {
            let (container, _) = head.running()?;
            let at = |ip, port: u16| container.ports.get(&port).map(|&p| SocketAddr::new(ip, p));
            Some(Endpoint {
                gcs: at(self.publish_ip(), ray_head::GCS_PORT)?,
                dashboard: at(Ipv4Addr::LOCALHOST.into(), ray_head::DASHBOARD_PORT)?,
                token: self.p.desired.ray_token.clone(),
                spares: self.p.desired.config.ray.warm_starts,
            })
        });
        self.p.ray.set_planned(self.ray_nodes());
        self.p.ray.set_endpoint(endpoint);
        self.p.checkpoints.set_endpoint(self.p.desired.store.clone().or_else(|| self.minio()));
    }

    /// Addresses of all that is planned as a node of Ray.
    fn ray_nodes(&self) -> BTreeSet<Ipv4Addr> {
        let specs = self.entries.values().filter_map(|e| e.spec.as_ref());
        specs.filter(|s| s.enabled && s.kind.is_ray_node()).map(|s| s.container.address).collect()
    }

    /// MinIO as a store, while it is ready.
    pub(super) fn minio(&self) -> Option<Store> {
        // One that starts or hangs says so itself; what was seen in it stays.
        let entry = self.entries.values().find(|e| e.kind() == Some(Kind::MINIO) && e.ready())?;
        let Probe::Minio { port, bucket, region, user, .. } = &entry.spec.as_ref()?.probe else {
            return None;
        };
        let port = *entry.running()?.0.ports.get(port)?;
        Some(Store {
            endpoint: format!("http://{}", SocketAddr::new(self.publish_ip(), port)).parse().ok()?,
            bucket: bucket.clone(),
            region: region.clone(),
            access_key: user.access.clone(),
            secret_key: user.secret.clone(),
        })
    }

    /// Records every file system that crossed a threshold in the journal.
    pub(super) fn guard_disks(&mut self) {
        let disks = self.p.node.borrow().disks.clone();
        for disk in disks.iter().filter(|d| !self.disks.contains_key(&d.mount)).collect::<Vec<_>>() {
            // A restarted labd does not tell again what it told before.
            let told = self.p.journal.memory(&disk_key(&disk.mount));
            let level = disk_guard::Level::ALL.into_iter().find(|level| told.as_deref() == Some(level.as_str()));
            self.disks.insert(disk.mount.clone(), level.unwrap_or_default());
        }
        for crossing in disk_guard::look(&mut self.disks, &disks) {
            self.p.journal.set_memory(disk_key(&crossing.mount), crossing.to.as_str());
            self.note(RecordKind::Daemon, None, crossing.to.as_str(), &crossing.text);
        }
    }

    /// Records every image that cannot be had in the journal, once for each reason, and again when it is there after
    /// all.
    pub(super) fn tell_images(&mut self) {
        let mut news = Vec::new();
        for (name, state) in self.p.images.watch().borrow().iter() {
            match state {
                ImageState::Unavailable { reason, .. } => {
                    if self.no_image.insert(*name, reason.clone()).as_ref() != Some(reason) {
                        news.push(("unavailable", format!("{} image: {reason}", name.as_str())));
                    }
                }
                ImageState::Present { .. } => {
                    if self.no_image.remove(name).is_some() {
                        news.push(("present", format!("{} image: is there", name.as_str())));
                    }
                }
                ImageState::Unknown | ImageState::Missing | ImageState::Preparing { .. } => {}
            }
        }
        for (what, line) in news {
            self.note(RecordKind::Image, None, what, &line);
        }
    }

    /// Address at which published ports are reached from here.
    pub(super) fn publish_ip(&self) -> IpAddr {
        health_check::reached_at(self.p.desired.config.network.publish)
    }

    pub(super) fn wanted(&self, name: &str) -> Wanted {
        let enabled = self.entries.get(name).and_then(|e| e.spec.as_ref()).is_some_and(|s| s.enabled);
        match (self.down, enabled, self.held.get(name)) {
            (true, _, _) | (_, false, _) => Wanted::Off,
            (false, true, Some(hold)) => Wanted::Held(*hold),
            (false, true, None) if self.bar(name).is_some() => Wanted::Barred,
            (false, true, None) => Wanted::Up,
        }
    }

    /// Block on a worker's GPU, if there is one.
    pub(super) fn bar(&self, name: &str) -> Option<GpuBlock> {
        bar(self.p.gpus.borrow().of_worker(name)?)
    }

    /// Health of a worker whose processes lost their state on the GPU to a fault that came after its start.
    pub(super) fn void(&self, name: &str) -> Option<Health> {
        let (since, reason) = self.p.gpus.borrow().of_worker(name)?.restart.clone()?;
        let entry = self.entries.get(name)?;
        let (_, started_at) = entry.running()?;
        if entry.started_after == Some(since) {
            return None;
        }
        // A fault in the future was before the clock was set back: what has been started since may be of an earlier time.
        (started_at < since && since <= Timestamp::now()).then_some(Health::Gone { reason, since })
    }

    /// Whether the service stops last on the way down, as the head and MinIO do: a Ray node without its head waits for
    /// it until it is killed, and a run's last checkpoint needs its store.
    pub(super) fn carries_others(&self, name: &str) -> bool {
        let carries = self.entries.get(name).and_then(|e| e.spec.as_ref()).is_some_and(|s| s.stops_last);
        let now = Now::read();
        let needs = |e: &Entry| e.kind().is_some_and(Kind::is_ray_node) && e.running().is_some();
        carries && self.entries.values().any(|e| needs(e) && e.memory.stays(now).is_none())
    }

    /// Derives from the observation whether a person stopped or started the service past labd.
    pub(super) fn mind_hold(&mut self, name: &str) {
        let Some(entry) = self.entries.get_mut(name).filter(|e| e.spec.is_some()) else { return };
        let Some(seen) = &entry.seen else { return };
        let before = self.held.get(name).copied();
        let after = decide::hold(before, seen, entry.touched.as_ref(), Timestamp::now());
        if before == after {
            return;
        }
        if let Some(hold) = after {
            self.held.insert(name.to_owned(), hold);
        } else {
            self.held.remove(name);
            entry.memory.reset_failures();
        }
        self.p.journal.set_memory(held_key(name), held_word(after));
        match (before, after) {
            (None, _) => self.note(RecordKind::Action, Some(name), "held", "stopped by hand (docker stop)"),
            (_, None) => self.note(RecordKind::Action, Some(name), "released", "started by hand (docker start)"),
            _ => {}
        }
    }

    pub(super) fn unmet(&self, name: &str) -> Option<String> {
        let spec = self.entries.get(name)?.spec.as_ref()?;
        if spec.kind == Kind::RAY_WORKER && !self.p.gpus.borrow().settled {
            return Some("waits until the GPUs are checked".to_owned());
        }
        spec.requires.iter().find_map(|requirement| match requirement {
            Requirement::Ready(other) => {
                let ready = self.entries.get(other).is_some_and(Entry::ready);
                (!ready).then(|| format!("waits for {other}"))
            }
            Requirement::Gcs => {
                let reachable = self.p.ray.watch().borrow().gcs == Gcs::Reachable;
                (!reachable).then(|| "waits for ray-head".to_owned())
            }
        })
    }

    /// Whether a service whose container differs from the wanted one may be recreated now.
    pub(super) fn turn(&self, name: &str, now: Moment) -> RolloutTurn {
        if self.entries.get(name).and_then(Entry::change).is_none() {
            return RolloutTurn::Now;
        }
        let lab = self.lab_work();
        // In the plan's order: `ray-worker-10` comes after `ray-worker-9`.
        let services = self.p.desired.plan.services.iter().filter(|s| s.enabled);
        let peers: Vec<Peer<'_>> =
            services.filter_map(|s| Some(self.peer(s, self.entries.get(&s.name)?, &lab, now))).collect();
        let me = peers.iter().position(|p| p.name == name).unwrap_or(usize::MAX);
        rollout::turn(&peers, me)
    }

    pub(super) fn peer<'a>(&self, spec: &'a ServiceSpec, entry: &Entry, lab: &Work, now: Moment) -> Peer<'a> {
        use ServiceState as S;
        let broken = matches!(entry.state, S::CrashLoop | S::Blocked | S::Unavailable);
        // One that has not answered for so long was asked often enough, after labd's own restart too.
        let silent = matches!(&entry.health, Health::Failing { since, .. } if now.since(*since) >= decide::HUNG_AFTER);
        let never =
            !entry.ready() && entry.state != S::Unhealthy && silent && !matches!(spec.recreate, Recreate::NextStop(_));
        let window = self.p.desired.config.lab.change_window.get();
        let waited = entry.changed.as_ref().is_some_and(|(_, since)| now.since(*since) >= window);
        let work = match spec.recreate {
            Recreate::NodeIdle => self.work_on(spec.container.address),
            Recreate::NoJob => lab.clone(),
            // It does not say what runs in its kernels.
            Recreate::NextStop(_) => Work::Busy("its next stop".to_owned()),
            Recreate::AtOnce => Work::None,
        };
        Peer {
            name: &spec.name,
            recreate: spec.recreate,
            counts: self.wanted(&spec.name) == Wanted::Up,
            ready: entry.ready() && !entry.acting,
            fails: broken || never,
            broken,
            change: entry.change(),
            due: entry.applied.as_ref() == Some(&entry.hash) || (waited && spec.recreate == Recreate::NoJob),
            work: entry.interrupted.clone().unwrap_or(work),
        }
    }

    /// Work on the Ray node at this address.
    pub(super) fn work_on(&self, address: Ipv4Addr) -> Work {
        let view = self.p.ray.watch().borrow().clone();
        let Some(node) = view.nodes.iter().find(|n| n.address == address && n.alive) else { return Work::Unknown };
        if view.gcs != Gcs::Reachable || node.available.is_empty() {
            return Work::Unknown;
        }
        if !node.is_busy() {
            return Work::None;
        }
        let trains = |run: &&TrainRun| {
            let last = run.attempts.last().filter(|_| run.status.is_active());
            last.is_some_and(|attempt| attempt.ended_at.is_none() && attempt.workers.contains(&address))
        };
        let run = view.runs.iter().find(trains);
        Work::Busy(run.map_or_else(|| "what runs on it".to_owned(), |run| format!("run {}", run.name)))
    }

    /// Work in the lab as a whole.
    pub(super) fn lab_work(&self) -> Work {
        let ledger = self.p.jobs.borrow().clone();
        let open: Vec<&str> =
            ledger.jobs.iter().filter(|j| !j.status.is_final()).map(|j| j.submission_id.as_str()).collect();
        let view = self.p.ray.watch().borrow().clone();
        match open.as_slice() {
            [job] => Work::Busy(format!("job {job}")),
            [_, ..] => Work::Busy(format!("{} jobs", open.len())),
            // What a notebook runs is no job.
            [] if view.nodes.iter().any(|n| n.alive && n.is_busy()) => {
                Work::Busy("what runs in the cluster".to_owned())
            }
            [] if view.gcs != Gcs::Reachable || view.jobs.is_none() => Work::Unknown,
            [] => Work::None,
        }
    }

    /// Keeps the time since which the container has differed from the wanted one, over restarts of labd.
    pub(super) fn mind_change(&mut self, name: &str, turn: &RolloutTurn, now: Now) {
        let Some(entry) = self.entries.get(name) else { return };
        let change = entry.change();
        let interrupted = match (change, turn, &entry.spec) {
            (None, ..) if entry.ready() => Some(None),
            (Some(_), RolloutTurn::Now, Some(spec)) if spec.recreate == Recreate::NodeIdle && entry.ready() => {
                Some(Some(self.work_on(spec.container.address)).filter(|w| *w != Work::Unknown))
            }
            _ => None,
        };
        let Some(entry) = self.entries.get_mut(name) else { return };
        if let Some(work) = interrupted {
            entry.interrupted = work;
        }
        if change.is_none() {
            entry.changed = None;
        } else if entry.changed.as_ref().is_none_or(|(hash, _)| *hash != entry.hash) {
            let kept = self.p.journal.memory(&change_key(name));
            let before = kept.as_deref().and_then(|text| text.split_once(' ')).filter(|(hash, _)| *hash == entry.hash);
            let since = before.and_then(|(_, ms)| ms.parse().ok()).map(Timestamp::from_millis);
            if since.is_none() {
                let line = format!("{} {}", entry.hash, now.wall.as_millis());
                self.p.journal.set_memory(change_key(name), line);
            }
            entry.changed = Some((entry.hash.clone(), since.map_or(now.moment, |at| now.moment_of(at))));
        }
    }

    /// Whether it is a GPU worker, and another one is ready and Ray counts its GPU as free.
    pub(super) fn spare_worker(&self, name: &str) -> bool {
        if self.entries.get(name).and_then(Entry::kind) != Some(Kind::RAY_WORKER) {
            return false;
        }
        let view = self.p.ray.watch().borrow().clone();
        self.entries.iter().any(|(other, e)| {
            let address = e.spec.as_ref().map(|s| s.container.address);
            other != name
                && e.kind() == Some(Kind::RAY_WORKER)
                && e.ready()
                && view.nodes.iter().any(|n| {
                    Some(n.address) == address && n.alive && n.available.get("GPU").is_some_and(|&free| free >= 1.0)
                })
        })
    }

    pub(super) fn image(&self, name: &str) -> Image {
        let Some(image) = self.entries.get(name).and_then(|e| e.spec.as_ref()).map(|s| s.image) else {
            return Image::Present;
        };
        match self.p.images.watch().borrow().get(&image) {
            Some(ImageState::Present { .. }) => Image::Present,
            Some(ImageState::Preparing { detail, .. }) => {
                Image::Preparing(format!("{} image: {detail}", image.as_str()))
            }
            Some(ImageState::Unavailable { reason, .. }) => Image::Unavailable(reason.clone()),
            Some(ImageState::Unknown | ImageState::Missing) | None => {
                Image::Preparing(format!("checking for the {} image", image.as_str()))
            }
        }
    }
}

/// Block on this GPU, if there is one.
fn bar(unit: &Unit) -> Option<GpuBlock> {
    match unit.state {
        GpuState::Ok => None,
        GpuState::Missing => Some(GpuBlock { quarantine: false, reason: format!("waits for its GPU {}", unit.gpu.id) }),
        GpuState::Quarantined => {
            Some(GpuBlock { quarantine: true, reason: quarantined(unit.trouble.as_ref(), &unit.gpu.id) })
        }
    }
}

/// Reason why a worker waits whose GPU is quarantined. How the quarantine ends is said once: most remedies say it.
fn quarantined(trouble: Option<&GpuTrouble>, id: &str) -> String {
    let said = |text: fn(&GpuTrouble) -> &str| trouble.map_or("", text);
    let (meaning, remedy) = (said(|t| &t.meaning), said(|t| &t.remedy));
    let release = format!("`labd gpu release {id}`");
    let end = if remedy.contains(&release) { String::new() } else { format!("; then {release}") };
    format!("its GPU is quarantined: {meaning}; {}{end}", remedy.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpus::{faults, health};

    #[test]
    fn how_a_quarantine_ends_is_said_once_whatever_the_remedy() {
        for fault in faults::all().filter(|fault| fault.action == faults::Action::Quarantine) {
            let trouble = GpuTrouble {
                code: fault.code.to_owned(),
                meaning: fault.meaning.to_owned(),
                remedy: fault.remedy_for(Some("0000:41:00.0"), Some("GPU-1")),
                since: Timestamp::from_millis(0),
            };
            let reason = quarantined(Some(&trouble), "GPU-1");
            assert_eq!(reason.matches("labd gpu release").count(), 1, "{reason}");
            assert!(!reason.contains(".;") && health::by_code(fault.code).is_some(), "{reason}");
        }
    }
}

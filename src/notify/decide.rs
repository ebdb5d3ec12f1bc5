//! Decision what somebody is told, from one snapshot after the other. Pure.
//!
//! What lasts (a crash loop, a quarantine, a full disk, an idle GPU) is a trouble with a key. It is told when it begins, and not
//! again while it comes and goes within a quarter of an hour. What happened once (a job's end) is known by the job. What was so
//! already when labd began to tell is not told; a restarted labd knows what was told before, and tells what is new.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    backoff::HEALTHY,
    config::NotifyEvent,
    history::{BUSY, IDLE},
    node::disk_guard,
    secret::hex,
    snapshot::{EngineView, GpuState, GpuView, JobOutcome, JobStatus, JobView, ServiceState, Snapshot},
    text::{clean, one_line},
    time::{Moment, Now, Timestamp, human},
};

/// Time at the beginning in which what is seen counts as having been so already: the first look at everything takes some
/// seconds, of an engine that just boots a little longer.
const BASELINE: Duration = Duration::from_mins(1);
/// Time for which a trouble that was told is not told again, however often it comes and goes. Chosen, not measured.
pub(super) const QUIET: Duration = Duration::from_mins(15);
/// Time for which a GPU is missing before that is told: after a boot the driver takes some minutes at most.
const MISSING: Duration = Duration::from_mins(5);
/// Time for which everything works before the lab counts as whole: as long as a service takes to be healthy.
const WHOLE: Duration = HEALTHY;
/// Number of ended jobs that are remembered: more than the snapshot shows, since older ones can come into view again.
const ENDED: usize = 200;
/// Age from which on a job's end is no news any more.
const OLD: Duration = Duration::from_hours(24);
/// Largest number of characters of a notification.
const LONGEST: usize = 300;

/// Notification that arises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    /// Event, by which targets choose.
    pub(super) event: NotifyEvent,
    /// Time at which it was seen.
    pub(super) at: Timestamp,
    /// Text, in one line.
    pub(super) text: String,
}

/// Memory for the next labd.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Memory {
    since: Timestamp,
    ended: Vec<String>,
    told: BTreeMap<String, Timestamp>,
}

/// Trouble that lasts, or did a moment ago.
#[derive(Debug, Clone, PartialEq)]
struct Trouble {
    /// Moment at which it began.
    since: Moment,
    /// Whether it is told of, or need not be.
    settled: bool,
    /// Moment at which it was told last.
    told: Option<Moment>,
    /// Moment from which on it may be told.
    due: Moment,
    /// Moment since which it is over.
    gone: Option<Moment>,
    /// Number of times that it began since it was told last.
    times: u32,
}

/// Trouble as it is seen now.
enum Sight {
    /// It is there.
    There {
        event: NotifyEvent,
        text: String,
        /// Time for which it must last before it is told.
        after: Duration,
        /// Whether it may have been so before labd looked.
        old: bool,
    },
    /// Neither there nor over: a service in a crash loop is between two tries.
    Between,
    /// It is not there, and counts as over when that has lasted for so long.
    Gone(Duration),
}

/// The decider.
#[derive(Debug)]
pub(super) struct Decider {
    /// Time from which on jobs' ends are told.
    since: Timestamp,
    /// Moment until which what is seen was so already.
    baseline: Option<Moment>,
    /// Fingerprints of jobs whose end is known, oldest first.
    ended: VecDeque<String>,
    troubles: BTreeMap<String, Trouble>,
    /// Services that the lab does without, also while their image is tried again.
    without: BTreeSet<String>,
    /// Moment since which everything works.
    whole: Option<Moment>,
    /// Whether that was said.
    whole_said: bool,
    /// Whether the memory changed since it was last asked for.
    dirty: bool,
}

impl Decider {
    /// Decider with the memory of the labd before, or one that begins now.
    pub(super) fn new(memory: Option<Memory>, now: Now) -> Self {
        let begins = memory.is_none();
        let memory = memory.unwrap_or_else(|| Memory { since: now.wall, ..Memory::default() });
        let known = |(key, at): (String, Timestamp)| {
            let told = Some(now.moment_of(at));
            let trouble = Trouble { since: now.moment, settled: true, told, due: now.moment, gone: None, times: 0 };
            (key, trouble)
        };
        Self {
            since: memory.since,
            baseline: begins.then(|| now.moment.plus(BASELINE)),
            ended: memory.ended.into(),
            troubles: memory.told.into_iter().map(known).collect(),
            without: BTreeSet::new(),
            whole: None,
            whole_said: false,
            dirty: begins,
        }
    }

    /// Memory for the next labd, if it is another one than when it was last asked for.
    pub(super) fn take_memory(&mut self, now: Now) -> Option<Memory> {
        std::mem::take(&mut self.dirty).then(|| self.memory(now))
    }

    /// Memory for the next labd.
    pub(super) fn memory(&self, now: Now) -> Memory {
        let told = self.troubles.iter().filter(|(_, t)| t.settled);
        Memory {
            since: self.since,
            ended: self.ended.iter().cloned().collect(),
            told: told.map(|(key, t)| (key.clone(), now.wall_at(t.told.unwrap_or(t.since)))).collect(),
        }
    }

    /// Moment at which something may arise though nothing happens.
    pub(super) fn next(&self) -> Option<Moment> {
        let pending = self.troubles.values().filter(|t| !t.settled && t.gone.is_none()).map(|t| t.due);
        let whole = self.whole.filter(|_| !self.whole_said).map(|since| since.plus(WHOLE));
        pending.chain(whole).min()
    }

    /// Notifications that arise from this look at the lab.
    pub(super) fn observe(&mut self, snapshot: &Snapshot, now: Now) -> Vec<News> {
        if self.baseline.is_some_and(|until| now.moment >= until) {
            self.baseline = None;
        }
        let mut news = Vec::new();
        let mut say = |event, text: &str| news.push(News { event, at: now.wall, text: line(text) });
        self.jobs(&snapshot.jobs, now, &mut say);
        self.services(snapshot, now, &mut say);
        self.gpus(snapshot, now, &mut say);
        self.disks(snapshot, now, &mut say);
        self.whole(snapshot, now, &mut say);
        news
    }

    fn jobs(&mut self, jobs: &[JobView], now: Now, say: &mut impl FnMut(NotifyEvent, &str)) {
        // Newest first in the snapshot.
        for job in jobs.iter().rev().filter(|job| is_over(job)) {
            let mark = fingerprint(job);
            if self.ended.contains(&mark) {
                continue;
            }
            self.ended.push_back(mark);
            self.ended.drain(..self.ended.len().saturating_sub(ENDED));
            self.dirty = true;
            let at = job.ended_at.unwrap_or(now.wall);
            if at < self.since || now.wall.since(at) > OLD {
                continue;
            }
            let began = |id: &str| jobs.iter().find(|j| j.submission_id == id).and_then(|j| j.submitted_at);
            let first = job.resubmission_of.as_deref().and_then(began).or(job.submitted_at);
            let (event, text) = of_job(job, first.map(|first| at.since(first)));
            say(event, &text);
        }
    }

    fn services(&mut self, snapshot: &Snapshot, now: Now, say: &mut impl FnMut(NotifyEvent, &str)) {
        use ServiceState as S;
        if snapshot.services.is_empty() {
            return;
        }
        let mut seen = Vec::new();
        for service in &snapshot.services {
            let sight = match service.state {
                S::CrashLoop => Sight::There {
                    event: NotifyEvent::CrashLoop,
                    text: format!("{} is in a crash loop: {}", service.name, service.last_reason),
                    after: Duration::ZERO,
                    old: true,
                },
                S::Ready | S::Off | S::Held => Sight::Gone(HEALTHY),
                _ if service.is_done_without() => Sight::Gone(HEALTHY),
                _ => Sight::Between,
            };
            seen.push((format!("crash-loop/{}", service.name), sight));
        }
        self.look("crash-loop/", seen, now, say);
    }

    fn gpus(&mut self, snapshot: &Snapshot, now: Now, say: &mut impl FnMut(NotifyEvent, &str)) {
        if snapshot.gpus.is_empty() {
            return;
        }
        let mut states = Vec::new();
        let mut idle = Vec::new();
        for gpu in &snapshot.gpus {
            let what = |word: &str| match &gpu.trouble {
                Some(t) => format!("{} is {word}: {}; {}", name_of(gpu), t.meaning, t.remedy),
                None => format!("{} is {word}", name_of(gpu)),
            };
            let there = |word, after| {
                let event = NotifyEvent::GpuQuarantined;
                Sight::There { event, text: what(word), after, old: true }
            };
            let sight = match gpu.state {
                GpuState::Quarantined => there("quarantined", Duration::ZERO),
                GpuState::Missing => there("missing", MISSING),
                GpuState::Ok => Sight::Gone(Duration::ZERO),
            };
            states.push((format!("gpu/{}/{}", gpu.id, gpu.state.as_str()), sight));
            if let Some(job) = idle_holder(gpu, &snapshot.jobs) {
                let text = format!(
                    "{} has been idle for {}: {} holds it and uses less than {BUSY} % of it",
                    name_of(gpu),
                    human(IDLE),
                    title(job)
                );
                let sight = Sight::There { event: NotifyEvent::GpuIdle, text, after: IDLE, old: false };
                idle.push((format!("idle/{}/{}", gpu.id, fingerprint(job)), sight));
            }
        }
        self.look("gpu/", states, now, say);
        self.look("idle/", idle, now, say);
    }

    fn disks(&mut self, snapshot: &Snapshot, now: Now, say: &mut impl FnMut(NotifyEvent, &str)) {
        let disks = &snapshot.node.disks;
        if disks.is_empty() {
            return;
        }
        let mut seen = Vec::new();
        for disk in disks {
            let key = format!("disk/{}", disk.mount);
            let before = self.troubles.get(&key).is_some_and(|t| t.gone.is_none());
            let sight = if disk_guard::is_full(disk, before) {
                let text = format!("{}: remove what is not needed", disk_guard::fill(disk));
                Sight::There { event: NotifyEvent::DiskFull, text, after: Duration::ZERO, old: true }
            } else {
                Sight::Gone(Duration::ZERO)
            };
            seen.push((key, sight));
        }
        self.look("disk/", seen, now, say);
    }

    /// Compares what is seen of all troubles of one kind with what is known of them. What is not seen any more is over.
    fn look(&mut self, kind: &str, seen: Vec<(String, Sight)>, now: Now, say: &mut impl FnMut(NotifyEvent, &str)) {
        let of_kind = self.troubles.keys().filter(|key| key.starts_with(kind));
        let unseen: Vec<String> = of_kind.filter(|key| seen.iter().all(|(k, _)| k != *key)).cloned().collect();
        let at = now.moment;
        for (key, sight) in seen.into_iter().chain(unseen.into_iter().map(|key| (key, Sight::Gone(Duration::ZERO)))) {
            match sight {
                Sight::There { event, text, after, old } => {
                    let settled = old && self.baseline.is_some();
                    self.dirty |= settled && !self.troubles.contains_key(&key);
                    let begun = Trouble { since: at, settled, told: None, due: at, gone: None, times: 1 };
                    let trouble = self.troubles.entry(key).or_insert(begun);
                    let came_back = trouble.gone.take().is_some();
                    if trouble.settled {
                        continue;
                    }
                    if came_back {
                        trouble.since = at;
                        trouble.times += 1;
                    }
                    let quiet_until = trouble.told.map(|told| told.plus(QUIET));
                    trouble.due = trouble.since.plus(after).max(quiet_until.unwrap_or(at));
                    if at < trouble.due {
                        continue;
                    }
                    let again = match trouble.times {
                        0 | 1 => String::new(),
                        times => format!(" ({times} times since it was last told)"),
                    };
                    say(event, &format!("{text}{again}"));
                    (trouble.settled, trouble.told, trouble.times) = (true, Some(at), 0);
                    self.dirty = true;
                }
                Sight::Between => {
                    if let Some(trouble) = self.troubles.get_mut(&key).filter(|t| t.settled) {
                        trouble.gone = None;
                    }
                }
                Sight::Gone(steady) => {
                    let Some(trouble) = self.troubles.get_mut(&key) else { continue };
                    let gone = *trouble.gone.get_or_insert(at);
                    if at.since(gone) < steady {
                        continue;
                    }
                    self.dirty |= std::mem::take(&mut trouble.settled);
                    if trouble.told.is_none_or(|told| at.since(told) >= QUIET) {
                        self.troubles.remove(&key);
                        self.dirty = true;
                    }
                }
            }
        }
    }

    fn whole(&mut self, snapshot: &Snapshot, now: Now, say: &mut impl FnMut(NotifyEvent, &str)) {
        let trouble = |key: &str, t: &Trouble| !key.starts_with("idle/") && t.gone.is_none();
        for service in &snapshot.services {
            match service.state {
                _ if service.is_done_without() => drop(self.without.insert(service.name.clone())),
                ServiceState::Preparing => {}
                _ => drop(self.without.remove(&service.name)),
            }
        }
        let works = works(snapshot, &self.without) && !self.troubles.iter().any(|(key, t)| trouble(key, t));
        if !works {
            (self.whole, self.whole_said) = (None, false);
            return;
        }
        let since = *self.whole.get_or_insert(now.moment);
        if !self.whole_said && now.moment.since(since) >= WHOLE {
            self.whole_said = true;
            let ready = snapshot.services.iter().filter(|s| s.state == ServiceState::Ready).count();
            say(NotifyEvent::LabWhole, &format!("the lab is whole again: {ready} services are ready"));
        }
    }
}

/// Whether engine and services work as they are meant to: what a person has stopped is not, nor what has no image, without which
/// the rest runs. Of GPUs and disks the troubles tell.
fn works(snapshot: &Snapshot, without: &BTreeSet<String>) -> bool {
    use ServiceState as S;
    !snapshot.services.is_empty()
        && matches!(snapshot.engine, EngineView::Reachable { .. })
        && snapshot.services.iter().all(|s| matches!(s.state, S::Ready | S::Off | S::Held) || without.contains(&s.name))
}

/// Whether nothing more becomes of a job: one that was lost and submitted again continues, and of one that came through the
/// front door the ledger says what its end means.
fn is_over(job: &JobView) -> bool {
    let judged = job.attempt.is_none() || job.outcome.is_some();
    job.status.is_final() && judged && job.resubmitted_as.is_none()
}

/// Job as it is remembered: an id can be used again.
fn fingerprint(job: &JobView) -> String {
    let at = job.submitted_at.map_or(0, Timestamp::as_millis);
    hex(&Sha256::digest(format!("{}\n{at}", job.submission_id)))[..16].to_owned()
}

/// Event and text of a job's end.
fn of_job(job: &JobView, took: Option<Duration>) -> (NotifyEvent, String) {
    let title = title(job);
    let took = took.map(|took| format!(" after {}", human(took))).unwrap_or_default();
    let attempt = job.attempt.filter(|&n| n > 1).map(|n| format!(", attempt {n}")).unwrap_or_default();
    let why = if job.message.is_empty() { String::new() } else { format!(": {}", job.message) };
    match (job.outcome, job.status) {
        (Some(JobOutcome::Lost), _) => (NotifyEvent::JobLost, format!("{title} is lost for good{took}{attempt}{why}")),
        (Some(JobOutcome::Stopped), _) | (None, JobStatus::Stopped) => {
            (NotifyEvent::RunEnded, format!("{title} was stopped{took}{attempt}"))
        }
        (Some(JobOutcome::Failed), _) | (None, JobStatus::Failed) => {
            (NotifyEvent::RunEnded, format!("{title} failed{took}{attempt}{why}"))
        }
        _ => (NotifyEvent::RunEnded, format!("{title} succeeded{took}{attempt}")),
    }
}

/// Job as a person knows it.
fn title(job: &JobView) -> String {
    match &job.run {
        Some(run) if *run != job.submission_id => format!("run {run} (job {})", job.submission_id),
        Some(run) => format!("run {run}"),
        None => format!("job {}", job.submission_id),
    }
}

fn name_of(gpu: &GpuView) -> String {
    match &gpu.worker {
        Some(worker) => format!("GPU {} ({worker})", gpu.id),
        None => format!("GPU {}", gpu.id),
    }
}

/// Job that holds a GPU and hardly uses it, as far as its reading tells.
fn idle_holder<'a>(gpu: &GpuView, jobs: &'a [JobView]) -> Option<&'a JobView> {
    let worker = gpu.worker.as_ref()?;
    let reading = gpu.reading.as_ref()?;
    let idle = reading.asleep || reading.utilisation_percent.is_some_and(|percent| percent < BUSY);
    idle.then(|| jobs.iter().find(|job| job.runs_on(worker))).flatten()
}

/// Text in one line that steers and hides nothing, wherever it is shown: names and reasons in it are others'.
fn line(text: &str) -> String {
    one_line(&clean(text), LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::testing::a_snapshot,
        snapshot::{DiskView, GpuTrouble, Reading},
    };

    const BEGAN: i64 = 1_795_500_000_000;

    fn at(s: i64) -> Now {
        Timestamp::from_millis(BEGAN + s * 1_000).into()
    }

    /// Decider that has begun long ago, and a lab of which it has seen nothing bad.
    fn begun() -> (Decider, Snapshot) {
        let memory = Memory { since: Timestamp::from_millis(BEGAN - 1), ..Memory::default() };
        let mut lab = a_snapshot();
        lab.node.disks = vec![disk(50)];
        (Decider::new(Some(memory), at(0)), lab)
    }

    fn disk(used: u64) -> DiskView {
        DiskView { mount: "/data".into(), total_bytes: 100 << 30, available_bytes: (100 - used) << 30, device: None }
    }

    fn told(decider: &mut Decider, lab: &Snapshot, s: i64) -> Vec<(NotifyEvent, String)> {
        decider.observe(lab, at(s)).into_iter().map(|news| (news.event, news.text)).collect()
    }

    fn events(decider: &mut Decider, lab: &Snapshot, s: i64) -> Vec<NotifyEvent> {
        told(decider, lab, s).into_iter().map(|(event, _)| event).collect()
    }

    fn ended(status: JobStatus, outcome: Option<JobOutcome>) -> Snapshot {
        let mut lab = a_snapshot();
        let job = &mut lab.jobs[0];
        job.submitted_at = Some(at(0).wall);
        job.ended_at = Some(at(7_200).wall);
        (job.status, job.outcome) = (status, outcome);
        lab
    }

    #[test]
    fn each_end_of_a_job_is_told_once_and_in_its_words() {
        use JobOutcome as O;
        use JobStatus as S;
        for (status, outcome, message, want) in [
            (S::Succeeded, Some(O::Succeeded), "", Some("job raysubmit_1 succeeded after 2 h")),
            (S::Stopped, Some(O::Stopped), "stopped by a person", Some("job raysubmit_1 was stopped after 2 h")),
            (S::Failed, Some(O::Failed), "exit\n1\u{1b}[2J", Some("job raysubmit_1 failed after 2 h: exit 1 [2J")),
            (
                S::Failed,
                Some(O::Lost),
                "lost (x); no",
                Some("job raysubmit_1 is lost for good after 2 h: lost (x); no"),
            ),
            (S::Failed, None, "", None),
            (S::Running, None, "", None),
        ] {
            let (mut decider, _) = begun();
            let mut lab = ended(status, outcome);
            lab.jobs[0].message = message.into();
            let first = told(&mut decider, &lab, 7_201);
            assert_eq!(first.first().map(|(_, text)| text.as_str()), want, "{status:?} {outcome:?}");
            let event = if outcome == Some(O::Lost) { NotifyEvent::JobLost } else { NotifyEvent::RunEnded };
            assert!(first.iter().all(|(e, _)| *e == event) && first.len() <= 1);
            assert_eq!(told(&mut decider, &lab, 7_210), []);
        }
    }

    #[test]
    fn a_job_that_is_submitted_again_has_not_ended_and_its_last_attempt_counts_from_the_first() {
        let (mut decider, _) = begun();
        let mut lab = ended(JobStatus::Failed, Some(JobOutcome::Lost));
        lab.jobs[0].resubmitted_as = Some("raysubmit_1-r1".into());
        assert_eq!(told(&mut decider, &lab, 7_201), []);
        let mut last = lab.jobs[0].clone();
        last.submission_id = "raysubmit_1-r1".into();
        last.resubmission_of = Some("raysubmit_1".into());
        (last.resubmitted_as, last.run, last.attempt) = (None, Some("food11".into()), Some(2));
        (last.status, last.outcome) = (JobStatus::Succeeded, Some(JobOutcome::Succeeded));
        (last.submitted_at, last.ended_at) = (Some(at(7_200).wall), Some(at(10_800).wall));
        lab.jobs.insert(0, last);
        let text = "run food11 (job raysubmit_1-r1) succeeded after 3 h, attempt 2".to_owned();
        assert_eq!(told(&mut decider, &lab, 10_801)[0], (NotifyEvent::RunEnded, text));
    }

    #[test]
    fn what_ended_before_labd_told_anybody_or_long_ago_is_no_news() {
        let lab = ended(JobStatus::Succeeded, Some(JobOutcome::Succeeded));
        let mut fresh = Decider::new(None, at(7_201));
        assert_eq!(told(&mut fresh, &lab, 7_300), []);
        let (mut decider, _) = begun();
        assert_eq!(told(&mut decider, &lab, 7_200 + 86_401), []);
        // While labd was away.
        let (mut decider, nothing) = begun();
        told(&mut decider, &nothing, 1);
        let memory = decider.take_memory(at(2)).unwrap_or_else(|| decider.memory(at(2)));
        let mut next = Decider::new(Some(memory), at(8_000));
        assert_eq!(events(&mut next, &lab, 8_001), [NotifyEvent::RunEnded]);
        let memory = next.take_memory(at(8_001)).expect("it changed");
        assert_eq!(events(&mut Decider::new(Some(memory), at(8_002)), &lab, 8_003), []);
    }

    #[test]
    fn a_service_that_flaps_is_told_once_in_a_quarter_of_an_hour() {
        let (mut decider, mut lab) = begun();
        let mut all = Vec::new();
        for s in (0..3_600).step_by(5) {
            lab.services[0].state = match s % 300 {
                0..60 => ServiceState::CrashLoop,
                60..100 => ServiceState::Starting,
                _ => ServiceState::Ready,
            };
            all.extend(told(&mut decider, &lab, s).into_iter().map(|(event, text)| (event, s, text)));
        }
        let loops: Vec<_> = all.iter().filter(|(event, ..)| *event == NotifyEvent::CrashLoop).collect();
        assert_eq!(loops.iter().map(|(_, s, _)| *s).collect::<Vec<_>>(), [0, 900, 1_800, 2_700]);
        assert_eq!(loops[0].2, "ray-head is in a crash loop: answers");
        assert!(loops[1].2.ends_with("(3 times since it was last told)"), "{}", loops[1].2);
    }

    #[test]
    fn one_crash_loop_is_one_however_often_it_is_tried_and_its_end_makes_the_lab_whole() {
        let (mut decider, mut lab) = begun();
        lab.services[0].state = ServiceState::CrashLoop;
        assert_eq!(events(&mut decider, &lab, 0), [NotifyEvent::CrashLoop]);
        for s in 1..60 {
            // Once it even works, but for a minute alone.
            lab.services[0].state = match s {
                31 => ServiceState::Ready,
                _ => [ServiceState::Starting, ServiceState::CrashLoop][usize::from(s % 2 == 0)],
            };
            assert_eq!(told(&mut decider, &lab, s * 60), []);
        }
        lab.services[0].state = ServiceState::Ready;
        assert_eq!(told(&mut decider, &lab, 3_600), []);
        assert_eq!(decider.next(), Some(at(3_720).moment), "nothing needs to happen for it");
        assert_eq!(events(&mut decider, &lab, 3_720), [NotifyEvent::LabWhole]);
        assert_eq!((told(&mut decider, &lab, 9_999), decider.next()), (vec![], None));
    }

    #[test]
    fn a_lab_is_whole_when_all_that_is_meant_to_work_does() {
        let spoil: [fn(&mut Snapshot); 5] = [
            |lab| lab.services[0].state = ServiceState::Unhealthy,
            |lab| lab.gpus[0].state = GpuState::Missing,
            |lab| lab.node.disks = vec![disk(97)],
            |lab| lab.engine = EngineView::Connecting,
            |lab| lab.services.clear(),
        ];
        for (n, spoil) in spoil.into_iter().enumerate() {
            let (mut decider, mut lab) = begun();
            spoil(&mut lab);
            let all: Vec<_> = (0..100).flat_map(|s| events(&mut decider, &lab, s * 10)).collect();
            assert!(!all.contains(&NotifyEvent::LabWhole), "{n}");
        }
        let (mut decider, mut lab) = begun();
        lab.services[0].state = ServiceState::Held;
        told(&mut decider, &lab, 0);
        assert_eq!(events(&mut decider, &lab, 120), [NotifyEvent::LabWhole], "a person stopped it");
        // Without an image, and tried again and again.
        let told = |optional| {
            let (mut decider, mut lab) = begun();
            lab.services[0].optional = optional;
            let all = (30..700).flat_map(|s| {
                let is_tried = s % 300 < 10;
                lab.services[0].state = if is_tried { ServiceState::Preparing } else { ServiceState::Unavailable };
                events(&mut decider, &lab, s * 10)
            });
            all.collect::<Vec<_>>()
        };
        assert_eq!(told(true), [NotifyEvent::LabWhole]);
        assert_eq!(told(false), [], "nothing works without it");
    }

    #[test]
    fn a_gpu_is_told_when_it_is_quarantined_and_when_it_stays_away() {
        let (mut decider, mut lab) = begun();
        lab.gpus[0].state = GpuState::Quarantined;
        let since = at(0).wall;
        let trouble = GpuTrouble { code: "xid-79".into(), meaning: "fell off".into(), remedy: "reboot".into(), since };
        lab.gpus[0].trouble = Some(trouble);
        let text = "GPU SIM-0 (ray-worker-0) is quarantined: fell off; reboot".to_owned();
        assert_eq!(told(&mut decider, &lab, 0), [(NotifyEvent::GpuQuarantined, text)]);
        assert_eq!(told(&mut decider, &lab, 5), []);
        let (mut decider, mut lab) = begun();
        for (from, to) in [(0, 299), (400, 699)] {
            lab.gpus[0].state = GpuState::Missing;
            assert_eq!(told(&mut decider, &lab, from), []);
            assert_eq!(told(&mut decider, &lab, to), []);
            lab.gpus[0].state = GpuState::Ok;
            assert_eq!(told(&mut decider, &lab, to + 1), [], "it came back");
        }
        lab.gpus[0].state = GpuState::Missing;
        told(&mut decider, &lab, 1_000);
        assert_eq!(decider.next(), Some(at(1_300).moment));
        assert_eq!(events(&mut decider, &lab, 1_300), [NotifyEvent::GpuQuarantined]);
    }

    #[test]
    fn a_gpu_is_idle_when_a_job_holds_it_and_uses_nothing_for_half_an_hour() {
        let used = |percent: f32| Some(Reading { utilisation_percent: Some(percent), ..Reading::default() });
        let (_, mut idle) = begun();
        idle.gpus[0].reading = used(2.0);
        idle.jobs[0].workers = vec!["ray-worker-0".into()];
        let with = |change: fn(&mut Snapshot)| {
            let mut lab = idle.clone();
            change(&mut lab);
            lab
        };
        let spike =
            with(|lab| lab.gpus[0].reading = Some(Reading { utilisation_percent: Some(40.0), ..Reading::default() }));
        for (lab, midway, want) in [
            (idle.clone(), idle.clone(), true),
            (idle.clone(), spike, false),
            (with(|lab| lab.jobs[0].workers.clear()), idle.clone(), false),
            (with(|lab| lab.gpus[0].reading = None), idle.clone(), false),
            (with(|lab| lab.jobs[0].status = JobStatus::Pending), idle.clone(), false),
        ] {
            let (mut decider, _) = begun();
            let all: Vec<_> = (0..=1_800)
                .step_by(5)
                .flat_map(|s| {
                    told(&mut decider, if s == 900 { &midway } else { &lab }, s).into_iter().map(move |n| (s, n))
                })
                .filter(|(_, (event, _))| *event == NotifyEvent::GpuIdle)
                .collect();
            assert_eq!(all.len(), usize::from(want), "{all:?}");
            let text = "idle for 30 min: job raysubmit_1 holds it";
            assert!(all.iter().all(|(s, (_, told))| *s == 1_800 && told.contains(text)), "{all:?}");
        }
    }

    #[test]
    fn a_disk_is_told_at_95_percent_and_not_around_it() {
        let (mut decider, mut lab) = begun();
        let mut all = Vec::new();
        for (s, used) in
            [(0, 94), (10, 95), (20, 94), (30, 96), (40, 92), (2_000, 94), (2_010, 97), (2_020, 94), (4_000, 96)]
        {
            lab.node.disks = vec![disk(used)];
            all.extend(told(&mut decider, &lab, s).into_iter().filter(|(e, _)| *e == NotifyEvent::DiskFull).map(|_| s));
        }
        assert_eq!(all, [10, 2_010]);
    }

    #[test]
    fn what_was_so_already_is_not_told_and_what_was_told_is_not_told_by_the_next_labd() {
        let (_, mut lab) = begun();
        lab.services[0].state = ServiceState::CrashLoop;
        lab.gpus[0].state = GpuState::Quarantined;
        lab.node.disks = vec![disk(97)];
        let mut decider = Decider::new(None, at(0));
        for s in [0, 30, 100, 5_000] {
            assert_eq!(told(&mut decider, &lab, s), [], "{s}");
        }
        let (mut decider, _) = begun();
        assert_eq!(told(&mut decider, &lab, 0).len(), 3);
        let text = serde_json::to_string(&decider.take_memory(at(1)).expect("it changed")).expect("plain data");
        assert_eq!(decider.take_memory(at(1)), None);
        let mut next = Decider::new(serde_json::from_str(&text).expect("just written"), at(60));
        // Nothing is known at first.
        let none = Snapshot::unobserved(lab.labd.clone(), lab.node.clone(), at(60).wall);
        assert_eq!(told(&mut next, &none, 61), []);
        assert_eq!(told(&mut next, &lab, 65), []);
        lab.services[1].state = ServiceState::CrashLoop;
        assert_eq!(events(&mut next, &lab, 70), [NotifyEvent::CrashLoop], "that is new");
        // Long after, when it would be told again if it had been over meanwhile.
        assert_eq!(told(&mut next, &none, 5_000), []);
        assert_eq!(told(&mut next, &lab, 5_005), []);
    }
}

//! Rollout: when a container that differs from the wanted one is recreated. Pure.
//!
//! A *hard* change is one with which the old container does not work any more, such as another address or another GPU: it is
//! recreated now, of the workers one at a time. A *soft* one, such as an upgraded image or another size, may wait: until
//! nothing runs on it, until it ends anyway, or until a person asks for it (`labd apply`). What carries every job waits
//! for the running ones up to `lab.change_window`. Where a change cannot wait any longer, idle workers go first, and those
//! of one run together, so that it is interrupted once.

use std::time::Duration;

use crate::{
    spec::{Change, Recreate},
    time::human,
};

/// Turn of a service with changed settings: whether it may be recreated now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RolloutTurn {
    /// It may be recreated now.
    Now,
    /// It is recreated after this, in words.
    After(String),
}

/// Work that would be lost with a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// No work would be lost.
    None,
    /// It is not known now whether there is any.
    Unknown,
    /// Work in words, such as `run food11`.
    Busy(String),
}

/// Peer: a service as far as the others' turn depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer<'a> {
    /// Name of the service.
    pub name: &'a str,
    /// Kind of work that its recreation would interrupt.
    pub recreate: Recreate,
    /// Whether it is wanted up.
    pub counts: bool,
    /// Whether its contract holds.
    pub ready: bool,
    /// Whether it has shown that it does not come up as it is: nothing is lost with it.
    pub fails: bool,
    /// Whether it fails again and again, or lacks what it needs: it comes back when a person has helped.
    pub broken: bool,
    /// Difference between its container and the wanted one.
    pub change: Option<Change>,
    /// Whether its soft change waits no longer: a person applied it, or the window has passed.
    pub due: bool,
    /// Work that runs on it, or ran until it was recreated.
    pub work: Work,
}

impl Peer<'_> {
    /// Whether it is recreated although something runs on it.
    fn is_forced(&self) -> bool {
        match self.change {
            None => false,
            Some(Change::Hard) => true,
            Some(Change::Soft) => self.due,
        }
    }

    /// Whether it is recreated whatever runs on it, for its own sake or since its run is interrupted anyway: that run
    /// is not interrupted again for the next of its workers.
    fn goes_with(&self, peers: &[Self]) -> bool {
        let interrupted = || peers.iter().any(|p| p.counts && p.is_forced() && p.with(self));
        self.is_forced() || (self.change.is_some() && interrupted())
    }

    /// Whether it is recreated as soon as the others let it.
    fn goes(&self, peers: &[Self]) -> bool {
        self.goes_with(peers) || (self.change.is_some() && self.work == Work::None)
    }

    /// Whether both do the same work, such as the same run.
    fn with(&self, other: &Self) -> bool {
        matches!(&self.work, Work::Busy(_)) && self.work == other.work
    }
}

/// Whether it is `me`'s turn. `peers` are in the plan's order.
pub fn turn(peers: &[Peer<'_>], me: usize) -> RolloutTurn {
    let Some(own) = peers.get(me) else { return RolloutTurn::Now };
    if own.fails {
        return RolloutTurn::Now;
    }
    if !own.goes_with(peers) {
        match &own.work {
            Work::None => {}
            Work::Unknown => return RolloutTurn::After("it is known what runs on it".to_owned()),
            Work::Busy(work) => return RolloutTurn::After(format!("{work} (`labd apply` does it now)")),
        }
    }
    if own.recreate != Recreate::NodeIdle || !own.ready {
        return RolloutTurn::Now;
    }
    // Idle ones first, then one run after the other.
    let rank = |i: usize, peer: &Peer<'_>| {
        (peer.work != Work::None, peers.iter().position(|p| p.counts && p.with(peer)).unwrap_or(i))
    };
    for (i, other) in peers.iter().enumerate() {
        // A broken one is not on its way back, and waiting for it mends nothing.
        if i == me || other.recreate != own.recreate || !other.counts || other.broken || own.with(other) {
            continue;
        }
        if !other.ready || (other.goes(peers) && rank(i, other) < rank(me, own)) {
            return RolloutTurn::After(other.name.to_owned());
        }
    }
    RolloutTurn::Now
}

/// What a change to a service of this kind waits for, in words, where nothing is known of its work.
pub fn waits_for(recreate: Recreate, change: Change, window: Duration) -> String {
    match (change, recreate) {
        (Change::Hard, Recreate::NodeIdle) => "now, one worker at a time".to_owned(),
        (Change::Hard, _) | (Change::Soft, Recreate::AtOnce) => "now".to_owned(),
        (Change::Soft, Recreate::NodeIdle) => "when nothing runs on it".to_owned(),
        (Change::Soft, Recreate::NoJob) => {
            format!("when no job runs, at the latest after {}", human(window))
        }
        (Change::Soft, Recreate::NextStop(sake)) => format!("at its next stop, because of {sake}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn worker(name: &str, work: Work) -> Peer<'_> {
        Peer {
            name,
            recreate: Recreate::NodeIdle,
            counts: true,
            ready: true,
            fails: false,
            broken: false,
            change: Some(Change::Soft),
            due: false,
            work,
        }
    }

    fn busy(run: &str) -> Work {
        Work::Busy(format!("run {run}"))
    }

    fn going(peers: &[Peer<'_>]) -> Vec<usize> {
        (0..peers.len()).filter(|&i| peers[i].change.is_some() && turn(peers, i) == RolloutTurn::Now).collect()
    }

    #[test]
    fn what_works_keeps_its_container_until_it_is_idle_or_somebody_asks() {
        let mut peers = [worker("w0", busy("a")), worker("w1", Work::None), worker("w2", Work::Unknown)];
        assert_eq!(going(&peers), [1]);
        assert_eq!(turn(&peers, 0), RolloutTurn::After("run a (`labd apply` does it now)".into()));
        peers[1].ready = false;
        assert_eq!(going(&peers), [1], "it loses nothing");
        peers[1].change = None;
        peers[0].work = Work::None;
        assert_eq!(turn(&peers, 0), RolloutTurn::After("w1".into()), "one at a time");
        peers[1].ready = true;
        assert_eq!(going(&peers), [0]);
    }

    #[test]
    fn applied_ones_go_idle_first_and_those_of_one_run_together() {
        let mut peers =
            [worker("w0", busy("a")), worker("w1", busy("b")), worker("w2", Work::None), worker("w3", busy("a"))];
        for peer in &mut peers {
            peer.due = true;
        }
        assert_eq!(going(&peers), [2]);
        (peers[2].ready, peers[2].change) = (false, None);
        assert_eq!(going(&peers), [0; 0], "it is on its way back");
        peers[2].ready = true;
        assert_eq!(going(&peers), [0, 3], "the run is interrupted once");
        // One of the two has been stopped already, and its work is remembered.
        peers[0].ready = false;
        assert_eq!(turn(&peers, 3), RolloutTurn::Now);
        assert_eq!(turn(&peers, 1), RolloutTurn::After("w0".into()));
        for i in [0, 3] {
            (peers[i].ready, peers[i].change, peers[i].work) = (true, None, Work::None);
        }
        assert_eq!(going(&peers), [1]);
    }

    #[test]
    fn what_does_not_come_up_or_does_not_work_any_more_is_not_spared() {
        let mut peers = [worker("w0", busy("a")), worker("w1", busy("b")), worker("w2", busy("a"))];
        peers[0].change = Some(Change::Hard);
        assert_eq!(going(&peers), [0, 2], "the run is interrupted anyway");
        (peers[1].ready, peers[1].fails) = (false, true);
        assert_eq!(going(&peers), [1], "the others wait for it");
        let mut jupyter = [Peer {
            recreate: Recreate::NextStop("its kernels"),
            ..worker("jupyter", Work::Busy("its kernels".into()))
        }];
        assert_eq!(going(&jupyter), [0; 0]);
        jupyter[0].change = Some(Change::Hard);
        assert_eq!(going(&jupyter), [0]);
    }

    #[test]
    fn a_broken_worker_keeps_the_others_from_nothing() {
        let broken = Peer { ready: false, fails: true, broken: true, ..worker("w0", Work::None) };
        let peers = [broken, worker("w1", Work::None), worker("w2", Work::None)];
        assert_eq!(going(&peers), [0, 1], "one at a time all the same");
        let on_its_way = Peer { broken: false, fails: false, ready: false, ..worker("w0", Work::None) };
        assert_eq!(turn(&[on_its_way, worker("w1", Work::None)], 1), RolloutTurn::After("w0".into()));
    }

    fn any_work() -> impl Strategy<Value = Work> {
        prop_oneof![Just(Work::None), Just(Work::Unknown), Just(busy("a")), Just(busy("b"))]
    }

    fn any_change() -> impl Strategy<Value = Option<Change>> {
        prop_oneof![Just(None), Just(Some(Change::Soft)), Just(Some(Change::Hard))]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn ready_workers_go_one_at_a_time_or_as_one_run(
            workers in prop::collection::vec((any::<[bool; 4]>(), any_change(), any_work()), 1..10)
        ) {
            let names: Vec<String> = (0..workers.len()).map(|i| format!("w{i}")).collect();
            let peers: Vec<Peer<'_>> = workers.iter().zip(&names).map(|(([counts, ready, broken, due], change, work), name)| Peer {
                counts: *counts,
                ready: *ready,
                broken: *broken && !ready,
                fails: *broken && !ready,
                change: *change,
                due: *due,
                ..worker(name, work.clone())
            }).collect();
            let going: Vec<&Peer<'_>> =
                going(&peers).into_iter().map(|i| &peers[i]).filter(|p| p.counts && p.ready).collect();
            for pair in going.windows(2) {
                prop_assert!(pair[0].with(pair[1]), "{going:?}");
            }
            for peer in &going {
                let forced = peers.iter().any(|p| p.counts && p.is_forced() && (p.name == peer.name || p.with(peer)));
                prop_assert!(peer.work == Work::None || forced, "{peer:?}");
                let others = peers.iter().filter(|o| o.counts && !o.broken && !o.with(peer));
                prop_assert!(others.into_iter().all(|o| o.ready), "all the others serve");
            }
            // Whatever is left to do, somebody is doing it or is on its way.
            let stuck = going.is_empty()
                && peers.iter().any(|p| p.counts && p.ready && p.goes(&peers))
                && peers.iter().all(|p| p.ready || !p.counts || p.broken);
            prop_assert!(!stuck, "{peers:?}");
        }
    }
}

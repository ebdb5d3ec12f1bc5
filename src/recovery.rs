//! Effect of an incident on training: which runs it interrupted, when they trained again, and how much work they do
//! twice. Pure.

use std::{net::Ipv4Addr, time::Duration};

use crate::{
    checkpoints::{
        StoreView,
        listing::{REMEMBERED, StoredRun},
    },
    incident::{Cause, Incident, Interrupted},
    ray::{TrainRun, train::Attempt},
    time::Timestamp,
};

/// Tolerance between clocks that are read a moment apart: a worker group is called ended only after its death.
const SLACK: Duration = Duration::from_millis(500);

/// Training runs that had a worker, or their driver, on the node that died; `address` is the node's. Once a run trains again,
/// what the incident says of it stands, whatever Ray and the store have forgotten since: a later call adds only what was not
/// known, such as a newer checkpoint from before the death.
///
/// Give it every run that labd knows, and the store as it was looked at since the death (`Checkpoints::refresh_now`): the newest
/// checkpoint from before the death is the one that a run resumes from.
pub fn training(
    incident: &Incident,
    address: Option<Ipv4Addr>,
    runs: &[TrainRun],
    store: &StoreView,
) -> Vec<Interrupted> {
    // A service that is not planned any more has no node; what it did is known.
    let Some(address) = address else { return incident.training.clone() };
    let died_at = incident.died_at;
    let mut all: Vec<Interrupted> = Vec::new();
    for run in runs {
        if all.iter().any(|i| i.run == run.name) || !was_hit(run, address, died_at) {
            continue;
        }
        let training_at = again(run, runs, died_at);
        if incident.cause == Cause::Asked {
            // Ray lets it train on for a while: what it wrote meanwhile is not known here.
            all.push(Interrupted { run: run.name.clone(), training_at, checkpoint: None, lost_ms: None });
            continue;
        }
        let Some(worked_until) = worked_until(incident, run) else {
            all.push(Interrupted { run: run.name.clone(), training_at, checkpoint: None, lost_ms: None });
            continue;
        };
        let kept = kept(run, store);
        let checkpoint = kept.and_then(|kept| newest_before(kept, worked_until));
        let resumed = training_at.and(checkpoint.clone());
        // A run without a checkpoint starts from the beginning; whether it has one is known only from a look at its store, and
        // not any more where so many came since that older ones are forgotten.
        let began_anew = training_at.is_some()
            && checkpoint.is_none()
            && kept.is_none_or(|kept| kept.seen.len() < REMEMBERED)
            && run.prefix(&store.bucket).is_some()
            && store.looked_at.is_some_and(|at| at > worked_until);
        let work_since = match &resumed {
            Some((_, written_at)) => Some(*written_at),
            None if began_anew => began(run, runs),
            None => None,
        };
        all.push(Interrupted {
            run: run.name.clone(),
            training_at,
            checkpoint: resumed.map(|(name, _)| name),
            lost_ms: work_since.map(|since| u64::try_from(worked_until.since(since).as_millis()).unwrap_or(u64::MAX)),
        });
    }
    let mut all = settled(&incident.training, all);
    all.sort_by(|a, b| a.run.cmp(&b.run));
    all
}

/// What is seen now, with what is known already: a run that trained again did so at that time, and from a checkpoint that was
/// there, or a newer one that only a later look at the store found. Ray and the store forget; what they had was so.
fn settled(known: &[Interrupted], mut now: Vec<Interrupted>) -> Vec<Interrupted> {
    for old in known.iter().filter(|old| old.training_at.is_some()) {
        match now.iter_mut().find(|new| new.run == old.run) {
            Some(new) => {
                new.training_at = old.training_at;
                if old.lost_ms.is_some() && new.lost_ms.is_none_or(|lost| Some(lost) >= old.lost_ms) {
                    new.checkpoint.clone_from(&old.checkpoint);
                    new.lost_ms = old.lost_ms;
                }
            }
            None => now.push(old.clone()),
        }
    }
    now
}

/// Whether the run was under way on that node at that moment.
fn was_hit(run: &TrainRun, address: Ipv4Addr, died_at: Timestamp) -> bool {
    let spans =
        |from: Timestamp, to: Option<Timestamp>| from <= died_at && to.is_none_or(|to| to.plus(SLACK) >= died_at);
    if !spans(run.started_at, run.ended_at) {
        return false;
    }
    run.driver == Some(address)
        || run.attempts.iter().any(|a| spans(a.started_at, a.ended_at) && a.workers.contains(&address))
}

/// Time until which the run worked there: a worker whose GPU is quarantined is drained, and trains on until its group ends, which
/// is not known before. `None` until then.
fn worked_until(incident: &Incident, run: &TrainRun) -> Option<Timestamp> {
    if incident.cause != Cause::Gpu {
        return Some(incident.died_at);
    }
    let group = run.attempts.iter().rev().find(|a| a.started_at <= incident.died_at)?;
    Some(group.ended_at.or(run.ended_at)?.max(incident.died_at))
}

/// Entries of the same run, this one included: a run that is submitted again keeps its name and its place.
fn entries<'a>(run: &'a TrainRun, runs: &'a [TrainRun]) -> impl Iterator<Item = &'a TrainRun> {
    runs.iter().filter(|other| other.name == run.name && other.storage == run.storage)
}

/// Time at which the first worker group after the death trained.
fn again(run: &TrainRun, runs: &[TrainRun], died_at: Timestamp) -> Option<Timestamp> {
    let attempts = entries(run, runs).flat_map(|r| &r.attempts);
    attempts.filter(|a| a.started_at > died_at).filter_map(trained_at).min()
}

/// Time at which a worker group trained; when its workers were asked for, if labd did not see it.
fn trained_at(attempt: &Attempt) -> Option<Timestamp> {
    (!attempt.workers.is_empty()).then(|| attempt.running_at.unwrap_or(attempt.started_at))
}

/// Time at which the run first trained.
fn began(run: &TrainRun, runs: &[TrainRun]) -> Option<Timestamp> {
    entries(run, runs).flat_map(|r| &r.attempts).filter_map(trained_at).min()
}

/// What the store has of a run.
fn kept<'a>(run: &TrainRun, store: &'a StoreView) -> Option<&'a StoredRun> {
    let prefix = run.prefix(&store.bucket)?;
    store.runs.iter().find(|s| s.prefix == prefix)
}

fn newest_before(stored: &StoredRun, at: Timestamp) -> Option<(String, Timestamp)> {
    stored.seen.iter().find(|c| c.at <= at).map(|c| (c.name.clone(), c.at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        incident::Order,
        ray::train::AttemptStatus,
        snapshot::{CheckpointView, RunStatus},
    };

    const WORKER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 20);
    const OTHER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 21);
    const DRIVER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 11);
    const HEAD: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 10);
    /// Time of the death, in seconds.
    const DIED: i64 = 100;

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1_000)
    }

    /// Expected result: run, when it trained again, from which checkpoint, what was lost.
    type Told = (String, Option<i64>, Option<String>, Option<u64>);

    /// Worker group: when it was asked for, when it trained, when it ended, where.
    type Group<'a> = (i64, Option<i64>, Option<i64>, &'a [Ipv4Addr]);

    fn run(name: &str, started_at: i64, ended_at: Option<i64>, groups: &[Group<'_>]) -> TrainRun {
        let attempt = |(from, trains, to, workers): &Group<'_>| Attempt {
            id: from.to_string(),
            started_at: at(*from),
            running_at: trains.map(at),
            ended_at: to.map(at),
            status: AttemptStatus::Running,
            error: None,
            workers: workers.to_vec(),
        };
        TrainRun {
            name: name.to_owned(),
            id: format!("{name}-{started_at}"),
            submission_id: None,
            status: RunStatus::Running,
            started_at: at(started_at),
            ended_at: ended_at.map(at),
            storage: "s3://ray".to_owned(),
            driver: Some(DRIVER),
            attempts: groups.iter().map(attempt).collect(),
        }
    }

    fn store(run: &str, checkpoints: &[i64], looked_at: i64) -> StoreView {
        let seen: Vec<CheckpointView> = checkpoints
            .iter()
            .rev()
            .map(|&s| CheckpointView { name: format!("checkpoint_{s}"), at: at(s), bytes: 1 })
            .collect();
        let stored = StoredRun {
            prefix: run.to_owned(),
            newest: seen.first().cloned(),
            count: 2,
            used_bytes: 2,
            seen,
            sweeps: Vec::new(),
            from_record: false,
            carried_over: false,
        };
        StoreView {
            bucket: "ray".to_owned(),
            looked_at: Some(at(looked_at)),
            runs: vec![stored],
            complete: true,
            ..StoreView::default()
        }
    }

    fn incident() -> Incident {
        Incident {
            service: "ray-worker-0".to_owned(),
            cause: Cause::Exit,
            why: String::new(),
            died_at: at(DIED),
            noticed_at: at(DIED),
            running_at: None,
            ready_at: None,
            training: Vec::new(),
            order: Order::default(),
        }
    }

    fn of(address: Ipv4Addr, runs: &[TrainRun], store: &StoreView) -> Vec<Told> {
        let incident = incident();
        let seconds = |at: Timestamp| at.as_millis() / 1_000;
        training(&incident, Some(address), runs, store)
            .into_iter()
            .map(|i| (i.run, i.training_at.map(seconds), i.checkpoint, i.lost_ms))
            .collect()
    }

    fn interrupted(run: &str, training_at: Option<i64>, checkpoint: Option<&str>, lost_ms: Option<u64>) -> Told {
        (run.to_owned(), training_at, checkpoint.map(str::to_owned), lost_ms)
    }

    #[test]
    fn a_worker_that_died_is_replaced_by_the_next_group() {
        let first: Group<'_> = (50, Some(52), Some(101), &[WORKER]);
        let kept = store("a", &[90, 96, 99, 106], 107);
        let way = |groups: &[Group<'_>]| of(WORKER, &[run("a", 40, None, groups)], &kept);
        // Ray has not noticed yet; then the next group waits; then it trains.
        assert_eq!(way(&[(50, Some(52), None, &[WORKER])]), [interrupted("a", None, None, None)]);
        assert_eq!(way(&[first, (101, None, None, &[])]), [interrupted("a", None, None, None)]);
        let again = interrupted("a", Some(104), Some("checkpoint_99"), Some(1_000));
        assert_eq!(way(&[first, (101, Some(104), None, &[OTHER])]), std::slice::from_ref(&again));
        // Later failures change nothing of it.
        assert_eq!(way(&[first, (101, Some(104), Some(200), &[OTHER]), (201, Some(204), None, &[WORKER])]), [again]);
        // labd was restarted meanwhile: the group was asked for at 101 at the earliest.
        let unseen = interrupted("a", Some(101), Some("checkpoint_99"), Some(1_000));
        assert_eq!(way(&[first, (101, None, None, &[OTHER])]), [unseen]);
    }

    #[test]
    fn a_real_answer_of_ray_is_enough() {
        let answer = include_str!("../tests/data/ray-2.60-train-runs.json");
        let runs = crate::ray::train::read(&serde_json::from_str(answer).expect("JSON"));
        let incident = |service: &str| Incident {
            service: service.to_owned(),
            cause: Cause::Exit,
            why: "container exited 137 (SIGKILL)".to_owned(),
            died_at: Timestamp::from_millis(1_795_561_715_900),
            noticed_at: Timestamp::from_millis(1_795_561_715_950),
            running_at: None,
            ready_at: None,
            training: Vec::new(),
            order: Order::default(),
        };
        let killed =
            training(&incident("ray-worker-0"), Some(Ipv4Addr::new(198, 18, 245, 20)), &runs, &StoreView::default());
        assert_eq!(killed.len(), 1);
        assert_eq!(killed[0].run, "surv");
        // labd did not watch this one: the time its second group was asked for.
        assert_eq!(killed[0].training_at, Some(Timestamp::from_millis(1_795_561_716_349)));
        let spare = Ipv4Addr::new(198, 18, 245, 21);
        assert!(training(&incident("ray-worker-1"), Some(spare), &runs, &StoreView::default()).is_empty());
        assert!(training(&incident("minio"), None, &runs, &StoreView::default()).is_empty());
    }

    #[test]
    fn only_what_ran_there_then_was_interrupted() {
        let kept = store("a", &[99], 107);
        for (name, address, run) in [
            ("elsewhere", OTHER, run("a", 40, None, &[(50, Some(52), None, &[WORKER])])),
            ("ended before", WORKER, run("a", 40, Some(80), &[(50, Some(52), Some(80), &[WORKER])])),
            ("began after", WORKER, run("a", 110, None, &[(112, Some(115), None, &[WORKER])])),
            (
                "moved on before",
                WORKER,
                run("a", 40, None, &[(50, Some(52), Some(70), &[WORKER]), (71, Some(74), None, &[OTHER])]),
            ),
            ("a head without drivers", HEAD, run("a", 40, None, &[(50, Some(52), None, &[WORKER])])),
        ] {
            assert!(of(address, &[run], &kept).is_empty(), "{name}");
        }
        let incident_elsewhere = of(WORKER, &[], &kept);
        assert!(incident_elsewhere.is_empty());
    }

    #[test]
    fn a_worker_that_ends_on_request_says_nothing_of_lost_work() {
        let runs = [run("a", 40, None, &[(50, Some(52), Some(130), &[WORKER]), (131, Some(134), None, &[OTHER])])];
        let asked = Incident { cause: Cause::Asked, why: "restarted by hand".to_owned(), ..incident() };
        let told = training(&asked, Some(WORKER), &runs, &store("a", &[99, 129], 140));
        let again = Interrupted { run: "a".to_owned(), training_at: Some(at(134)), checkpoint: None, lost_ms: None };
        assert_eq!(told, [again]);
    }

    #[test]
    fn what_became_of_a_run_that_trains_again_stands_whatever_is_forgotten_since() {
        let first: Group<'_> = (50, Some(52), Some(101), &[WORKER]);
        let runs = [run("a", 40, None, &[first, (101, Some(104), None, &[OTHER])])];
        let later: Vec<i64> = (0..64).map(|n| 105 + n).collect();
        let forgotten = store("a", &later, 200);
        let elsewhere = StoreView { bucket: "other".to_owned(), ..StoreView::default() };
        // Ray remembers its newest worker groups only.
        let newest_group = [run("a", 40, None, &[(150, Some(152), None, &[OTHER])])];
        let other_group = [run("a", 40, None, &[first, (150, Some(152), None, &[OTHER])])];
        for kept in [store("a", &[90, 99], 107), store("a", &[], 107)] {
            let mut known = incident();
            known.training = training(&known, Some(WORKER), &runs, &kept);
            assert!(known.training[0].lost_ms.is_some() && known.training[0].training_at == Some(at(104)));
            for (what, address, runs, store) in [
                ("64 newer checkpoints", Some(WORKER), &runs[..], &forgotten),
                ("another store", Some(WORKER), &runs, &elsewhere),
                ("no run", Some(WORKER), &[], &kept),
                ("no node", None, &runs, &kept),
                ("no such group", Some(WORKER), &newest_group, &kept),
                ("a later group", Some(WORKER), &other_group, &kept),
            ] {
                assert_eq!(training(&known, address, runs, store), known.training, "{what}");
            }
        }
        // Nobody looked in time: nothing is known of what was lost.
        assert_eq!(of(WORKER, &runs, &forgotten), [interrupted("a", Some(104), None, None)]);
        // The store was looked at since, and has a newer checkpoint from before the death.
        let mut known = incident();
        known.training = training(&known, Some(WORKER), &runs, &store("a", &[90], 95));
        known.training = training(&known, Some(WORKER), &runs, &store("a", &[90, 99, 105], 107));
        let record = &known.training[0];
        assert_eq!((record.checkpoint.as_deref(), record.lost_ms), (Some("checkpoint_99"), Some(1_000)));
    }

    #[test]
    fn a_worker_whose_gpu_is_quarantined_works_on_until_its_group_ends() {
        let quarantined = Incident { cause: Cause::Gpu, ..incident() };
        let kept = store("a", &[99, 129, 136], 140);
        let way = |groups: &[Group<'_>]| training(&quarantined, Some(WORKER), &[run("a", 40, None, groups)], &kept);
        let trains_on = Interrupted { run: "a".to_owned(), training_at: None, checkpoint: None, lost_ms: None };
        assert_eq!(way(&[(50, Some(52), None, &[WORKER])]), [trains_on]);
        let again = Interrupted {
            run: "a".to_owned(),
            training_at: Some(at(134)),
            checkpoint: Some("checkpoint_129".to_owned()),
            lost_ms: Some(1_000),
        };
        assert_eq!(way(&[(50, Some(52), Some(130), &[WORKER]), (131, Some(134), None, &[OTHER])]), [again]);
    }

    #[test]
    fn a_run_that_is_submitted_again_goes_on() {
        let lost = run("a", 40, Some(102), &[(50, Some(52), Some(102), &[WORKER])]);
        let again = run("a", 110, None, &[(112, Some(115), None, &[WORKER])]);
        let kept = store("a", &[97], 120);
        assert_eq!(of(DRIVER, std::slice::from_ref(&lost), &kept), [interrupted("a", None, None, None)]);
        let resumed = interrupted("a", Some(115), Some("checkpoint_97"), Some(3_000));
        assert_eq!(of(DRIVER, &[again, lost.clone()], &kept), [resumed]);
        // Another run of another name is no continuation.
        let other = run("b", 110, None, &[(112, Some(115), None, &[WORKER])]);
        assert_eq!(of(DRIVER, &[other, lost], &kept), [interrupted("a", None, None, None)]);
    }

    #[test]
    fn without_a_checkpoint_everything_is_lost_and_an_unknown_store_says_nothing() {
        let runs = [run("a", 40, None, &[(50, Some(52), Some(101), &[WORKER]), (101, Some(104), None, &[OTHER])])];
        assert_eq!(of(WORKER, &runs, &store("a", &[], 107)), [interrupted("a", Some(104), None, Some(48_000))]);
        assert_eq!(
            of(WORKER, &runs, &store("a", &[], 99)),
            [interrupted("a", Some(104), None, None)],
            "not looked since"
        );
        assert_eq!(of(WORKER, &runs, &StoreView::default()), [interrupted("a", Some(104), None, None)]);
        let local = [TrainRun { storage: "/root/ray_results".to_owned(), ..runs[0].clone() }];
        assert_eq!(of(WORKER, &local, &store("a", &[99], 107)), [interrupted("a", Some(104), None, None)]);
    }
}

//! The history as a whole, by a clock that the tests set.

use jiff::{civil::date, tz::TimeZone};

use super::{recorder::Recorder, store::Batch, usage::Key, *};
use crate::{
    http::testing::a_snapshot,
    snapshot::{GpuState, Reading},
    time::{Timestamp, simulated},
};

/// Lab whose one GPU does this, for a job of anna's if it `works`.
fn lab(used: Option<f32>, works: bool) -> Snapshot {
    let mut snapshot = a_snapshot();
    let reading =
        |used| Reading { utilisation_percent: Some(used), memory_used_bytes: Some(1 << 30), ..Reading::default() };
    snapshot.gpus[0].reading = used.map(reading);
    snapshot.jobs[0].user = Some("anna".into());
    snapshot.jobs[0].resubmission_of = Some("food11".into());
    if works {
        snapshot.jobs[0].workers = vec!["ray-worker-0".into()];
    }
    snapshot
}

fn utc() -> TimeZone {
    TimeZone::UTC
}

/// Clock that is never set at `moment` seconds, and the wall clock at `wall` seconds.
fn at(moment: i64, wall: i64) -> Now {
    Now { wall: Timestamp::from_millis(wall * 1_000), moment: Moment::from_millis(moment * 1_000) }
}

/// Looks at a lab once a second.
fn look(recorder: &mut Recorder, lab: &Snapshot, seconds: std::ops::Range<i64>, offset: i64) {
    for second in seconds {
        recorder.take(at(second, second + offset), lab, utc);
    }
}

fn held(batch: &Batch) -> Vec<(String, u64)> {
    let line = |(key, spent): (&Key, &usage::Spent)| {
        assert_eq!((&*key.job, key.user.as_deref(), &*key.gpu), ("food11", Some("anna"), "SIM-0"));
        (key.day.to_string(), spent.held / 1_000)
    };
    batch.accounts.iter().map(line).collect()
}

const NOON: i64 = 1_795_521_600; // 2026-11-24T12:00:00Z

#[test]
fn an_hour_has_its_gaps_wherever_the_clock_was_set_to() {
    // labd stalls for a minute, then the GPU is missing for another one.
    let mut missing = lab(Some(40.0), true);
    missing.gpus[0].state = GpuState::Missing;
    for jump in [0, 86_400 * 3_650, -86_400 * 3_650] {
        let mut recorder = Recorder::default();
        look(&mut recorder, &lab(Some(40.0), true), 100..160, NOON);
        look(&mut recorder, &missing, 220..280, NOON);
        look(&mut recorder, &lab(Some(80.0), false), 280..300, NOON + jump);
        let now = at(300, NOON + jump + 300);
        let (grid, spans) = recorder.hour(now, 720);
        let view = grid.view(&[("SIM-0".into(), None)], &spans);
        let gpu = &view.gpus[0];
        assert_eq!((view.step_s, view.time.len(), gpu.used.len()), (5, 720, 720));
        let known: Vec<(usize, f32)> =
            gpu.used.iter().enumerate().filter_map(|(i, v)| Some((719 - i, (*v)?))).collect();
        let expected = (29..=40).rev().map(|i| (i, 40.0)).chain((1..=4).rev().map(|i| (i, 80.0)));
        assert_eq!(known, expected.collect::<Vec<_>>(), "{jump}");
        assert_eq!(gpu.memory[719 - 1], Some(1 << 30));
        if jump == 0 {
            let jobs: Vec<(&str, i64)> = gpu.jobs.iter().map(|job| (&*job.job, job.to - job.from)).collect();
            assert_eq!(jobs, [("food11", 59), ("food11", 59)]);
        }
    }
}

#[test]
fn minutes_are_kept_and_held_time_is_what_was_seen() {
    let mut recorder = Recorder::default();
    look(&mut recorder, &lab(Some(40.0), true), 0..121, NOON);
    let batch = recorder.batch(Moment::from_millis(121_000));
    let minutes: Vec<(i64, u32)> = batch.minutes.iter().map(|minute| (minute.at, minute.seconds)).collect();
    assert_eq!(minutes, [(NOON / 60, 60), (NOON / 60 + 1, 60)]);
    assert_eq!(held(&batch), [("2026-11-24".into(), 119)]);
    assert_eq!((batch.spans[0].from, batch.spans[0].to), (NOON, NOON + 120));
    // Once its job has left, it is written once more, and then not again.
    look(&mut recorder, &lab(Some(40.0), false), 121..140, NOON);
    assert_eq!(recorder.batch(Moment::from_millis(140_000)).spans, batch.spans);
    assert_eq!(recorder.batch(Moment::from_millis(141_000)).spans, []);
    // Two hours in which labd was stopped (SIGSTOP) count for 5 s.
    look(&mut recorder, &lab(Some(40.0), true), 7_200..7_201, NOON);
    look(&mut recorder, &lab(Some(40.0), true), 7_260..7_261, NOON);
    assert_eq!(held(&recorder.batch(Moment::from_millis(0))), [("2026-11-24".into(), 6)]);
}

#[test]
fn a_clock_that_is_set_loses_nothing_and_counts_nothing_twice() {
    for jump in [3_600, -3_600, -2, 2, 86_400 * 3_650, -86_400 * 9_000] {
        let mut recorder = Recorder::default();
        look(&mut recorder, &lab(Some(40.0), true), 0..90, NOON);
        look(&mut recorder, &lab(Some(40.0), true), 90..200, NOON + jump);
        let batch = recorder.last_batch(Moment::from_millis(200_000), utc);
        assert_eq!(held(&batch).iter().map(|(_, held)| held).sum::<u64>(), 199, "{jump}");
        assert_eq!(batch.minutes.iter().map(|minute| minute.seconds).sum::<u32>(), 200, "{jump}");
    }
}

#[test]
fn days_begin_at_the_machines_midnight_also_when_clocks_change() {
    let berlin = || TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a time zone");
    // 2026-10-25 has 25 hours in Berlin, 2027-03-28 has 23.
    for (midnight, hours, day) in [(1_792_879_200, 25, "2026-10-25"), (1_806_188_400, 23, "2027-03-28")] {
        let mut recorder = Recorder::default();
        let lab = lab(Some(40.0), true);
        for second in (0..26 * 3_600).step_by(5) {
            recorder.take(at(second, midnight + second), &lab, berlin);
        }
        let batch = recorder.last_batch(Moment::from_millis(26 * 3_600_000), berlin);
        assert_eq!(held(&batch)[0], (day.into(), hours * 3_600 - 5));
        assert_eq!(held(&batch).len(), 2);
    }
    let now = Timestamp::from_millis(1_792_879_200_000);
    assert_eq!(recorder::first_day(now, &berlin(), 1), date(2026, 10, 25));
    assert_eq!(recorder::first_day(now.minus(Duration::from_secs(1)), &berlin(), 2), date(2026, 10, 23));
    assert_eq!(recorder::first_day(Timestamp::from_millis(i64::MAX), &berlin(), 400), date(1968, 11, 28));
}

#[test]
fn what_could_not_be_written_waits_and_is_bounded() {
    let mut recorder = Recorder::default();
    look(&mut recorder, &lab(Some(40.0), true), 0..61, NOON);
    let batch = recorder.batch(Moment::from_millis(61_000));
    look(&mut recorder, &lab(Some(40.0), true), 61..121, NOON);
    recorder.take_back(batch);
    let batch = recorder.batch(Moment::from_millis(121_000));
    assert_eq!((batch.minutes.len(), held(&batch)[0].1), (2, 119));
    // A day and an hour without a disk, looked at every minute.
    for minute in 0..25 * 60 {
        recorder.take(at(200 + minute * 60, NOON + minute * 60), &lab(Some(40.0), true), utc);
    }
    assert_eq!(recorder.batch(Moment::from_millis(0)).minutes.len(), 24 * 60);
}

#[tokio::test]
async fn memory_and_disk_are_one_history() {
    let dir = tempfile::tempdir().expect("a directory");
    let (history, note) = History::open(dir.path());
    assert_eq!(note, None);
    let snapshot = lab(Some(40.0), true);
    let look = |from: i64, to: i64| {
        for second in from..to {
            history.look(at(second, NOON + second), &snapshot);
        }
    };
    look(0, 120);
    history.save(Moment::from_millis(120_000), false).await.expect("written");
    look(120, 240);
    let query = Chart { hours: 2, points: None, gpu: None };
    let now = at(239, NOON + 239);
    for stage in ["in memory", "on disk", "after a restart"] {
        let mut history = history.clone();
        if stage != "in memory" {
            history.save(Moment::from_millis(240_000), true).await.expect("written");
        }
        if stage == "after a restart" {
            (history, _) = History::open(dir.path());
        }
        let view = history.chart(query, &snapshot, now).await.expect("read");
        assert_eq!((view.step_s, view.time.len()), (60, 120), "{stage}");
        assert_eq!(view.gpus[0].used.iter().flatten().collect::<Vec<_>>(), [&40.0; 4], "{stage}");
        assert_eq!(view.gpus[0].jobs.len(), 1, "{stage}");
        let usage = history.usage(400, now).await.expect("read");
        let hours = usage.days[0].jobs[0].hours.gpu_hours;
        let want = if stage == "in memory" { 179.0 } else { 239.0 };
        assert!((hours - want / 3_600.0).abs() < 1e-4, "{stage}: {hours}");
    }
    let one = Chart { hours: 168, points: Some(10), gpu: Some("SIM-0") };
    let view = history.chart(one, &snapshot, now).await.expect("read");
    assert_eq!((view.time.len(), view.gpus.len()), (10, 1));
    let nobodys = Chart { gpu: Some("nobody"), ..one };
    assert!(history.chart(nobodys, &snapshot, now).await.expect("read").gpus.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_task_looks_each_second_and_writes_when_labd_ends() {
    simulated::begin(Some(Timestamp::from_millis(NOON * 1_000)));
    let dir = tempfile::tempdir().expect("a directory");
    let (history, _) = History::open(dir.path());
    let (_snapshot, snapshots) = watch::channel(Arc::new(lab(Some(40.0), true)));
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(follow(history.clone(), snapshots.clone(), stopped));
    tokio::time::sleep(Duration::from_secs(30)).await;
    stop.send_replace(true);
    task.await.expect("it ends");
    let (history, _) = History::open(dir.path());
    let snapshot = Arc::clone(&snapshots.borrow());
    let view = history.chart(Chart { hours: 2, points: None, gpu: None }, &snapshot, Now::read()).await.expect("read");
    assert!(view.gpus[0].used.iter().flatten().count() >= 1);
    let held = history.usage(1, Now::read()).await.expect("read").days[0].jobs[0].hours.gpu_hours;
    assert!((held * 3_600.0 - 30.0).abs() < 1.5, "{held}: time between two looks counts for 5 s at most");
}

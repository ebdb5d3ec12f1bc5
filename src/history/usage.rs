//! Account of GPU hours: who held which GPU for how long on which day, and whether it had anything to do. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::civil::Date;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::minute::{Bin, Holder};
use crate::{
    text::csv_field,
    time::{Moment, Now, Timestamp},
};

/// Use in percent below which a GPU counts as idle: what a driver that polls it and a desktop do by themselves stays under it.
/// Chosen, not measured.
pub const BUSY: f32 = 5.0;
/// Time of idleness from which on it counts: shorter pauses are loading, evaluation and the like. Chosen, not measured.
pub const IDLE: Duration = Duration::from_mins(30);
/// Longest time for which nothing need be known of a GPU that stays idle: a reading that failed is no sign of work.
const UNSEEN: Duration = Duration::from_mins(3);
/// Number of jobs that a day has of its own; the rest of them count together.
pub(super) const JOBS: usize = 200;
/// Name that stands for the jobs beyond [`JOBS`].
pub const OTHERS: &str = "others";
/// Milliseconds of an hour.
const HOUR_MS: f64 = 3_600_000.0;

/// What an account is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) day: Date,
    pub(super) job: Arc<str>,
    pub(super) user: Option<Arc<str>>,
    pub(super) gpu: Arc<str>,
}

/// Time spent, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Spent {
    /// Time in which the job held the GPU.
    pub(super) held: u64,
    /// Time of it in which the GPU was busy.
    pub(super) busy: u64,
    /// Time of it in which the GPU was idle for long.
    pub(super) idle: u64,
}

impl Spent {
    /// Adds another time.
    pub(super) fn add(&mut self, other: Self) {
        self.held = self.held.saturating_add(other.held);
        self.busy = self.busy.saturating_add(other.busy);
        self.idle = self.idle.saturating_add(other.idle);
    }
}

/// Accounts by what they are about.
pub(super) type Accounts = BTreeMap<Key, Spent>;

/// Adds a time to an account. Where the day has its jobs already, it counts for the others: the user's own, if the day knows
/// the user, else nobody's.
pub(super) fn spend(accounts: &mut Accounts, key: Key, spent: Spent) {
    let key = if accounts.contains_key(&key) { key } else { within(key, accounts.keys()) };
    accounts.entry(key).or_default().add(spent);
}

/// Account that a time goes to, where these are there already.
pub(super) fn within<'a>(key: Key, known: impl Iterator<Item = &'a Key>) -> Key {
    let mut jobs = BTreeSet::new();
    let mut knows_user = key.user.is_none();
    for other in known.filter(|other| other.day == key.day) {
        if other.job == key.job && other.user == key.user {
            return key;
        }
        jobs.insert((&other.job, &other.user));
        knows_user |= other.user == key.user;
    }
    if jobs.len() < JOBS {
        return key;
    }
    Key { job: OTHERS.into(), user: key.user.filter(|_| knows_user), ..key }
}

/// A GPU that is idle in a job's hands.
#[derive(Debug)]
struct Streak {
    user: Option<Arc<str>>,
    worker: Arc<str>,
    since: Moment,
    seen: Moment,
    /// Times by day that count once it was idle for long enough.
    waiting: Vec<(Date, u64)>,
}

/// GPUs that are idle in jobs' hands, by GPU and job.
#[derive(Debug, Default)]
pub(super) struct Streaks(BTreeMap<(Arc<str>, Arc<str>), Streak>);

/// A GPU that a job holds without using it.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct IdleGpu {
    /// Id of the GPU.
    pub gpu: String,
    /// Service that has it.
    pub worker: String,
    /// The job, by its first submission's id.
    pub job: String,
    /// User that the job names.
    pub user: Option<String>,
    /// Time since which it has been idle.
    pub since: Timestamp,
}

impl Streaks {
    /// Accounts for a minute that is over, on the day it belongs to.
    pub(super) fn account(&mut self, bin: &Bin, day: Date, now: Moment, accounts: &mut Accounts) {
        for gpu in &bin.gpus {
            for (Holder { job, user }, held) in &gpu.held {
                let held = u64::try_from(held.as_millis()).unwrap_or(u64::MAX);
                let key = |day| Key { day, job: job.clone(), user: user.clone(), gpu: gpu.gpu.clone() };
                let streak = (gpu.gpu.clone(), job.clone());
                let mut spent = Spent { held, ..Spent::default() };
                match gpu.load() {
                    Some(load) if load < BUSY => {
                        let streak = self.0.entry(streak).or_insert_with(|| Streak {
                            user: user.clone(),
                            worker: gpu.worker.clone().unwrap_or_default(),
                            since: now.minus(Duration::from_mins(1)),
                            seen: now,
                            waiting: Vec::new(),
                        });
                        streak.seen = now;
                        match streak.waiting.iter_mut().find(|(on, _)| *on == day) {
                            Some((_, waiting)) => *waiting += held,
                            None => streak.waiting.push((day, held)),
                        }
                        if now.since(streak.since) >= IDLE {
                            for (day, idle) in streak.waiting.drain(..) {
                                spend(accounts, key(day), Spent { idle, ..Spent::default() });
                            }
                        }
                    }
                    Some(_) => {
                        self.0.remove(&streak);
                        spent.busy = held;
                    }
                    None => {}
                }
                spend(accounts, key(day), spent);
            }
        }
        self.0.retain(|_, streak| now.since(streak.seen) < UNSEEN);
    }

    /// GPUs that have been idle in a job's hands for half an hour, the longest first.
    pub(super) fn idle(&self, now: Now) -> Vec<IdleGpu> {
        let long = |(_, streak): &(&_, &Streak)| {
            now.moment.since(streak.seen) < UNSEEN && now.moment.since(streak.since) >= IDLE
        };
        let mut all: Vec<IdleGpu> = self
            .0
            .iter()
            .filter(long)
            .map(|((gpu, job), streak)| IdleGpu {
                gpu: gpu.to_string(),
                worker: streak.worker.to_string(),
                job: job.to_string(),
                user: streak.user.as_deref().map(str::to_owned),
                since: now.wall_at(streak.since),
            })
            .collect();
        all.sort_by(|a, b| (a.since, &a.gpu, &a.job).cmp(&(b.since, &b.gpu, &b.job)));
        all
    }
}

/// GPU hours by day and by week.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct UsageView {
    /// Time zone whose midnight begins a day: the machine's.
    pub time_zone: String,
    /// Days with any use, newest first.
    pub days: Vec<DayUse>,
    /// The same by ISO weeks, newest first.
    pub weeks: Vec<WeekUse>,
    /// GPUs that jobs hold without using them now.
    pub idle_now: Vec<IdleGpu>,
}

/// GPU hours of one day.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct DayUse {
    /// The day, such as `2026-11-30`.
    pub day: String,
    /// Hours by job, most first.
    pub jobs: Vec<JobUse>,
    /// Hours by user, most first.
    pub users: Vec<UserUse>,
}

/// GPU hours of one week.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct WeekUse {
    /// The ISO week, such as `2026-W49`.
    pub week: String,
    /// Its Monday.
    pub first_day: String,
    /// Hours by job, most first.
    pub jobs: Vec<JobUse>,
    /// Hours by user, most first.
    pub users: Vec<UserUse>,
}

/// GPU hours of one job.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct JobUse {
    /// The job, by its first submission's id; [`OTHERS`] for those beyond the first 200 of a day.
    pub job: String,
    /// User that it names.
    pub user: Option<String>,
    /// The hours.
    #[serde(flatten)]
    pub hours: Hours,
}

/// GPU hours of one user.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct UserUse {
    /// The user; absent for jobs that name none.
    pub user: Option<String>,
    /// The hours.
    #[serde(flatten)]
    pub hours: Hours,
}

/// Hours of GPUs.
#[derive(Debug, Clone, Copy, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Hours {
    /// Hours in which a job held a GPU.
    pub gpu_hours: f64,
    /// Hours of them in which it was busy.
    pub busy_hours: f64,
    /// Hours of them in which it was idle for half an hour and longer.
    pub idle_hours: f64,
}

/// Hours of this many milliseconds, to the second.
fn hours(ms: u64) -> f64 {
    (ms as f64 / HOUR_MS * 10_000.0).round() / 10_000.0
}

impl From<Spent> for Hours {
    fn from(spent: Spent) -> Self {
        Self { gpu_hours: hours(spent.held), busy_hours: hours(spent.busy), idle_hours: hours(spent.idle) }
    }
}

/// Accounts of one day or week, by job and by user.
#[derive(Default)]
struct Sums<'a> {
    jobs: BTreeMap<(&'a str, Option<&'a str>), Spent>,
    users: BTreeMap<Option<&'a str>, Spent>,
}

impl<'a> Sums<'a> {
    fn add(&mut self, key: &'a Key, spent: Spent) {
        self.jobs.entry((&key.job, key.user.as_deref())).or_default().add(spent);
        self.users.entry(key.user.as_deref()).or_default().add(spent);
    }

    fn lists(self) -> (Vec<JobUse>, Vec<UserUse>) {
        let (mut jobs, mut users): (Vec<_>, Vec<_>) =
            (self.jobs.into_iter().collect(), self.users.into_iter().collect());
        jobs.sort_by_key(|(_, spent)| std::cmp::Reverse(spent.held));
        users.sort_by_key(|(_, spent)| std::cmp::Reverse(spent.held));
        let owned = |user: Option<&str>| user.map(str::to_owned);
        let job = |((job, user), spent): ((&str, _), Spent)| JobUse {
            job: job.to_owned(),
            user: owned(user),
            hours: spent.into(),
        };
        let user = |(user, spent): (_, Spent)| UserUse { user: owned(user), hours: spent.into() };
        (jobs.into_iter().map(job).collect(), users.into_iter().map(user).collect())
    }
}

/// Monday of a day's week.
pub(super) fn monday(day: Date) -> Date {
    let past = i64::from(day.weekday().to_monday_zero_offset());
    day.checked_sub(jiff::Span::new().days(past)).unwrap_or(day)
}

/// Accounts by week, and by day from this one on.
pub(super) fn view(accounts: &Accounts, first: Date, time_zone: String, idle_now: Vec<IdleGpu>) -> UsageView {
    let (mut days, mut weeks): (BTreeMap<Date, Sums<'_>>, BTreeMap<Date, Sums<'_>>) =
        (BTreeMap::new(), BTreeMap::new());
    for (key, spent) in accounts {
        if key.day >= first {
            days.entry(key.day).or_default().add(key, *spent);
        }
        weeks.entry(monday(key.day)).or_default().add(key, *spent);
    }
    let days = days.into_iter().rev().map(|(day, sums)| {
        let (jobs, users) = sums.lists();
        DayUse { day: day.to_string(), jobs, users }
    });
    let weeks = weeks.into_iter().rev().map(|(first, sums)| {
        let (jobs, users) = sums.lists();
        let week = first.iso_week_date();
        let week = format!("{}-W{:02}", week.year(), week.week());
        WeekUse { week, first_day: first.to_string(), jobs, users }
    });
    UsageView { time_zone, days: days.collect(), weeks: weeks.collect(), idle_now }
}

/// Accounts as CSV (RFC 4180), newest day first.
pub(super) fn csv(accounts: &Accounts) -> String {
    let mut days: Vec<(&Key, &Spent)> = accounts.iter().collect();
    days.sort_by_key(|(key, _)| std::cmp::Reverse(key.day));
    let mut text = "day,job,user,gpu,gpu_hours,busy_hours,idle_hours\r\n".to_owned();
    for (key, spent) in days {
        let Hours { gpu_hours, busy_hours, idle_hours } = (*spent).into();
        let (job, user, gpu) =
            (csv_field(&key.job), csv_field(key.user.as_deref().unwrap_or_default()), csv_field(&key.gpu));
        text.push_str(&format!("{},{job},{user},{gpu},{gpu_hours},{busy_hours},{idle_hours}\r\n", key.day));
    }
    text
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;
    use crate::history::minute::GpuNow;

    const MINUTE: Duration = Duration::from_mins(1);

    fn key(day: Date, job: &str, user: Option<&str>, gpu: &str) -> Key {
        Key { day, job: job.into(), user: user.map(Into::into), gpu: gpu.into() }
    }

    /// Minutes of one GPU, one after the other: its use, and the day.
    fn minutes(minutes: impl IntoIterator<Item = (Option<f32>, Date)>) -> (Streaks, Accounts, Moment) {
        let (mut streaks, mut accounts, mut now) = (Streaks::default(), Accounts::new(), Moment::from_millis(0));
        for (used, day) in minutes {
            let mut bin = Bin::new(0);
            let values = [used, None, None, None];
            let jobs = vec![("food11", Some("anna"))];
            bin.add(&GpuNow { id: "G", worker: Some("ray-worker-0"), asleep: false, values, jobs }, MINUTE);
            now = now.plus(MINUTE);
            streaks.account(&bin, day, now, &mut accounts);
        }
        (streaks, accounts, now)
    }

    fn spent(accounts: &Accounts, day: Date) -> (u64, u64, u64) {
        let spent = accounts.get(&key(day, "food11", Some("anna"), "G")).copied().unwrap_or_default();
        (spent.held / 60_000, spent.busy / 60_000, spent.idle / 60_000)
    }

    #[test]
    fn idleness_counts_from_its_beginning_once_it_was_long() {
        let today = date(2026, 11, 30);
        let idle = |n| std::iter::repeat_n((Some(4.9), today), n);
        let busy = |n| std::iter::repeat_n((Some(5.0), today), n);
        let unknown = |n| std::iter::repeat_n((None, today), n);
        for (given, want) in [
            (idle(29).chain(busy(1)).collect::<Vec<_>>(), (30, 1, 0)),
            (idle(30).collect(), (30, 0, 30)),
            (busy(5).chain(idle(40)).chain(busy(5)).chain(idle(29)).collect(), (79, 10, 40)),
            (idle(15).chain(unknown(2)).chain(idle(15)).collect(), (32, 0, 30)),
            (idle(15).chain(unknown(3)).chain(idle(15)).collect(), (33, 0, 0)),
            (unknown(60).collect(), (60, 0, 0)),
        ] {
            let (_, accounts, _) = minutes(given.clone());
            assert_eq!(spent(&accounts, today), want, "{given:?}");
        }
    }

    #[test]
    fn what_is_idle_over_midnight_counts_for_both_days() {
        let (before, after) = (date(2026, 10, 24), date(2026, 10, 25));
        let night = std::iter::repeat_n((Some(0.0), before), 20).chain(std::iter::repeat_n((Some(0.0), after), 25));
        let (streaks, accounts, now) = minutes(night);
        assert_eq!((spent(&accounts, before), spent(&accounts, after)), ((20, 0, 20), (25, 0, 25)));
        // What is shown goes by the wall clock of now, however it was set meanwhile.
        let wall = Timestamp::from_millis(1_795_492_872_000);
        let idle = streaks.idle(Now { wall, moment: now });
        assert_eq!((idle.len(), &*idle[0].gpu, &*idle[0].worker), (1, "G", "ray-worker-0"));
        assert_eq!((&*idle[0].job, idle[0].user.as_deref()), ("food11", Some("anna")));
        assert_eq!(idle[0].since, wall.minus(45 * MINUTE));
        let later = Now { wall, moment: now.plus(UNSEEN) };
        assert_eq!(streaks.idle(later), [], "nothing is known of it any more");
        let (streaks, _, now) = minutes(std::iter::repeat_n((Some(0.0), before), 29));
        assert_eq!(streaks.idle(Now { wall, moment: now }), []);
    }

    #[test]
    fn a_day_has_two_hundred_jobs_and_the_others() {
        let mut accounts = Accounts::new();
        let one = Spent { held: 1, ..Spent::default() };
        let day = date(2026, 11, 30);
        for n in 0..500 {
            spend(
                &mut accounts,
                key(day, &format!("job-{n:03}"), Some(if n % 2 == 0 { "anna" } else { "bert" }), "G"),
                one,
            );
            spend(&mut accounts, key(day, &format!("job-{n:03}"), Some(&format!("user-{n:03}")), "G"), one);
        }
        spend(&mut accounts, key(day, "job-000", Some("anna"), "H"), one);
        assert!(accounts.len() <= JOBS + 110, "{}", accounts.len());
        let held = |job: &str, user: Option<&str>, gpu: &str| accounts.get(&key(day, job, user, gpu)).map(|s| s.held);
        assert_eq!(held("job-000", Some("anna"), "H"), Some(1), "one that has an account keeps it");
        assert_eq!((held(OTHERS, Some("anna"), "G"), held(OTHERS, None, "G")), (Some(200), Some(400)));
        assert_eq!(accounts.values().map(|s| s.held).sum::<u64>(), 1_001, "nothing is lost");
        spend(&mut accounts, key(date(2026, 12, 1), "job-999", None, "G"), one);
        assert!(accounts.contains_key(&key(date(2026, 12, 1), "job-999", None, "G")), "another day");
    }

    #[test]
    fn accounts_are_told_by_day_by_week_and_as_csv() {
        let hour = |held, busy, idle| {
            let ms = |hours: f64| (hours * HOUR_MS) as u64;
            Spent { held: ms(held), busy: ms(busy), idle: ms(idle) }
        };
        let accounts: Accounts = [
            (key(date(2026, 11, 30), "food11", Some("anna"), "G"), hour(2.0, 1.5, 0.5)),
            (key(date(2026, 11, 30), "food11", Some("anna"), "H"), hour(1.25, 0.0, 0.0)),
            (key(date(2026, 11, 30), "=1+\"1\",x", None, "G"), hour(4.0, 4.0, 0.0)),
            (key(date(2026, 11, 29), "food11", Some("anna"), "G"), hour(1.0, 0.0, 1.0)),
            (key(date(2027, 1, 1), "food11", None, "G"), hour(0.001, 0.0, 0.0)),
        ]
        .into();
        // A week is told whole, also where its first days are not asked for.
        let friday = super::view(&accounts, date(2027, 1, 1), "UTC".into(), Vec::new());
        assert_eq!((friday.days.len(), friday.weeks.len(), friday.weeks[1].users.len()), (1, 3, 2));
        let view = view(&accounts, date(2026, 11, 29), "Europe/Berlin".into(), Vec::new());
        let days: Vec<&str> = view.days.iter().map(|day| day.day.as_str()).collect();
        assert_eq!(days, ["2027-01-01", "2026-11-30", "2026-11-29"]);
        let weeks: Vec<(&str, &str)> = view.weeks.iter().map(|week| (&*week.week, &*week.first_day)).collect();
        assert_eq!(weeks, [("2026-W53", "2026-12-28"), ("2026-W49", "2026-11-30"), ("2026-W48", "2026-11-23")]);
        let day = &view.days[1];
        assert_eq!((&*day.jobs[0].job, day.jobs[0].hours.gpu_hours), ("=1+\"1\",x", 4.0));
        let anna = &day.users[1];
        assert_eq!((anna.user.as_deref(), anna.hours), (Some("anna"), hour(3.25, 1.5, 0.5).into()));
        assert_eq!(
            csv(&accounts),
            "day,job,user,gpu,gpu_hours,busy_hours,idle_hours\r\n\
             2027-01-01,food11,,G,0.001,0,0\r\n\
             2026-11-30,\"'=1+\"\"1\"\",x\",,G,4,4,0\r\n\
             2026-11-30,food11,anna,G,2,1.5,0.5\r\n\
             2026-11-30,food11,anna,H,1.25,0,0\r\n\
             2026-11-29,food11,anna,G,1,0,1\r\n"
        );
    }
}

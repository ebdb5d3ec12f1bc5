//! `labd usage`: GPU hours by user and by job, and GPUs that idle in jobs' hands. Rendering is pure.

use hyper::Method;

use super::{
    args::Usage,
    client::Client,
    exit::Failure,
    status::{Paint, age, clean, cut, paint, wrap},
    text::{Out, Style},
};
use crate::{
    history::{Hours, UsageView},
    time::Timestamp,
};

/// Number of jobs of a day that the table shows; the rest are a line.
const JOBS: usize = 10;
/// Width of the hours: three numbers up to `99999.99`.
const NUMBERS: usize = 3 * 10;

pub(super) async fn run(client: &Client<'_>, args: &Usage, out: &mut Out) -> Result<(), Failure> {
    let query = format!("days={}", args.days);
    if args.csv {
        let csv = client.bytes(Method::GET, &format!("/api/v1/usage.csv?{query}")).await?;
        return out.theirs(&csv);
    }
    let path = format!("/api/v1/usage?{query}");
    if args.json {
        let usage: serde_json::Value = client.json(&path).await?;
        return out.json(&usage);
    }
    let usage: UsageView = client.json(&path).await?;
    out.text(&render(&usage, args.days, Timestamp::now(), out.style()))
}

fn numbers(hours: Hours) -> String {
    format!("{:>10.2}{:>10.2}{:>10.2}", hours.gpu_hours, hours.busy_hours, hours.idle_hours)
}

fn head(names: &str, room: usize) -> String {
    format!("{names:<room$}{:>10}{:>10}{:>10}\n", "GPU HOURS", "BUSY", "IDLE")
}

fn user(user: Option<&String>) -> String {
    user.map_or_else(|| "-".to_owned(), |user| clean(user))
}

/// Name in a column, with a space behind it.
fn cell(text: &str, width: usize) -> String {
    format!("{:<width$}", cut(text, width.saturating_sub(1)))
}

fn render(usage: &UsageView, days: u32, now: Timestamp, style: Style) -> String {
    let mut text = String::new();
    for idle in &usage.idle_now {
        let whose = idle.user.as_ref().map(|user| format!(" of {user}")).unwrap_or_default();
        let (gpu, worker, job) = (&idle.gpu, &idle.worker, &idle.job);
        let line = format!("{gpu} ({worker}) is held by {job}{whose} and has been idle for {}", age(now, idle.since));
        for line in wrap(&clean(&line), style.width) {
            text.push_str(&paint(&line, Paint::Yellow, style));
            text.push('\n');
        }
    }
    if usage.days.is_empty() {
        let span = if days == 1 { "today".to_owned() } else { format!("in the last {days} days") };
        text.push_str(&format!("no job held a GPU {span}\n"));
        return text;
    }
    let room = style.width - NUMBERS;
    let (period, rest) = (12, room - 12);
    text.push_str(&head(&format!("{:<period$}{}", "WEEK", "USER"), room));
    for week in &usage.weeks {
        for (i, line) in week.users.iter().enumerate() {
            let week = if i == 0 { week.week.as_str() } else { "" };
            let name = cell(&user(line.user.as_ref()), rest);
            text.push_str(&format!("{week:<period$}{name}{}\n", numbers(line.hours)));
        }
    }
    let (job, whose) = (rest * 2 / 3, rest - rest * 2 / 3);
    text.push('\n');
    text.push_str(&head(&format!("{:<period$}{:<job$}USER", "DAY", "JOB"), room));
    for day in &usage.days {
        for (i, line) in day.jobs.iter().take(JOBS).enumerate() {
            let day = if i == 0 { day.day.as_str() } else { "" };
            let names = cell(&clean(&line.job), job) + &cell(&user(line.user.as_ref()), whose);
            text.push_str(&format!("{day:<period$}{names}{}\n", numbers(line.hours)));
        }
        if day.jobs.len() > JOBS {
            let more = day.jobs.len() - JOBS;
            text.push_str(&format!("{:<period$}... and {more} more: labd usage --csv\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{DayUse, IdleGpu, JobUse, UserUse, WeekUse};

    fn usage() -> UsageView {
        let hours = |gpu_hours| Hours { gpu_hours, busy_hours: gpu_hours / 2.0, idle_hours: 0.25 };
        let job = |job: &str, user: Option<&str>, n| JobUse {
            job: job.into(),
            user: user.map(str::to_owned),
            hours: hours(n),
        };
        let users = vec![
            UserUse { user: Some("anna".into()), hours: hours(12_345.67) },
            UserUse { user: None, hours: hours(1.0) },
        ];
        let mut jobs =
            vec![job("food11", Some("anna"), 11.25), job(&"a-long-id-".repeat(12), Some(&"ü".repeat(60)), 1.0)];
        jobs.extend((0..10).map(|n| job(&format!("\u{1b}[2Jjob-{n}"), None, 0.1)));
        UsageView {
            time_zone: "Europe/Berlin".into(),
            days: vec![DayUse { day: "2026-11-30".into(), jobs, users: users.clone() }],
            weeks: vec![WeekUse { week: "2026-W49".into(), first_day: "2026-11-30".into(), jobs: Vec::new(), users }],
            idle_now: vec![IdleGpu {
                gpu: "GPU-0e4f1a2b-1111-2222-3333-444455556666".into(),
                worker: "ray-worker-0".into(),
                job: "food11".into(),
                user: Some("anna".into()),
                since: Timestamp::from_millis(0),
            }],
        }
    }

    #[test]
    fn it_fits_eighty_columns_and_says_who_held_what() {
        let now = Timestamp::from_millis(45 * 60_000);
        let text = render(&usage(), 14, now, Style { color: false, width: 80 });
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        for line in [
            "WEEK        USER                                   GPU HOURS      BUSY      IDLE",
            "2026-W49    anna                                    12345.67   6172.84      0.25",
            "            -                                           1.00      0.50      0.25",
            "DAY         JOB                      USER          GPU HOURS      BUSY      IDLE",
            "2026-11-30  food11                   anna              11.25      5.62      0.25",
            "            ... and 2 more: labd usage --csv",
        ] {
            assert!(text.lines().any(|l| l == line), "missing: {line}\n{text}");
        }
        let told = text.replace('\n', " ");
        assert!(told.contains("(ray-worker-0) is held by food11 of anna and has been idle for 45 min"), "{text}");
    }

    #[test]
    fn a_lab_that_did_nothing_says_so() {
        let none = UsageView { days: Vec::new(), weeks: Vec::new(), idle_now: Vec::new(), ..usage() };
        let style = Style { color: false, width: 80 };
        let now = Timestamp::from_millis(0);
        assert_eq!(render(&none, 14, now, style), "no job held a GPU in the last 14 days\n");
        assert_eq!(render(&none, 1, now, style), "no job held a GPU today\n");
    }
}

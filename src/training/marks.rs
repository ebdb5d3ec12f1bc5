//! Deaths and resumptions on a job's curve, and which work was done twice. Pure.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::{Curve, CurveGroup};
use crate::{
    incident::{Cause, Incident, Interrupted},
    snapshot::JobOutcome,
    text::clip,
    time::Timestamp,
};

/// Tolerance between clocks that are read a moment apart.
const SLACK: Duration = Duration::from_secs(1);
/// Longest text of a mark, in characters.
const TEXT: usize = 300;

/// What happened at a moment.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Mark {
    /// Time.
    #[serde(serialize_with = "millis")]
    #[schemars(with = "i64")]
    pub at: Timestamp,
    /// Kind.
    pub kind: MarkKind,
    /// Service that died; absent where it was a process of the script's own, or nothing died.
    pub service: Option<String>,
    /// What there is to say, in one line.
    pub text: String,
    /// Outcome of the job that ended; absent for other kinds.
    pub outcome: Option<JobOutcome>,
}

/// Kind of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MarkKind {
    /// A worker of the run, or its driver, died.
    Death,
    /// The whole attempt at the job was lost.
    Lost,
    /// The run trains again.
    Resumed,
    /// The job ended.
    Finished,
}

/// Span of work that was done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
pub struct Span {
    /// Time of what the run continued from.
    #[serde(serialize_with = "millis")]
    #[schemars(with = "i64")]
    pub from: Timestamp,
    /// Time of the death.
    #[serde(serialize_with = "millis")]
    #[schemars(with = "i64")]
    pub to: Timestamp,
}

/// Attempt at a job, as far as its curve is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Id of its submission.
    pub submission_id: String,
    /// Time at which it was submitted.
    pub submitted_at: Option<Timestamp>,
    /// Its end; absent while it has none.
    pub end: Option<End>,
}

/// End of an attempt at a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Time.
    pub at: Timestamp,
    /// Whether it was lost to infrastructure, and another attempt continues it.
    pub is_lost: bool,
    /// Meaning of the end; absent where nobody knows it.
    pub outcome: Option<JobOutcome>,
    /// One line about it.
    pub text: String,
}

/// Marks and spans of a curve.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    /// Marks by time.
    pub marks: Vec<Mark>,
    /// Spans by time; they do not overlap.
    pub lost: Vec<Span>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn millis<S: serde::Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_i64(at.as_millis())
}

/// Incidents that interrupted this run while the job was under way, by time. `groups` are its worker groups, by services' names:
/// what an incident did to training is known some time after it, and where a group ran at once.
pub fn of_run<'a>(
    incidents: &'a [Incident],
    run: &str,
    groups: &[CurveGroup],
    attempts: &[Attempt],
) -> Vec<&'a Incident> {
    let Some(from) = attempts.iter().filter_map(|attempt| attempt.submitted_at).min() else { return Vec::new() };
    let to = attempts.last().and_then(|last| Some(last.end.as_ref()?.at.plus(SLACK)));
    let ran_there = |incident: &Incident| {
        let spans = |group: &CurveGroup| {
            group.began_at <= incident.died_at && group.ended_at.is_none_or(|to| incident.died_at <= to.plus(SLACK))
        };
        incident.cause.ends() && groups.iter().any(|group| spans(group) && group.nodes.contains(&incident.service))
    };
    let hit = |incident: &&Incident| {
        (incident.training.iter().any(|i| i.run == run) || ran_there(incident))
            && incident.died_at >= from
            && to.is_none_or(|to| incident.died_at <= to)
    };
    let mut all: Vec<&Incident> = incidents.iter().filter(hit).collect();
    all.sort_by(|a, b| (a.died_at, &a.service).cmp(&(b.died_at, &b.service)));
    all
}

/// Moment from which on work was lost.
struct Death {
    at: Timestamp,
    /// Time until which it was trained: Ray lets a worker that ends on request train on for a while.
    trained_until: Timestamp,
    /// Work that is done again, where the incident's record knows.
    lost: Option<Duration>,
}

/// What the incident's record says of the curve's run, where it knows from where that went on.
fn recorded<'a>(curve: &Curve, incident: &'a Incident) -> Option<&'a Interrupted> {
    incident.training.iter().find(|i| i.run == curve.run && i.training_at.is_some() && i.lost_ms.is_some())
}

/// Marks and spans of a job's curve. `incidents` are those of its run ([`of_run`]), `attempts` all at the job, oldest first.
pub fn decide(curve: &Curve, incidents: &[&Incident], attempts: &[Attempt]) -> Marks {
    let (mut marks, mut deaths) = (Vec::new(), Vec::new());
    for incident in incidents {
        let drained = matches!(incident.cause, Cause::Asked | Cause::Gpu);
        let ended = group_at(curve, incident.died_at).and_then(|group| group.ended_at).filter(|_| drained);
        deaths.push(Death {
            at: incident.died_at,
            trained_until: ended.unwrap_or(incident.died_at).max(incident.died_at),
            lost: recorded(curve, incident).and_then(|known| known.lost_ms).map(Duration::from_millis),
        });
        marks.push(mark(incident.died_at, MarkKind::Death, Some(&incident.service), &incident.why));
    }
    let any = |deaths: &[Death], from, to: Timestamp| deaths.iter().any(|d| d.at >= from && d.at <= to);
    for group in &curve.groups {
        // What no incident explains ended by itself: an error of the script's, a process that was killed.
        if let (Some(ended), Some(why)) = (group.ended_at, &group.why)
            && !any(&deaths, group.began_at, ended.plus(SLACK))
        {
            deaths.push(Death { at: ended, trained_until: ended, lost: None });
            marks.push(mark(ended, MarkKind::Death, None, why));
        }
    }
    for attempt in attempts {
        let Some(end) = attempt.end.as_ref().filter(|end| end.is_lost) else { continue };
        marks.push(mark(end.at, MarkKind::Lost, None, &format!("{}: {}", attempt.submission_id, end.text)));
        let newest = curve.groups.iter().rfind(|group| group.submission_id == attempt.submission_id);
        if newest.is_some_and(|group| group.ended_at.is_none() && !any(&deaths, group.began_at, end.at)) {
            deaths.push(Death { at: end.at, trained_until: end.at, lost: None });
        }
    }
    if let Some(end) = attempts.last().and_then(|last| last.end.as_ref()).filter(|end| !end.is_lost) {
        marks.push(Mark { outcome: end.outcome, ..mark(end.at, MarkKind::Finished, None, &end.text) });
    }
    for pair in curve.groups.windows(2) {
        let (before, group) = (&pair[0], &pair[1]);
        if any(&deaths, before.began_at, group.began_at) {
            // The last report before a death may never have come, such as one of a driver that died: the record, which is made
            // of what the store has, knows better.
            let between = |i: &&&Incident| i.died_at >= before.began_at && i.died_at <= group.began_at;
            let known = incidents.iter().rev().filter(between).find_map(|incident| recorded(curve, incident));
            let reported = || checkpoint_before(curve, group.began_at).map(|(_, name)| name);
            let text = match known.map_or_else(reported, |known| known.checkpoint.as_deref()) {
                Some(name) => format!("trains again from {name}"),
                None => "trains again from the beginning: there was no checkpoint".to_owned(),
            };
            marks.push(mark(group.began_at, MarkKind::Resumed, None, &text));
        }
    }
    if curve.groups.is_empty() {
        // Nothing was reported by this run: what labd saw itself.
        marks.extend(incidents.iter().filter_map(|incident| {
            let at = incident.training.iter().find_map(|i| i.training_at)?;
            Some(mark(at, MarkKind::Resumed, Some(&incident.service), "trains again"))
        }));
    }
    marks.sort_by_key(|mark| (mark.at, mark.kind));
    let is_over = attempts.last().is_some_and(|last| last.end.is_some());
    let goes_on = |death: &&Death| !is_over || curve.groups.iter().any(|group| group.began_at > death.at);
    let lost = deaths.iter().filter(goes_on).filter_map(|death| lost_by(curve, death)).collect();
    Marks { marks, lost: apart(lost) }
}

fn mark(at: Timestamp, kind: MarkKind, service: Option<&String>, text: &str) -> Mark {
    Mark { at, kind, service: service.cloned(), text: clip(text, TEXT), outcome: None }
}

/// Worker group that trained at a moment: the newest that had begun.
fn group_at(curve: &Curve, at: Timestamp) -> Option<&CurveGroup> {
    curve.groups.iter().filter(|group| group.began_at <= at).max_by_key(|group| group.began_at)
}

/// Newest checkpoint that was reported by then.
fn checkpoint_before(curve: &Curve, at: Timestamp) -> Option<(Timestamp, &str)> {
    curve.points.iter().rev().filter(|p| p.at <= at).find_map(|p| Some((p.at, p.checkpoint.as_deref()?)))
}

/// Work that a death undid: since the newest checkpoint, or since the worker group began where that is later, as what was lost
/// before that was lost by another death.
fn lost_by(curve: &Curve, death: &Death) -> Option<Span> {
    let began = group_at(curve, death.at)?.began_at;
    let to = death.trained_until;
    let since = match death.lost {
        Some(lost) => Some(to.minus(lost)),
        None => checkpoint_before(curve, to).map(|(at, _)| at),
    };
    let from = since.map_or(began, |at| at.max(began));
    (from < to).then_some(Span { from, to })
}

/// Spans as few that do not overlap, by time.
fn apart(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|span| (span.from, span.to));
    let mut all: Vec<Span> = Vec::new();
    for span in spans {
        match all.last_mut() {
            Some(last) if span.from <= last.to => last.to = last.to.max(span.to),
            _ => all.push(span),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        incident::{Interrupted, Order},
        training::CurvePoint,
    };

    fn at(s: i64) -> Timestamp {
        Timestamp::from_millis(s * 1_000)
    }

    /// Worker group: of which attempt, when it began, when it ended, why.
    type Group<'a> = (u32, i64, Option<i64>, Option<&'a str>);

    /// Curve with a report each second between 10 and 200 in which a group trained, and checkpoints with some of them.
    fn curve(groups: &[Group<'_>], checkpoints: &[i64]) -> Curve {
        let trains = |s: &i64| groups.iter().any(|(_, from, to, _)| from < s && to.unwrap_or(150) > *s);
        let point = |s: i64| CurvePoint {
            at: at(s),
            group: 1,
            checkpoint: checkpoints.contains(&s).then(|| format!("checkpoint_{s}")),
            values: Vec::new(),
        };
        let group = |(attempt, from, to, why): &Group<'_>| CurveGroup {
            number: 1,
            submission_id: submission(*attempt),
            attempt: *attempt,
            began_at: at(*from),
            ended_at: to.map(at),
            why: why.map(str::to_owned),
            nodes: Vec::new(),
        };
        Curve {
            points: (10..200).filter(trains).map(point).collect(),
            groups: groups.iter().map(group).collect(),
            ..Curve::default()
        }
    }

    fn submission(attempt: u32) -> String {
        if attempt == 1 { "a".to_owned() } else { format!("a-r{}", attempt - 1) }
    }

    fn incident(service: &str, died_at: i64, cause: Cause) -> Incident {
        let hit = Interrupted { run: "a".to_owned(), training_at: None, checkpoint: None, lost_ms: None };
        Incident {
            service: service.to_owned(),
            cause,
            why: "killed".to_owned(),
            died_at: at(died_at),
            noticed_at: at(died_at),
            running_at: None,
            ready_at: None,
            training: vec![hit],
            order: Order::default(),
        }
    }

    /// Attempts by the end of each: when, and whether it was lost.
    fn attempts(ends: &[Option<(i64, bool)>]) -> Vec<Attempt> {
        let end = |end: &Option<(i64, bool)>| {
            end.map(|(s, is_lost)| End { at: at(s), is_lost, outcome: None, text: "over".to_owned() })
        };
        let attempt = |(n, e): (u32, &Option<(i64, bool)>)| Attempt {
            submission_id: submission(n),
            submitted_at: Some(at(5)),
            end: end(e),
        };
        (1..).zip(ends).map(attempt).collect()
    }

    /// Marks as `kind at`, with the service of a death, then spans as `from-to`.
    fn told(curve: &Curve, incidents: &[Incident], attempts: &[Attempt]) -> String {
        let Marks { marks, lost } = decide(curve, &of_run(incidents, "a", &curve.groups, attempts), attempts);
        let seconds = |at: Timestamp| at.as_millis() / 1_000;
        let mark = |m: &Mark| {
            let service = m.service.as_ref().map(|s| format!(" of {s}")).unwrap_or_default();
            format!("{:?}{service} {}", m.kind, seconds(m.at))
        };
        let span = |s: &Span| format!("{}-{}", seconds(s.from), seconds(s.to));
        marks.iter().map(mark).chain(lost.iter().map(span)).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn each_death_is_marked_where_it_happened_and_the_work_since_the_checkpoint_is_lost() {
        const DIED: Option<&str> = Some("the actor died");
        let w0 = || incident("w0", 50, Cause::Exit);
        let running = || attempts(&[None]);
        for (what, groups, checkpoints, incidents, attempts, expected) in [
            ("nothing happened", &[(1, 10, None, None)][..], &[20][..], vec![], running(), ""),
            (
                "a worker died and the run goes on",
                &[(1, 10, Some(51), DIED), (1, 58, None, None)],
                &[20, 40, 70],
                vec![w0()],
                running(),
                "Death of w0 50, Resumed 58, 40-50",
            ),
            (
                "it waits for a worker still",
                &[(1, 10, Some(51), DIED)],
                &[40],
                vec![w0()],
                running(),
                "Death of w0 50, 40-50",
            ),
            (
                "two workers at once are two deaths and one loss",
                &[(1, 10, Some(51), DIED), (1, 58, None, None)],
                &[40],
                vec![w0(), incident("w1", 51, Cause::Exit)],
                running(),
                "Death of w0 50, Death of w1 51, Resumed 58, 40-51",
            ),
            (
                "without a checkpoint all of it is lost",
                &[(1, 10, Some(51), DIED), (1, 58, None, None)],
                &[],
                vec![w0()],
                running(),
                "Death of w0 50, Resumed 58, 10-50",
            ),
            (
                "what was lost by an earlier death is not lost twice",
                &[(1, 10, Some(51), DIED), (1, 58, Some(66), DIED), (1, 70, None, None)],
                &[40],
                vec![w0(), incident("w0", 65, Cause::Oom)],
                running(),
                "Death of w0 50, Resumed 58, Death of w0 65, Resumed 70, 40-50, 58-65",
            ),
            (
                "a process that nobody else saw die",
                &[(1, 10, Some(51), Some("ValueError: x")), (1, 58, None, None)],
                &[40],
                vec![],
                running(),
                "Death 51, Resumed 58, 40-51",
            ),
            (
                "an error of the script's after an incident",
                &[(1, 10, Some(51), DIED), (1, 58, Some(60), Some("ValueError: x")), (1, 63, None, None)],
                &[40],
                vec![w0()],
                running(),
                "Death of w0 50, Resumed 58, Death 60, Resumed 63, 40-50, 58-60",
            ),
            (
                "the driver died, and another attempt goes on",
                &[(1, 10, None, None), (2, 80, Some(100), None)],
                &[40, 90],
                vec![incident("ray-driver", 50, Cause::Exit)],
                attempts(&[Some((52, true)), Some((101, false))]),
                "Death of ray-driver 50, Lost 52, Resumed 80, Finished 101, 40-50",
            ),
            (
                "an attempt was lost and labd saw nothing die",
                &[(1, 10, None, None), (2, 80, None, None)],
                &[40],
                vec![],
                attempts(&[Some((52, true)), None]),
                "Lost 52, Resumed 80, 40-52",
            ),
            (
                "a worker that ends on request trains on for a while",
                &[(1, 10, Some(75), DIED), (1, 78, None, None)],
                &[40, 70],
                vec![incident("w0", 50, Cause::Asked)],
                running(),
                "Death of w0 50, Resumed 78, 70-75",
            ),
            (
                "a worker whose GPU is quarantined trains on as well",
                &[(1, 10, Some(75), DIED), (1, 78, None, None)],
                &[40, 70],
                vec![incident("w0", 50, Cause::Gpu)],
                running(),
                "Death of w0 50, Resumed 78, 70-75",
            ),
            (
                "what is not done again is not shaded",
                &[(1, 10, Some(60), Some("ValueError: x"))],
                &[40],
                vec![],
                attempts(&[Some((62, false))]),
                "Death 60, Finished 62",
            ),
            (
                "groups that Ray changed for another number of workers",
                &[(1, 10, Some(60), None), (1, 64, None, None)],
                &[40],
                vec![],
                running(),
                "",
            ),
        ] {
            assert_eq!(told(&curve(groups, checkpoints), &incidents, &attempts), expected, "{what}");
        }
    }

    #[test]
    fn only_what_hit_this_run_while_the_job_was_under_way_is_on_its_curve() {
        let mut elsewhere = incident("w1", 50, Cause::Exit);
        elsewhere.training[0].run = "b".to_owned();
        let all = [
            incident("w0", 2, Cause::Exit),
            elsewhere,
            incident("w0", 50, Cause::Exit),
            incident("w0", 99, Cause::Exit),
        ];
        let hit = of_run(&all, "a", &[], &attempts(&[Some((60, false))]));
        assert_eq!(hit.iter().map(|i| i.died_at).collect::<Vec<_>>(), [at(50)]);
        assert!(of_run(&all, "a", &[], &[]).is_empty());
    }

    #[test]
    fn a_death_where_the_run_trained_is_its_death_before_anybody_knows_what_it_did() {
        let mut curve = curve(&[(1, 10, Some(51), Some("died")), (1, 58, None, None)], &[40]);
        curve.groups[0].nodes = vec!["198.18.1.20".to_owned()];
        curve.name_nodes(|node| (node == "198.18.1.20").then_some("w0"));
        let mut killed = incident("w0", 50, Cause::Exit);
        killed.training.clear();
        let later = Incident { died_at: at(70), ..killed.clone() };
        assert_eq!(told(&curve, &[killed, later], &attempts(&[None])), "Death of w0 50, Resumed 58, 40-50");
    }

    #[test]
    fn a_run_that_reports_nothing_has_the_marks_that_labd_saw() {
        let mut hit = incident("w0", 50, Cause::Exit);
        hit.training[0].training_at = Some(at(57));
        assert_eq!(told(&Curve::default(), &[hit], &attempts(&[None])), "Death of w0 50, Resumed of w0 57");
    }

    #[test]
    fn an_end_says_whether_it_is_a_good_one() {
        let mut all = attempts(&[Some((52, true)), Some((101, false))]);
        for (outcome, word) in [
            (JobOutcome::Succeeded, "succeeded"),
            (JobOutcome::Failed, "failed"),
            (JobOutcome::Stopped, "stopped"),
            (JobOutcome::Lost, "lost"),
        ] {
            for end in all.iter_mut().filter_map(|attempt| attempt.end.as_mut()) {
                end.outcome = Some(outcome);
            }
            let marks = decide(&Curve::default(), &[], &all).marks;
            let told = serde_json::to_value(&marks).expect("plain data");
            assert_eq!((&told[0]["kind"], &told[0]["outcome"]), (&"lost".into(), &serde_json::Value::Null));
            assert_eq!((&told[1]["kind"], &told[1]["outcome"]), (&"finished".into(), &word.into()));
        }
    }

    #[test]
    fn a_resumption_says_what_the_incidents_record_says() {
        let groups = [(1, 10, Some(51), Some("x")), (1, 58, None, None)];
        let curve = Curve { run: "a".to_owned(), ..curve(&groups, &[40]) };
        let told = |checkpoint: Option<&str>, lost_ms| {
            let mut died = incident("w0", 50, Cause::Exit);
            let training_at = Some(at(58));
            died.training = vec![Interrupted {
                run: "a".to_owned(),
                training_at,
                checkpoint: checkpoint.map(str::to_owned),
                lost_ms,
            }];
            let Marks { marks, lost } = decide(&curve, &[&died], &attempts(&[None]));
            let text = marks.into_iter().find(|m| m.kind == MarkKind::Resumed).map(|m| m.text).expect("one");
            (text, lost[0].from.as_millis() / 1_000)
        };
        assert_eq!(told(Some("checkpoint_47"), Some(3_000)), ("trains again from checkpoint_47".to_owned(), 47));
        assert_eq!(told(None, None), ("trains again from checkpoint_40".to_owned(), 40), "the record does not know");
        let anew = told(None, Some(40_000));
        assert!(anew.0.contains("from the beginning") && anew.1 == 10, "{anew:?}");
    }

    #[test]
    fn a_resumption_says_from_where() {
        let groups = [(1, 10, Some(51), Some("x")), (1, 58, None, None)];
        let text = |checkpoints: &[i64]| {
            let marks = decide(&curve(&groups, checkpoints), &[], &attempts(&[None])).marks;
            marks.into_iter().find(|m| m.kind == MarkKind::Resumed).map(|m| m.text).expect("one")
        };
        assert_eq!(text(&[20, 40]), "trains again from checkpoint_40");
        assert!(text(&[]).contains("from the beginning"));
    }
}

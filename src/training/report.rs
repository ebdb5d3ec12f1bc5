//! What Ray Train's controller of a run posts of its reports (`images/ray/labd_curve.py`). Reading is pure.

use serde::Deserialize;

use crate::{
    text::{clean, clip, one_line},
    time::Timestamp,
};

/// Largest number of metrics of a run.
pub const METRICS: usize = 16;
/// Longest name of a metric, in characters.
const NAME: usize = 64;
/// Largest number of points in one post.
const POINTS: usize = 1_000;
/// Largest number of worker groups in one post.
const GROUPS: usize = 64;
/// Largest number of nodes of a worker group.
const NODES: usize = 64;
/// Longest id or name of a job or a run, in bytes. Chosen: Ray sets no limit.
const ID: usize = 1_024;
/// Longest id of a submission or of a call of `fit()`, in characters: there are many of those in a curve.
const MANY_IDS: usize = 256;
/// Largest number of a report: larger ones are no numbers to everybody (RFC 8259, section 6).
const SEQ: u64 = 1 << 53;
/// Largest number of dropped reports that is told. Chosen: those of all calls of `fit()` are summed up without overflow.
pub(super) const DROPPED: u64 = 1_000_000_000_000;
/// Longest name of a checkpoint, in characters.
const CHECKPOINT: usize = 200;
/// Longest reason why a worker group ended, in characters.
const WHY: usize = 300;

/// Reports of one run, as they came together.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Report {
    /// Submission of a person that the run belongs to.
    pub root: String,
    /// Time at which that came, as labd wrote it into the job's metadata: an id can be used again.
    #[serde(default)]
    pub submitted: String,
    /// Submission that runs it now.
    pub submission: String,
    /// Number of that attempt at the job.
    #[serde(default = "first")]
    pub attempt: u32,
    /// Name of the run.
    pub run: String,
    /// Ray's id of this call of `fit()`.
    pub run_id: String,
    /// Names of metrics.
    #[serde(default)]
    pub names: Vec<String>,
    /// Reports.
    #[serde(default)]
    pub points: Vec<Point>,
    /// Worker groups that began or ended.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// Number of reports that found no room in the controller, so far.
    #[serde(default)]
    pub dropped: u64,
}

/// One report of a run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Point {
    /// Number of the report in this call of `fit()`, from 1.
    pub seq: u64,
    /// Time at which it reached the controller, in milliseconds since the Unix epoch.
    #[serde(rename = "at", deserialize_with = "told")]
    pub at: Timestamp,
    /// Number of the worker group that sent it, from 1.
    pub group: u32,
    /// Name of the checkpoint that came with it.
    #[serde(default)]
    pub checkpoint: Option<String>,
    /// Values, in the order of the names; absent for what was not reported or is no finite number.
    pub values: Vec<Option<f64>>,
}

/// Worker group of a run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Group {
    /// Its number in this call of `fit()`, from 1.
    pub group: u32,
    /// Time at which its workers began to train.
    #[serde(deserialize_with = "told")]
    pub began: Timestamp,
    /// Time at which it ended.
    #[serde(default, deserialize_with = "maybe_told")]
    pub ended: Option<Timestamp>,
    /// Reason why it failed, in one line; absent where it did not.
    #[serde(default)]
    pub why: Option<String>,
    /// Addresses of the nodes its workers run on.
    #[serde(default)]
    pub nodes: Vec<String>,
}

const fn first() -> u32 {
    1
}

fn told<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
    i64::deserialize(from).map(Timestamp::told)
}

fn maybe_told<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(Option::<i64>::deserialize(from)?.map(Timestamp::told))
}

impl Report {
    /// Reads a post and makes its texts fit for a screen; `None` for what is not one. A clock that is wrong in there does not
    /// put a point into the future of `now`.
    pub fn parse(body: &[u8], now: Timestamp) -> Option<Self> {
        let mut report: Self = serde_json::from_slice(body).ok()?;
        let ids = [&report.root, &report.submission, &report.run, &report.run_id];
        if ids.iter().any(|id| id.is_empty() || id.len() > ID) || report.submitted.len() > ID {
            return None;
        }
        if [&report.submission, &report.run_id].iter().any(|id| id.chars().count() > MANY_IDS) {
            return None;
        }
        report.dropped = report.dropped.min(DROPPED);
        if report.names.len() > METRICS || report.points.len() > POINTS || report.groups.len() > GROUPS {
            return None;
        }
        let width = report.names.len();
        let in_time = |at: Timestamp| at.clamp(Timestamp::default(), now);
        for name in &mut report.names {
            *name = one_line(&clean(name), NAME);
        }
        let unique = |i: usize, name: &String| !name.is_empty() && !report.names[..i].contains(name);
        if !report.names.iter().enumerate().all(|(i, name)| unique(i, name)) {
            return None;
        }
        for point in &mut report.points {
            if point.values.len() != width || point.seq > SEQ {
                return None;
            }
            point.at = in_time(point.at);
            let name = point.checkpoint.take().map(|name| clip(clean(&name).trim(), CHECKPOINT));
            point.checkpoint = name.filter(|name| !name.is_empty());
        }
        for group in &mut report.groups {
            group.began = in_time(group.began);
            group.ended = group.ended.map(in_time);
            group.why = group.why.take().map(|why| one_line(&clean(&why), WHY)).filter(|why| !why.is_empty());
            group.nodes.truncate(NODES);
            group.nodes.retain(|node| node.parse::<std::net::IpAddr>().is_ok());
        }
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn post() -> Value {
        json!({
            "root": "food11", "submitted": "2026-11-30T03:00:00.000Z", "submission": "food11-r1", "attempt": 2,
            "run": "food11", "run_id": "0a1b", "names": ["loss", "accuracy"],
            "points": [{"seq": 1, "at": 5_000, "group": 1, "checkpoint": "checkpoint_1", "values": [0.5, null]}],
            "groups": [{"group": 1, "began": 4_000, "ended": null, "why": null, "nodes": ["198.18.1.20", "../x"]}],
            "dropped": 0, "surprise": 1,
        })
    }

    fn parse(post: &Value) -> Option<Report> {
        Report::parse(post.to_string().as_bytes(), Timestamp::from_millis(6_000))
    }

    #[test]
    fn a_post_is_read_and_what_is_none_is_not() {
        let read = parse(&post()).expect("a report");
        assert_eq!((read.attempt, read.points[0].values.clone()), (2, vec![Some(0.5), None]));
        assert_eq!(read.groups[0].nodes, ["198.18.1.20"]);
        for (what, path, value) in [
            ("no job", "/root", json!("")),
            ("a long id", "/run", json!("r".repeat(1_025))),
            ("a long time of a submission", "/submitted", json!("s".repeat(1_025))),
            ("a long id of a submission", "/submission", json!("ä".repeat(257))),
            ("a long id of a run", "/run_id", json!("r".repeat(257))),
            ("too many metrics", "/names", json!(vec!["m"; 17])),
            ("a name twice", "/names", json!(["loss", "loss"])),
            ("a name of nothing", "/names", json!(["loss", " "])),
            ("fewer values than names", "/points/0/values", json!([1.0])),
            ("words for a number", "/points/0/values", json!(["x", null])),
            ("a negative group", "/groups/0/group", json!(-1)),
            ("a number that no file takes", "/points/0/seq", json!(u64::MAX)),
            ("a number after which none comes", "/points/0/seq", json!(i64::MAX)),
        ] {
            let mut changed = post();
            *changed.pointer_mut(path).expect("there") = value;
            assert!(parse(&changed).is_none(), "{what}");
        }
        assert!(parse(&json!([])).is_none() && Report::parse(b"{", Timestamp::default()).is_none());
    }

    #[test]
    fn what_is_told_of_tomorrow_happened_now_and_texts_are_one_line() {
        let mut changed = post();
        changed["points"][0]["at"] = json!(9_999_999);
        changed["groups"][0]["ended"] = json!(9_999_999);
        changed["groups"][0]["why"] = json!("a\nb\u{1b}".repeat(500));
        changed["names"][0] = json!("l\no\u{1b}ss");
        changed["points"][0]["checkpoint"] = json!(" check\u{202e}point_1 ");
        changed["dropped"] = json!(i64::MAX);
        let read = parse(&changed).expect("a report");
        assert_eq!(read.points[0].at, Timestamp::from_millis(6_000));
        assert_eq!(read.groups[0].ended, Some(Timestamp::from_millis(6_000)));
        assert_eq!(read.dropped, DROPPED);
        assert_eq!((read.names[0].as_str(), read.points[0].checkpoint.as_deref()), ("l o ss", Some("check point_1")));
        assert!(
            read.groups[0]
                .why
                .as_ref()
                .is_some_and(|why| why.chars().count() == WHY && !why.contains(['\n', '\u{1b}']))
        );
    }
}

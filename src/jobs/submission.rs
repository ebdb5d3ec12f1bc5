//! A submission: as a person sent it, and as labd hands it in. Pure.
//!
//! The request is kept as it came, so that a resubmission is faithful even in what this labd does not know; only what labd
//! must say is said on top: an id, a place for the driver, and whose attempt it is.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// Metadata: `never`, or how often at most a lost job is resubmitted. Set by a person.
pub const RETRY: &str = "labd.retry";
/// Metadata: what a training run without a name of its own is called. Empty when it is not to be named.
pub const RUN: &str = "labd.run";
/// Metadata: the person's submission that this one belongs to.
pub const ROOT: &str = "labd.root";
/// Metadata: 1 for the person's submission, 2 for its first resubmission, and so on.
pub const ATTEMPT: &str = "labd.attempt";

/// What a submission may say of where its driver runs.
const PLACES: [&str; 5] = [
    "entrypoint_num_cpus",
    "entrypoint_num_gpus",
    "entrypoint_memory",
    "entrypoint_resources",
    "entrypoint_label_selector",
];

/// A request body that is a submission.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission(Map<String, Value>);

/// How often a lost job is resubmitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// As `labd.toml` says.
    Default,
    /// At most so often.
    AtMost(u32),
}

impl Submission {
    /// A submission, when the body is one that Ray could take. What is wrong with another is Ray's to say.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let Ok(Value::Object(map)) = serde_json::from_slice(body) else { return None };
        let text_or_nothing = |key: &str| matches!(map.get(key), None | Some(Value::Null | Value::String(_)));
        let map_or_nothing = |key: &str| matches!(map.get(key), None | Some(Value::Null | Value::Object(_)));
        let fits = matches!(map.get("entrypoint"), Some(Value::String(_)))
            && text_or_nothing("submission_id")
            && text_or_nothing("job_id")
            && map_or_nothing("metadata")
            && map_or_nothing("runtime_env");
        fits.then_some(Self(map))
    }

    /// The id a person chose.
    pub fn id(&self) -> Option<&str> {
        let text = |key: &str| self.0.get(key).and_then(Value::as_str).filter(|id| !id.is_empty());
        text("submission_id").or_else(|| text("job_id"))
    }

    /// The command line.
    pub fn entrypoint(&self) -> &str {
        self.0.get("entrypoint").and_then(Value::as_str).unwrap_or_default()
    }

    /// How often it is to be resubmitted. Nonsense is `never`: what a person tried to limit is not repeated.
    pub fn retry(&self) -> Retry {
        match self.metadata(RETRY) {
            None => Retry::Default,
            Some(text) => Retry::AtMost(text.trim().parse().unwrap_or(0)),
        }
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.0.get("metadata")?.get(key)?.as_str()
    }

    /// Whether it says itself where its driver runs.
    pub fn names_place(&self) -> bool {
        let placed = |v: &Value| match v {
            Value::Null => false,
            Value::Number(n) => n.as_f64() != Some(0.0),
            Value::Object(o) => !o.is_empty(),
            _ => true,
        };
        PLACES.iter().any(|key| self.0.get(*key).is_some_and(placed))
    }

    /// Names of the packages in the GCS that its `runtime_env` refers to.
    pub fn packages(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        if let Some(env) = self.0.get("runtime_env") {
            walk(env, &mut found);
        }
        found
    }

    /// The request body to hand in: under `id`, as the `attempt`-th of `root`, and named so that a run without a name of
    /// its own resumes, when `name_runs`. A driver that names no place gets the driver node's, so that neither the head's
    /// crash nor a GPU worker's takes it along.
    pub fn body(&self, id: &str, root: &str, attempt: u32, name_runs: bool) -> Vec<u8> {
        let mut map = self.0.clone();
        map.remove("job_id");
        map.insert("submission_id".to_owned(), json!(id));
        if !self.names_place() {
            map.insert("entrypoint_label_selector".to_owned(), json!({ "labd.role": "driver" }));
        }
        let mut metadata = match map.remove("metadata") {
            Some(Value::Object(metadata)) => metadata,
            _ => Map::new(),
        };
        // A name that the person chose by metadata stands.
        metadata.entry(RUN).or_insert_with(|| json!(if name_runs { root } else { "" }));
        metadata.insert(ROOT.to_owned(), json!(root));
        metadata.insert(ATTEMPT.to_owned(), json!(attempt.to_string()));
        map.insert("metadata".to_owned(), Value::Object(metadata));
        // A map with string keys always serialises.
        serde_json::to_vec(&map).unwrap_or_default()
    }

    /// As it was sent, for the ledger.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_default()
    }
}

fn walk(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            if let Some(name) = text.strip_prefix("gcs://").filter(|name| is_package_name(name)) {
                found.insert(name.to_owned());
            }
        }
        Value::Array(all) => all.iter().for_each(|v| walk(v, found)),
        Value::Object(all) => all.values().for_each(|v| walk(v, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Whether a package's name may name a file: Ray makes them of letters, digits, `_`, `-` and `.`.
pub fn is_package_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.chars().all(plain)
}

/// An id as Ray makes them for a submission without one.
pub fn new_id() -> String {
    use rand::{Rng as _, distr::Alphanumeric};
    let tail: String = rand::rng().sample_iter(&Alphanumeric).take(16).map(char::from).collect();
    format!("raysubmit_{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &Value) -> Submission {
        Submission::parse(value.to_string().as_bytes()).expect("a submission")
    }

    #[test]
    fn what_ray_would_refuse_is_none() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"entrypoint": 7}"#,
            r#"{"entrypoint": "x", "metadata": []}"#,
            "{",
            r#"{"entrypoint": "x", "submission_id": 3}"#,
        ] {
            assert_eq!(Submission::parse(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn it_is_handed_in_as_it_came_with_an_id_a_place_and_its_run() {
        let sent = json!({"entrypoint": "python train.py", "runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip",
            "env_vars": {"A": "b"}}, "metadata": {"job_submission_id": "x", "mine": "y"}, "new_in_ray": [1]});
        let body: Value = serde_json::from_slice(&of(&sent).body("food11-r1", "food11", 2, true)).expect("JSON");
        assert_eq!(body["submission_id"], "food11-r1");
        assert_eq!(body["entrypoint_label_selector"], json!({"labd.role": "driver"}));
        assert_eq!((&body["runtime_env"], &body["new_in_ray"]), (&sent["runtime_env"], &sent["new_in_ray"]));
        assert_eq!(
            body["metadata"],
            json!({"job_submission_id": "x", "mine": "y", RUN: "food11", ROOT: "food11", ATTEMPT: "2"})
        );
    }

    #[test]
    fn a_place_that_is_named_stands_and_so_does_a_name() {
        for place in [
            json!({"entrypoint_num_gpus": 1}),
            json!({"entrypoint_resources": {"x": 1}}),
            json!({"entrypoint_label_selector": {"a": "b"}}),
        ] {
            let mut sent = place.clone();
            sent["entrypoint"] = json!("x");
            sent["metadata"] = json!({RUN: "mine"});
            let body: Value = serde_json::from_slice(&of(&sent).body("a", "a", 1, true)).expect("JSON");
            assert_eq!(body["entrypoint_label_selector"], sent["entrypoint_label_selector"], "{place}");
            assert_eq!(body["metadata"][RUN], "mine");
        }
        for nowhere in [
            json!({"entrypoint_num_cpus": 0}),
            json!({"entrypoint_num_gpus": null}),
            json!({"entrypoint_resources": {}}),
        ] {
            let mut sent = nowhere;
            sent["entrypoint"] = json!("x");
            let body: Value = serde_json::from_slice(&of(&sent).body("a", "a", 1, false)).expect("JSON");
            assert_eq!(body["entrypoint_label_selector"]["labd.role"], "driver");
            assert_eq!(body["metadata"][RUN], "", "switched off");
        }
    }

    #[test]
    fn retry_and_packages_are_read() {
        let with = |retry: &str| of(&json!({"entrypoint": "x", "metadata": {RETRY: retry}})).retry();
        assert_eq!(of(&json!({"entrypoint": "x"})).retry(), Retry::Default);
        assert_eq!((with("never"), with(" 3 "), with("lots")), (Retry::AtMost(0), Retry::AtMost(3), Retry::AtMost(0)));
        let sent = of(
            &json!({"entrypoint": "x", "runtime_env": {"working_dir": "gcs://a.zip", "py_modules": ["gcs://b.zip", "s3://c.zip", "gcs://../d"]}}),
        );
        assert_eq!(sent.packages().into_iter().collect::<Vec<_>>(), ["a.zip", "b.zip"]);
    }
}

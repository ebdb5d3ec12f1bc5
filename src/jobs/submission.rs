//! Submissions to the job API: as a person sent one, and as labd submits it to Ray. Pure.
//!
//! The request is kept as it came, so that a resubmission is faithful even in what this labd does not know; only what labd
//! must say is said on top: an id, a place for the driver, and whose attempt it is.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value, json};

use crate::{
    ray::{ATTEMPT, Mark, ROOT, SETUP_SECONDS, SUBMITTED},
    text::{clean, clip, is_invisible, one_line},
};

/// Metadata key: `never`, or how often at most a lost job is resubmitted. Set by a person.
pub const RETRY: &str = "labd.retry";
/// Metadata key: name of a training run without a name of its own. Empty when it is not to be named.
pub const RUN: &str = "labd.run";
/// Metadata key: who submitted it, for the lab's account of GPU hours. Set by a person.
pub const USER: &str = "labd.user";
/// Metadata key: one line for the job's log, such as that its id was used before.
pub const NOTE: &str = "labd.note";

/// Largest request body: the agent that Ray hands a submission to takes no larger one (aiohttp's default), and answers with
/// a traceback.
pub const LARGEST: usize = 1 << 20;
/// Longest name of a user that is shown, in characters: chosen, not measured.
const LONGEST_USER: usize = 60;
/// Longest id, in characters: `labd jobs` and a run's name have room for it.
const LONGEST_ID: usize = 128;
/// Longest id, in bytes: Ray writes a job's log to `job-driver-<id>.log`, a file name has at most 255 bytes, and a
/// resubmission's id is a little longer.
const LONGEST_ID_BYTES: usize = 200;
/// Longest text that Ray must hand to a process: the kernel takes at most 128 KiB for one argument and for one environment
/// variable (`MAX_ARG_STRLEN`). Ray puts `runtime_env` and `metadata` into one variable, and adds a little to both.
const LONGEST_TEXT: usize = 120 << 10;

/// Fields by which a submission says where its driver runs.
const PLACES: [&str; 5] = [
    "entrypoint_num_cpus",
    "entrypoint_num_gpus",
    "entrypoint_memory",
    "entrypoint_resources",
    "entrypoint_label_selector",
];

/// A request body that is a submission.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    map: Map<String, Value>,
    /// Length as JSON: asked for more often than it is told.
    bytes: usize,
}

/// Name of a job's run, and what its log says of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Named<'a> {
    /// The name of a run that the script gives none; `None` leaves it to Ray.
    pub run: Option<&'a str>,
    /// One line for the log.
    pub note: Option<&'a str>,
}

/// Limit of how often a lost job is resubmitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Limit in `labd.toml`.
    Default,
    /// At most this number of times.
    AtMost(u32),
}

impl Submission {
    /// Submission in a request body, when the body is one that Ray could take. What is wrong with another is Ray's to
    /// say.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let Ok(Value::Object(map)) = serde_json::from_slice(body) else { return None };
        let text_or_nothing = |key: &str| matches!(map.get(key), None | Some(Value::Null | Value::String(_)));
        let map_or_nothing = |key: &str| matches!(map.get(key), None | Some(Value::Null | Value::Object(_)));
        let fits = matches!(map.get("entrypoint"), Some(Value::String(_)))
            && text_or_nothing("submission_id")
            && text_or_nothing("job_id")
            && map_or_nothing("metadata")
            && map_or_nothing("runtime_env");
        let bytes = serde_json::to_string(&map).unwrap_or_default().len();
        fits.then_some(Self { map, bytes })
    }

    /// Length as JSON, in bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Id that a person chose.
    pub fn id(&self) -> Option<&str> {
        let text = |key: &str| self.map.get(key).and_then(Value::as_str).filter(|id| !id.is_empty());
        text("submission_id").or_else(|| text("job_id"))
    }

    /// Whether the person chose the name of an unnamed run, or that there is none.
    pub fn names_run(&self) -> bool {
        self.metadata(RUN).is_some()
    }

    /// Checks whether Ray could begin it. What Ray would take and then keep PENDING forever is refused here: the error
    /// is one line that says what would be right.
    pub fn check(&self) -> Result<(), String> {
        if let Some(id) = self.id() {
            check_id(id)?;
        }
        let entrypoint = self.entrypoint();
        if entrypoint.contains('\0') || entrypoint.len() > LONGEST_TEXT {
            return Err(format!(
                "`entrypoint` must be a command of at most {} KiB without NUL; longer ones belong into a file of `working_dir`",
                LONGEST_TEXT >> 10
            ));
        }
        let metadata = self.map.get("metadata").and_then(Value::as_object);
        if let Some((name, _)) = metadata.into_iter().flatten().find(|(_, value)| !value.is_string()) {
            return Err(format!("`metadata` must have text as values: `{}` has not", clip(name, 40)));
        }
        let env = self.map.get("runtime_env").and_then(Value::as_object);
        match env.and_then(|env| env.get("env_vars")) {
            None | Some(Value::Null) => {}
            Some(Value::Object(vars)) => vars.iter().try_for_each(|(name, value)| check_variable(name, value))?,
            Some(_) => return Err("`runtime_env.env_vars` must be an object of texts".to_owned()),
        }
        let of = |map: Option<&Map<String, Value>>| map.map_or(0, ascii_length);
        let length = of(env) + of(metadata);
        if length > LONGEST_TEXT {
            return Err(format!(
                "`runtime_env` and `metadata` together must be at most {} KiB as JSON, these have {} KiB: put larger data \
                 into a file of `working_dir`",
                LONGEST_TEXT >> 10,
                length.div_ceil(1 << 10)
            ));
        }
        Ok(())
    }

    /// Command line.
    pub fn entrypoint(&self) -> &str {
        self.map.get("entrypoint").and_then(Value::as_str).unwrap_or_default()
    }

    /// Limit of how often it is resubmitted. Nonsense is `never`: what a person tried to limit is not repeated.
    pub fn retry(&self) -> Retry {
        match self.metadata(RETRY) {
            None => Retry::Default,
            Some(text) => Retry::AtMost(text.trim().parse().unwrap_or(0)),
        }
    }

    /// Name of its user as the person gave it, in one line that cannot steer a terminal.
    pub fn user(&self) -> Option<String> {
        Some(one_line(&clean(self.metadata(USER)?), LONGEST_USER)).filter(|name| !name.is_empty())
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.map.get("metadata")?.get(key)?.as_str()
    }

    /// Whether it says itself where its driver runs.
    pub fn names_place(&self) -> bool {
        let placed = |v: &Value| match v {
            Value::Null => false,
            Value::Number(n) => n.as_f64() != Some(0.0),
            Value::Object(o) => !o.is_empty(),
            _ => true,
        };
        PLACES.iter().any(|key| self.map.get(*key).is_some_and(placed))
    }

    /// Resources that its driver asks of the node it runs on, by Ray's names.
    pub fn asks(&self) -> HashMap<String, f64> {
        let named = [("entrypoint_num_gpus", "GPU"), ("entrypoint_num_cpus", "CPU"), ("entrypoint_memory", "memory")];
        let number = |key: &str| self.map.get(key).and_then(Value::as_f64);
        let asked = named.iter().filter_map(|(key, name)| Some(((*name).to_owned(), number(key)?)));
        let others = self.map.get("entrypoint_resources").and_then(Value::as_object).into_iter().flatten();
        let others = others.filter_map(|(name, n)| Some((name.clone(), n.as_f64()?)));
        asked.chain(others).filter(|(_, n)| *n > 0.0).collect()
    }

    /// Names of the packages in the GCS that its `runtime_env` refers to.
    pub fn packages(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        if let Some(env) = self.map.get("runtime_env") {
            walk(env, &mut found);
        }
        found
    }

    /// Request body to submit to Ray: under `id`, with labd's mark, and named so that a run without a name of its own
    /// resumes, when there is one in `named`. A driver that names no place gets the driver node's, so that neither the head's
    /// crash nor a GPU worker's takes it along.
    pub fn body(&self, id: &str, mark: Mark, named: Named<'_>) -> Vec<u8> {
        let mut map = self.map.clone();
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
        metadata.entry(RUN).or_insert_with(|| json!(named.run.unwrap_or_default()));
        if let Some(note) = named.note {
            metadata.insert(NOTE.to_owned(), json!(note));
        }
        metadata.insert(ROOT.to_owned(), json!(mark.root));
        metadata.insert(ATTEMPT.to_owned(), json!(mark.attempt.to_string()));
        if let Some(at) = mark.submitted {
            metadata.insert(SUBMITTED.to_owned(), json!(at));
        }
        map.insert("metadata".to_owned(), Value::Object(metadata));
        if let Some(Value::Object(env)) = map.get_mut("runtime_env") {
            with_packages(env, id);
        }
        // A map with string keys always serialises.
        serde_json::to_vec(&map).unwrap_or_default()
    }

    /// Submission as it was sent, for the ledger.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.map).unwrap_or_default()
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

/// Tells whoever installs packages for which job they are, and gives it the time that takes, on nodes that need them only.
/// What the person said stands.
fn with_packages(env: &mut Map<String, Value>, id: &str) {
    if !["pip", "uv"].iter().any(|key| env.get(*key).is_some_and(|v| !v.is_null())) {
        return;
    }
    let mut put = |key: &str, values: [(&str, Value); 2], count: usize| {
        let slot = env.entry(key).or_insert(Value::Null);
        if slot.is_null() {
            *slot = json!({});
        }
        // What is no object, Ray refuses.
        if let Value::Object(map) = slot {
            for (name, value) in values.into_iter().take(count) {
                map.entry(name).or_insert(value);
            }
        }
    };
    put("env_vars", [("LABD_JOB", json!(id)), ("", Value::Null)], 1);
    put("config", [("eager_install", json!(false)), ("setup_timeout_seconds", json!(SETUP_SECONDS))], 2);
}

fn check_id(id: &str) -> Result<(), String> {
    let right = id.chars().count() <= LONGEST_ID
        && id.len() <= LONGEST_ID_BYTES
        && !matches!(id, "." | "..")
        && id.chars().all(|c| c != '/' && !c.is_control() && !is_invisible(c));
    if right {
        return Ok(());
    }
    Err(format!(
        "`submission_id` must have at most {LONGEST_ID} characters, without `/`, control and invisible ones, such as \
         `food11-lr0.01`"
    ))
}

/// Checks a variable whose value is a secret: no error shows it.
fn check_variable(name: &str, value: &Value) -> Result<(), String> {
    let shown = clip(name, 40);
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(format!(
            "`runtime_env.env_vars` must have names without `=` and NUL: `{}`",
            shown.escape_default()
        ));
    }
    match value.as_str() {
        Some(text) if text.contains('\0') => Err(format!("`runtime_env.env_vars`: `{shown}` must not contain NUL")),
        Some(text) if name.len() + text.len() > LONGEST_TEXT => Err(format!(
            "`runtime_env.env_vars`: `{shown}` must be at most {} KiB, it has {} KiB: put larger data into a file of \
             `working_dir`",
            LONGEST_TEXT >> 10,
            text.len().div_ceil(1 << 10)
        )),
        Some(_) => Ok(()),
        None => Err(format!("`runtime_env.env_vars`: `{shown}` must be text, such as \"1\"")),
    }
}

/// Upper bound of the length as JSON as Python writes it: in ASCII, with a space after each separator.
fn ascii_length(map: &Map<String, Value>) -> usize {
    let text = serde_json::to_string(map).unwrap_or_default();
    text.chars()
        .map(|c| match c {
            ',' | ':' => 2,
            c if c.is_ascii() => 1,
            c => 6 * c.len_utf16(),
        })
        .sum()
}

/// Whether a package's name may name a file. Ray makes names of letters, digits, `_`, `-` and `.`; wheels keep the names
/// that pip gives them, such as `torch-2.9.0+cpu-cp313-cp313-linux_x86_64.whl` or one with an epoch, `1!2.0`.
pub fn is_package_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.+!~@=,() ".contains(c);
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.chars().all(plain)
}

/// New id as Ray makes them for a submission without one.
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

    fn mark(root: &str, attempt: u32) -> Mark {
        Mark { root: root.into(), attempt, submitted: Some("then".into()) }
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
    fn a_number_in_it_is_the_same_each_time_it_is_written_and_read() {
        for number in ["0.30000000000000004", "1.7976931348623157e308", &"7".repeat(52)] {
            let body = format!(r#"{{"entrypoint": "x", "entrypoint_num_gpus": {number}}}"#);
            let read = Submission::parse(body.as_bytes()).expect("a submission");
            assert_eq!(Submission::parse(read.to_json().as_bytes()), Some(read), "{number}");
        }
    }

    #[test]
    fn it_is_submitted_as_it_came_with_an_id_a_place_and_its_run() {
        let sent = json!({"entrypoint": "python train.py", "runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip",
            "env_vars": {"A": "b"}}, "metadata": {"job_submission_id": "x", "mine": "y"}, "new_in_ray": [1]});
        let body: Value = serde_json::from_slice(&of(&sent).body(
            "food11-r1",
            mark("food11", 2),
            Named { run: Some("food11.2"), note: Some("used before") },
        ))
        .expect("JSON");
        assert_eq!(body["submission_id"], "food11-r1");
        assert_eq!(body["entrypoint_label_selector"], json!({"labd.role": "driver"}));
        assert_eq!((&body["runtime_env"], &body["new_in_ray"]), (&sent["runtime_env"], &sent["new_in_ray"]));
        assert_eq!(
            body["metadata"],
            json!({"job_submission_id": "x", "mine": "y", RUN: "food11.2", NOTE: "used before", ROOT: "food11", ATTEMPT: "2",
                SUBMITTED: "then"})
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
            let body: Value =
                serde_json::from_slice(&of(&sent).body("a", mark("a", 1), Named { run: Some("a"), note: None }))
                    .expect("JSON");
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
            let body: Value =
                serde_json::from_slice(&of(&sent).body("a", mark("a", 1), Named::default())).expect("JSON");
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

    #[test]
    fn a_user_is_one_short_line() {
        let with = |user: &str| of(&json!({"entrypoint": "x", "metadata": {USER: user}})).user();
        assert_eq!(of(&json!({"entrypoint": "x"})).user(), None);
        for (given, shown) in [
            ("anna", Some("anna")),
            ("  Ännchen \n von  Tharau ", Some("Ännchen von Tharau")),
            ("a\u{1b}[2J\u{202e}b", Some("a [2J b")),
            (" \u{200b}\n", None),
            ("", None),
        ] {
            assert_eq!(with(given).as_deref(), shown, "{given:?}");
        }
        assert_eq!(with(&"x".repeat(10_000)).expect("cut").chars().count(), LONGEST_USER);
    }

    #[test]
    fn what_ray_would_keep_pending_forever_is_refused_with_what_would_be_right() {
        let with = |key: &str, value: Value| {
            let mut sent = json!({"entrypoint": "x"});
            sent[key] = value;
            of(&sent).check()
        };
        for id in ["a", "food11", &"a".repeat(128), "lr 0.01", "Füchse", "a%b?c#d", "raysubmit_AbCdEfGhIjKlMnOp"] {
            assert_eq!(with("submission_id", json!(id)), Ok(()), "{id}");
        }
        for id in [
            "a/b",
            &"a".repeat(129),
            &"狐".repeat(100),
            "a\nb",
            "a\u{202e}b",
            "a\u{200b}",
            ".",
            "..",
            "\u{feff}a",
            "\0",
        ] {
            let line = with("submission_id", json!(id)).expect_err(id);
            assert!(line.contains("at most 128 characters") && !line.contains('\n'), "{line}");
        }
        let env = |vars: Value| with("runtime_env", json!({ "env_vars": vars }));
        assert_eq!(env(json!({"A": "b".repeat(100 << 10), "": null})).expect_err("no name").matches('\n').count(), 0);
        assert_eq!(env(json!({"A": "b".repeat(100 << 10)})), Ok(()));
        assert_eq!(env(Value::Null), Ok(()));
        for (vars, right) in [
            (json!({"SECRET": "hunter2".repeat(30_000)}), "at most 120 KiB, it has 206 KiB"),
            (json!({"A": "ä".repeat(30_000)}), "together must be at most 120 KiB as JSON, these have 176 KiB"),
            (json!({"A": "b\u{0}"}), "must not contain NUL"),
            (json!({"A=B": "c"}), "names without `=`"),
            (json!({"A": 7}), "must be text"),
            (json!(["A"]), "an object of texts"),
        ] {
            let line = env(vars).expect_err(right);
            assert!(line.contains(right) && !line.contains("hunter2") && line.len() < 300, "{line}");
        }
        assert!(with("metadata", json!({"a": 1})).expect_err("a number").contains("text as values: `a`"));
        assert!(with("metadata", json!({"a": "b".repeat(130_000)})).is_err());
        assert!(with("entrypoint", json!("x".repeat(130_000))).expect_err("too long").contains("at most 120 KiB"));
    }

    #[test]
    fn one_that_brings_packages_says_whose_they_are_and_gets_the_time() {
        let body = |env: Value| -> Value {
            let sent = of(&json!({"entrypoint": "x", "runtime_env": env}));
            serde_json::from_slice(&sent.body("food11-r1", mark("food11", 2), Named::default())).expect("JSON")
        };
        for key in ["pip", "uv"] {
            let env = body(json!({key: ["emoji"], "env_vars": {"A": "b"}}))["runtime_env"].clone();
            assert_eq!(env["env_vars"], json!({"A": "b", "LABD_JOB": "food11-r1"}));
            assert_eq!(env["config"], json!({"eager_install": false, "setup_timeout_seconds": 3600}));
        }
        let said = json!({"pip": ["emoji"], "env_vars": null,
            "config": {"eager_install": true, "setup_timeout_seconds": 60, "x": 1}});
        let env = body(said.clone())["runtime_env"].clone();
        assert_eq!((&env["config"], &env["env_vars"]["LABD_JOB"]), (&said["config"], &json!("food11-r1")));
        for env in [json!({"env_vars": {"A": "b"}}), json!({"pip": null}), json!({})] {
            assert_eq!(body(env.clone())["runtime_env"], env, "no packages");
        }
    }

    #[test]
    fn names_as_pip_makes_them_name_files() {
        for name in ["torch-2.9.0+cpu-cp313-cp313-linux_x86_64.whl", "a-1!2.0-py3-none-any.whl", "_ray_pkg_1.zip"] {
            assert!(is_package_name(name), "{name}");
        }
        for name in ["../a", "a/b", ".a", "", "a\nb", "a\\b", &"a".repeat(201)] {
            assert!(!is_package_name(name), "{name}");
        }
    }
}

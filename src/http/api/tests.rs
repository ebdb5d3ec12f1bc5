//! Who may ask what, and what is answered, as a table over the document.

use std::collections::BTreeSet;

use axum::{Router, body::Body, http::Request, response::Response};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::super::openapi;
use crate::{
    accounts::Role,
    door,
    http::{
        admin_router, public_router,
        testing::{Lab, ask, json as answer, status_and_text},
    },
    incident::{Cause, Incident, Interrupted, Order},
    journal::{Entry, Kind},
    snapshot::Snapshot,
    time::Timestamp,
};

fn document(cookie: &str) -> Value {
    serde_json::from_slice(&openapi::document(cookie)).expect("JSON")
}

/// Methods that are tried.
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

/// One operation of the document.
struct Asked {
    method: String,
    path: String,
    role: String,
    on: Vec<String>,
    told: Value,
}

/// Every operation, each of its paths with parts that the lab of the tests has.
fn operations(document: &Value) -> Vec<Asked> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let paths = document["paths"].as_object().expect("paths");
    let all = paths.iter().flat_map(|(path, methods)| {
        methods.as_object().expect("methods").iter().map(move |(method, told)| Asked {
            method: method.to_ascii_uppercase(),
            path: with_parts(path),
            role: text(&told["x-labd-role"]),
            on: told["x-labd-on"].as_array().expect("listeners").iter().map(text).collect(),
            told: told.clone(),
        })
    });
    all.collect()
}

fn with_parts(path: &str) -> String {
    let parts = [
        ("{service}", "minio"),
        ("{verb}", "stop"),
        ("{gpu}", "SIM-0"),
        ("{fault}", "xid-79"),
        ("{id}", "raysubmit_1"),
        ("{uid}", "labd"),
        ("{user}", "ada"),
        ("{session}", "01234567"),
    ];
    let path = parts.iter().fold(path.to_owned(), |path, (part, value)| path.replace(part, value));
    assert!(!path.contains('{'), "{path}: say here what stands there, and in `part` what it means");
    path
}

/// Whoever asks: the lines in the head of their requests.
type Lines = Vec<(&'static str, String)>;

fn stranger() -> Lines {
    vec![("origin", "http://localhost:8600".to_owned())]
}

async fn person(lab: &Lab, role: Role) -> Lines {
    let (cookie, csrf) = lab.log_in(role).await;
    [stranger(), vec![("cookie", cookie), ("x-labd-csrf", csrf)]].concat()
}

async fn sent(router: Router, method: &str, path: &str, lines: &Lines) -> Response {
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost:8600");
    for (name, value) in lines {
        request = request.header(*name, value);
    }
    router.oneshot(request.body(Body::empty()).expect("a request")).await.expect("routers do not fail")
}

fn lab() -> Lab {
    let lab = Lab::answering(|_| Ok("on it".into()));
    // Each that is told of is there, so that a refusal is one of rights.
    lab.snapshot.send_modify(|snapshot| std::sync::Arc::make_mut(snapshot).incidents.clear());
    lab
}

#[tokio::test]
async fn every_operation_is_answered_to_whom_the_document_says() {
    let document = document("labd-test-lab");
    for is_open in [false, true] {
        let lab = if is_open { lab() } else { lab().closed() };
        for asked in operations(&document) {
            let (viewer, admin) = (person(&lab, Role::Viewer).await, person(&lab, Role::Admin).await);
            let without_token: Lines = admin.iter().filter(|(name, _)| *name != "x-labd-csrf").cloned().collect();
            let changes = asked.method != "GET" && asked.role == "admin";
            // Who asks, and the refusal that is right for them; none where they may.
            let table = [
                (
                    "a stranger",
                    stranger(),
                    match asked.role.as_str() {
                        "anybody" => None,
                        "anonymous" if is_open => None,
                        _ => Some(401),
                    },
                ),
                ("a viewer", viewer, (asked.role == "admin").then_some(403)),
                ("an admin without the token", without_token, changes.then_some(403)),
                ("an admin", admin, None),
            ];
            for (name, lines, refusal) in table {
                let what = format!("{} {} asked by {name}, open: {is_open}", asked.method, asked.path);
                let got = sent(public_router(lab.state.clone()), &asked.method, &asked.path, &lines).await;
                let status = got.status().as_u16();
                if !asked.on.iter().any(|on| on == "page") {
                    assert!(status == 404 || status == 405, "{what}: {status}");
                    continue;
                }
                assert!(
                    asked.told["responses"].get(status.to_string()).is_some(),
                    "{what}: {status} is not documented"
                );
                match refusal {
                    Some(refusal) => assert_eq!(status, refusal, "{what}"),
                    None => assert!(status != 401 && status != 403 && status != 405, "{what}: {status}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn the_socket_answers_everything_that_the_document_has_there() {
    let lab = lab();
    for asked in operations(&document("labd-test-lab")) {
        let got = ask(admin_router(lab.state.clone()), &asked.method, &asked.path).await;
        let (status, kind) = (got.status().as_u16(), got.headers().get("content-type").cloned());
        let what = format!("{} {}", asked.method, asked.path);
        if asked.on.iter().any(|on| on == "socket") {
            let told = &asked.told["responses"][status.to_string()];
            assert!(!told.is_null() && status != 401 && status != 403, "{what}: {status} is not documented");
            let kind = kind.expect("a type").to_str().expect("text").to_owned();
            let told = if status == 200 { told["content"].as_object().expect("content").keys().next() } else { None };
            let told = told.map_or("application/problem+json", String::as_str);
            assert_eq!(kind.split(';').next(), Some(told), "{what}: {status}");
        } else {
            assert_eq!(status, 404, "{what}");
        }
    }
}

#[tokio::test]
async fn methods_and_paths_that_are_not_in_the_document_are_not_there() {
    let lab = lab();
    let admin = person(&lab, Role::Admin).await;
    let document = document("labd-test-lab");
    let all = operations(&document);
    for (router, on) in [(public_router(lab.state.clone()), "page"), (admin_router(lab.state.clone()), "socket")] {
        let paths: BTreeSet<&String> =
            all.iter().filter(|asked| asked.on.iter().any(|o| o == on)).map(|asked| &asked.path).collect();
        for path in paths {
            let known: BTreeSet<&str> =
                all.iter().filter(|asked| asked.path == *path).map(|asked| asked.method.as_str()).collect();
            for method in METHODS.into_iter().filter(|method| !known.contains(method)) {
                let got = sent(router.clone(), method, path, &admin).await;
                assert_eq!(got.status(), 405, "{method} {path} on {on}");
                assert!(got.headers().contains_key("allow"), "{method} {path} on {on}");
            }
        }
        for path in ["/api/v1", "/api/v1/", "/api/v1/nothing", "/api/v1/services/minio/logs/", "/api/v2/snapshot"] {
            assert_eq!(sent(router.clone(), "GET", path, &admin).await.status(), 404, "{path} on {on}");
        }
    }
}

#[tokio::test]
async fn the_door_is_closed_to_strangers_and_the_page_asks_for_a_login() {
    let lab = lab();
    let page = [stranger(), vec![("accept", "text/html,*/*".to_owned())]].concat();
    for up in door::ALL.iter().filter(|up| up.origin == door::Origin::Main) {
        for path in
            [up.prefix.to_owned(), up.prefix.trim_end_matches('/').to_owned(), format!("{}api/x?y=z", up.prefix)]
        {
            for method in METHODS {
                let got = sent(public_router(lab.state.clone()), method, &path, &stranger()).await;
                assert_eq!(got.status(), 401, "{method} {path}");
                let got = sent(public_router(lab.state.clone()), method, &path, &vec![]).await;
                assert_eq!(got.status(), if method == "GET" { 401 } else { 403 }, "{method} {path} from nowhere");
            }
            let got = sent(public_router(lab.state.clone()), "GET", &path, &page).await;
            assert_eq!(
                (got.status().as_u16(), &got.headers()["location"]),
                (303, &"/".parse().expect("a path")),
                "{path}"
            );
        }
    }
    // The page is the login page, and knows nothing before it has asked the API.
    for path in ["/", "/js/main.js", "/style.css"] {
        let (status, text) = status_and_text(sent(public_router(lab.state.clone()), "GET", path, &page).await).await;
        assert!(status == 200 && !text.contains("test-lab") && !text.contains("train.py"), "{path}: {status}");
    }
}

#[tokio::test]
async fn parameters_that_are_not_in_the_document_are_refused() {
    let lab = lab();
    for asked in operations(&document("labd-test-lab")) {
        let beside = !asked.path.starts_with("/api/");
        if beside || asked.on.iter().all(|on| on != "socket") || asked.told.get("requestBody").is_some() {
            continue;
        }
        let path = format!("{}?nonsense=1", asked.path);
        let (status, text) = status_and_text(ask(admin_router(lab.state.clone()), &asked.method, &path).await).await;
        assert!(status == 400 && text.contains("nonsense"), "{} {path}: {status} {text}", asked.method);
    }
}

#[test]
fn the_document_is_whole() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(all) => all.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document("labd-test-lab");
    let mut found = Vec::new();
    references(&document, &mut found);
    for reference in found {
        let path = reference.strip_prefix('#').expect("of this document");
        assert!(document.pointer(path).is_some(), "{reference} leads nowhere");
    }
    let mut ids = BTreeSet::new();
    for asked in operations(&document) {
        let what = format!("{} {}", asked.method, asked.path);
        assert!(ids.insert(asked.told["operationId"].to_string()), "{what}: its id is another's");
        let summary = asked.told["summary"].as_str().expect("text");
        assert!(!summary.is_empty() && !summary.ends_with('.'), "{what}: {summary:?}");
        for parameter in asked.told["parameters"].as_array().expect("a list") {
            let told = parameter["description"].as_str().unwrap_or_default();
            assert!(told.ends_with('.'), "{what}: say what {} is: {told:?}", parameter["name"]);
            assert!(parameter["schema"].get("type").is_some_and(Value::is_string), "{what}: {parameter}");
        }
    }
    let text = document.to_string();
    assert!(!text.contains("[`") && text.len() < 120_000, "{}", text.len());
}

/// Whether a value is as a schema says, and has no member that it does not name.
fn fits(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{what}: {value} is not {schema}"));
    if let Some(reference) = schema["$ref"].as_str() {
        return fits(document, document.pointer(&reference[1..]).expect("it is there"), value);
    }
    for any in ["anyOf", "oneOf"] {
        if let Some(of) = schema[any].as_array() {
            let tried: Vec<_> = of.iter().map(|schema| fits(document, schema, value)).collect();
            let fitting = tried.iter().filter(|fit| fit.is_ok()).count();
            let is_right = if any == "oneOf" { fitting == 1 } else { fitting > 0 };
            return if is_right { Ok(()) } else { wrong(&format!("{tried:?}")) };
        }
    }
    if schema.get("const").is_some_and(|only| only != value) {
        return wrong("const");
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return wrong("enum");
    }
    let types = match &schema["type"] {
        Value::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !types.iter().any(|told| told == kind || (told == "number" && kind == "integer")) {
        return wrong("type");
    }
    if let (Some(least), Some(number)) = (schema["minimum"].as_f64(), value.as_f64())
        && number < least
    {
        return wrong("minimum");
    }
    if schema["format"] == "date-time"
        && let Some(text) = value.as_str()
        && Timestamp::parse(text).is_none()
    {
        return wrong("time");
    }
    if let Some(items) = value.as_array() {
        return items.iter().try_for_each(|item| fits(document, &schema["items"], item));
    }
    let Some(members) = value.as_object() else { return Ok(()) };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !members.contains_key(name.as_str().expect("text")) {
            return wrong(&format!("{name} is missing"));
        }
    }
    members.iter().try_for_each(|(name, member)| {
        match schema["properties"].get(name).or_else(|| schema.get("additionalProperties")) {
            Some(Value::Bool(true)) => Ok(()),
            Some(told) => fits(document, told, member).map_err(|e| format!("{name}: {e}")),
            None => wrong(&format!("{name} is not documented")),
        }
    })
}

#[tokio::test]
async fn what_is_answered_is_as_the_document_says() {
    let lab = lab();
    let golden: Value =
        serde_json::from_str(include_str!("../../../tests/data/golden/snapshot.json")).expect("a snapshot");
    let golden: Snapshot = serde_json::from_value(golden).expect("a snapshot");
    lab.state.journal.record(Entry {
        at: Timestamp::now(),
        service: None,
        kind: Kind::Daemon,
        what: "started".into(),
        reason: "a test".into(),
    });
    lab.state.journal.keep_incident(Incident {
        service: "ray-worker-0".into(),
        cause: Cause::Oom,
        why: "container exited 137".into(),
        died_at: Timestamp::now(),
        noticed_at: Timestamp::now(),
        running_at: Some(Timestamp::now()),
        ready_at: None,
        training: vec![Interrupted { run: "food11".into(), training_at: None, checkpoint: None, lost_ms: Some(7) }],
        order: Order::default(),
    });
    lab.state.journal.flush().await;
    lab.state
        .accounts
        .add("ada", Role::Viewer, &crate::secret::Secret::new("a long enough password"))
        .await
        .expect("a good one");
    lab.log_in(Role::Admin).await;
    let document = document("labd-test-lab");
    let mut json = 0;
    for with in [None, Some(golden)] {
        if let Some(snapshot) = with {
            lab.snapshot.send_replace(snapshot.into());
        }
        for asked in operations(&document) {
            let got = ask(admin_router(lab.state.clone()), &asked.method, &asked.path).await;
            let (status, kind) = (got.status().as_u16(), got.headers()["content-type"].clone());
            let schema = match (status, kind.to_str().expect("text")) {
                (200, "application/json") => &asked.told["responses"]["200"]["content"]["application/json"]["schema"],
                (200, _) => continue,
                (_, "application/problem+json") => &json!({ "$ref": "#/components/schemas/Problem" }),
                (_, kind) => panic!("{} {}: {status} {kind}", asked.method, asked.path),
            };
            let (_, text) = status_and_text(got).await;
            let value: Value = serde_json::from_str(&text).expect("JSON");
            fits(&document, schema, &value).unwrap_or_else(|e| panic!("{} {}: {e}", asked.method, asked.path));
            json += usize::from(status == 200);
        }
    }
    assert!(json > 40, "most of them were answered: {json}");
}

#[tokio::test]
async fn lists_and_single_things_are_those_of_the_snapshot() {
    let lab = lab();
    let router = || admin_router(lab.state.clone());
    let snapshot = answer(ask(router(), "GET", "/api/v1/snapshot").await).await;
    for (path, member) in
        [("services", "services"), ("gpus", "gpus"), ("gpus", "gpu_sources"), ("runs", "runs"), ("jobs", "jobs")]
    {
        let list = answer(ask(router(), "GET", &format!("/api/v1/{path}")).await).await;
        assert_eq!(list[member], snapshot[member], "{path}");
    }
    for (path, one) in [("services/minio", &snapshot["services"][1]), ("gpus/SIM-0", &snapshot["gpus"][0])] {
        assert_eq!(&answer(ask(router(), "GET", &format!("/api/v1/{path}")).await).await, one, "{path}");
    }
    for (path, says) in [("services/minoi", "there are: ray-head, minio"), ("gpus/SIM-7", "labd gpu")] {
        let (status, text) = status_and_text(ask(router(), "GET", &format!("/api/v1/{path}")).await).await;
        assert!(status == 404 && text.contains(says), "{path}: {status} {text}");
    }
}

#[tokio::test]
async fn what_jobs_run_is_in_no_list_that_strangers_see() {
    let lab = lab();
    for path in ["snapshot", "jobs"] {
        let path = format!("/api/v1/{path}");
        let text = |got| async { status_and_text(got).await.1 };
        assert!(!text(ask(public_router(lab.state.clone()), "GET", &path).await).await.contains("train.py"), "{path}");
        let viewer = person(&lab, Role::Viewer).await;
        let got = sent(public_router(lab.state.clone()), "GET", &path, &viewer).await;
        assert!(text(got).await.contains("train.py"), "{path}");
    }
}

#[tokio::test]
async fn jobs_and_incidents_are_told_by_pages() {
    let lab = lab();
    lab.snapshot.send_modify(|snapshot| {
        let snapshot = std::sync::Arc::make_mut(snapshot);
        let job = snapshot.jobs[0].clone();
        let at = |n: i64| Some(Timestamp::from_millis(1_795_492_872_123 + n));
        let ids = (0..5).map(|n| crate::snapshot::JobView {
            submission_id: format!("job-{n}"),
            submitted_at: at(n),
            ..job.clone()
        });
        snapshot.jobs = ids.rev().collect();
    });
    for n in 0..5 {
        lab.state.journal.keep_incident(Incident {
            service: format!("service-{n}"),
            cause: if n == 3 { Cause::Asked } else { Cause::Exit },
            why: "a test".into(),
            died_at: Timestamp::from_millis(1_795_492_872_123 + n / 2),
            noticed_at: Timestamp::now(),
            running_at: None,
            ready_at: None,
            training: vec![],
            order: Order::default(),
        });
    }
    lab.state.journal.flush().await;
    for (list, name, want) in [
        ("jobs", "submission_id", vec!["job-4", "job-3", "job-2", "job-1", "job-0"]),
        ("incidents", "service", vec!["service-4", "service-2", "service-1", "service-0"]),
    ] {
        let (mut seen, mut path) = (Vec::new(), format!("/api/v1/{list}?limit=2"));
        loop {
            let page = answer(ask(admin_router(lab.state.clone()), "GET", &path).await).await;
            let entries = page[list].as_array().expect("a list");
            assert!(entries.len() <= 2 && seen.len() < want.len(), "{seen:?}");
            seen.extend(entries.iter().map(|entry| entry[name].as_str().expect("text").to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/api/v1/{list}?limit=2&before={next}");
        }
        assert_eq!(seen, want, "{list}");
        for query in ["?limit=0", "?limit=201", "?limit=x", "?before=x", "?after=1"] {
            let path = format!("/api/v1/{list}{query}");
            let (status, text) = status_and_text(ask(admin_router(lab.state.clone()), "GET", &path).await).await;
            assert!(status == 400 && text.starts_with("{\"detail\":"), "{path}: {status} {text}");
        }
    }
}

//! `labd notify`: who is told what happens, and whether that works.

use hyper::Method;
use serde_json::Value;

use super::{
    args::Notify,
    client::Client,
    exit::{Exit, Failure},
    status,
    text::Out,
};
use crate::text::path_segment;

/// Carries out one of the commands about notifications.
pub(super) async fn run(client: &Client<'_>, command: Notify, out: &mut Out) -> Result<(), Failure> {
    match command {
        Notify::List(args) => {
            let answer: Value = client.json("/api/v1/notify").await?;
            if args.json { out.json(&answer["targets"]) } else { out.text(&targets(&answer["targets"])) }
        }
        Notify::Test { name, json } => {
            let query = name.map(|name| format!("?name={}", path_segment(&name))).unwrap_or_default();
            let answer = client.send_json(Method::POST, &format!("/api/v1/notify/test{query}"), &Value::Null).await?;
            let all = &answer["targets"];
            if json.json {
                out.json(all)?;
            } else {
                out.text(&tested(all))?;
            }
            let failed = all.as_array().into_iter().flatten().filter(|t| t["delivered"] != true).count();
            match failed {
                0 => Ok(()),
                1 => Err(Failure::new(Exit::Failure, "one target was not told")),
                n => Err(Failure::new(Exit::Failure, format!("{n} targets were not told"))),
            }
        }
    }
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn targets(all: &Value) -> String {
    let row = |t: &Value| {
        let events: Vec<String> = t["events"].as_array().into_iter().flatten().map(word).collect();
        let state = t["trouble"].as_str().map_or_else(|| "ok".to_owned(), |why| format!("not told: {why}"));
        let waiting = t["waiting"].as_u64().unwrap_or_default().to_string();
        vec![word(&t["name"]), word(&t["kind"]), waiting, state, events.join(" ")]
    };
    let rows: Vec<Vec<String>> = all.as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "nobody is told anything: labd.toml has no `[[notify]]`\n".to_owned();
    }
    status::table(&["NAME", "KIND", "WAITING", "STATE", "EVENTS"], &rows)
}

fn tested(all: &Value) -> String {
    let row = |t: &Value| {
        let outcome =
            if t["delivered"] == true { "delivered".to_owned() } else { format!("not told: {}", word(&t["reason"])) };
        vec![word(&t["name"]), word(&t["kind"]), outcome]
    };
    let rows: Vec<Vec<String>> = all.as_array().into_iter().flatten().map(row).collect();
    status::table(&["NAME", "KIND", "TEST"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn targets_are_a_table() {
        let all = json!([
            {"name": "ops", "kind": "slack", "events": ["crash-loop", "lab-whole"], "waiting": 2, "trouble": "it answers 403"},
            {"name": "mail", "kind": "smtp", "events": [], "waiting": 0, "trouble": null},
        ]);
        let text = targets(&all);
        assert!(text.contains("not told: it answers 403") && text.contains("crash-loop lab-whole"), "{text}");
        assert!(targets(&json!([])).contains("nobody is told"));
        let text = tested(&json!([{"name": "ops", "kind": "slack", "delivered": false, "reason": "it answers 403"}]));
        assert!(text.contains("not told: it answers 403"), "{text}");
    }
}

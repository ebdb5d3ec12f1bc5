//! `labd user` and `labd open`: who may use the page.

use std::io::{BufRead as _, IsTerminal as _, stdin};

use hyper::Method;
use serde_json::{Value, json};

use super::{
    args::User,
    client::Client,
    exit::{Exit, Failure},
    status,
    text::{self, Out},
};
use crate::text::path_segment;

/// Carries out one of the commands about accounts.
pub(super) async fn run(client: &Client<'_>, command: User, out: &mut Out) -> Result<(), Failure> {
    let line = match command {
        User::List(args) => {
            let all: Value = client.json("/api/v1/users").await?;
            return if args.json { out.json(&all) } else { out.text(&accounts(&all)) };
        }
        User::Sessions(args) => {
            let all: Value = client.json("/api/v1/sessions").await?;
            return if args.json { out.json(&all) } else { out.text(&sessions(&all)) };
        }
        User::Add { name, role } => {
            let password = new_password(&name).await?;
            let body = json!({ "name": name, "role": role.as_str(), "password": password });
            client.send_json(Method::POST, "/api/v1/users", &body).await?
        }
        User::Passwd { name } => {
            let path = format!("/api/v1/users/{}/password", path_segment(&name));
            let body = json!({ "password": new_password(&name).await? });
            client.send_json(Method::POST, &path, &body).await?
        }
        User::Role { name, role } => {
            let path = format!("/api/v1/users/{}/role", path_segment(&name));
            client.send_json(Method::POST, &path, &json!({ "role": role.as_str() })).await?
        }
        User::Remove { name } => {
            client.send_json(Method::DELETE, &format!("/api/v1/users/{}", path_segment(&name)), &Value::Null).await?
        }
        User::End { session } => {
            client
                .send_json(Method::DELETE, &format!("/api/v1/sessions/{}", path_segment(&session)), &Value::Null)
                .await?
        }
    };
    out.line(line["message"].as_str().unwrap_or("done"))
}

/// Prints a link that logs in once.
pub(super) async fn open(client: &Client<'_>, print: bool, out: &mut Out) -> Result<(), Failure> {
    let link = link(client).await?;
    out.line(&link.url)?;
    if print || !out.is_terminal() {
        return Ok(());
    }
    out.line(&link.good)?;
    link.certificate().map_or(Ok(()), |text| out.line(&text))
}

/// Link that logs in, and how long it is good, in words.
pub(super) struct Link {
    pub(super) url: String,
    pub(super) good: String,
    /// SHA-256 fingerprint of the page's certificate, where labd made it.
    fingerprint: Option<String>,
}

impl Link {
    /// Words on what the browser will ask.
    pub(super) fn certificate(&self) -> Option<String> {
        let fingerprint = self.fingerprint.as_ref()?;
        Some(format!(
            "the browser will warn of the certificate, which labd made itself;\n\
             go on only where it shows this SHA-256 fingerprint:\n  {fingerprint}"
        ))
    }
}

/// Link as the daemon answers it.
pub(super) async fn link(client: &Client<'_>) -> Result<Link, Failure> {
    let told = client.send_json(Method::POST, "/api/v1/links", &Value::Null).await?;
    Ok(Link {
        url: told["url"].as_str().unwrap_or_default().to_owned(),
        good: format!("good once, for {} min", told["expires_in_s"].as_u64().unwrap_or_default() / 60),
        fingerprint: told["fingerprint"].as_str().map(str::to_owned),
    })
}

fn accounts(all: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("never").to_owned();
    let rows: Vec<Vec<String>> = all
        .as_array()
        .into_iter()
        .flatten()
        .map(|a| vec![text(&a["name"]), text(&a["role"]), text(&a["created_at"]), text(&a["last_login_at"])])
        .collect();
    if rows.is_empty() {
        return "no accounts: `labd user add NAME` makes one, `labd open` logs you in without\n".to_owned();
    }
    status::table(&["NAME", "ROLE", "SINCE", "LAST LOGIN"], &rows)
}

fn sessions(all: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows: Vec<Vec<String>> = all
        .as_array()
        .into_iter()
        .flatten()
        .map(|s| vec![text(&s["id"]), text(&s["name"]), text(&s["role"]), text(&s["from"]), text(&s["last_used"])])
        .collect();
    if rows.is_empty() {
        "nobody is logged in\n".to_owned()
    } else {
        status::table(&["ID", "NAME", "ROLE", "FROM", "LAST USED"], &rows)
    }
}

/// Password of a person: typed twice on a terminal, unseen, or the first line of the standard input.
async fn new_password(name: &str) -> Result<String, Failure> {
    if !stdin().is_terminal() {
        return read_line().await;
    }
    let first = ask(&format!("Password for {name}: ")).await?;
    let again = ask("Again: ").await?;
    if again == first { Ok(first) } else { Err(Failure::new(Exit::Usage, "the two are not the same")) }
}

async fn ask(what: &str) -> Result<String, Failure> {
    text::ask(what);
    // Ends with this future, also when that is dropped because of Ctrl-C.
    let hidden = Hidden::begin();
    let line = read_line().await;
    drop(hidden);
    text::ask("\n");
    line
}

/// First line of the standard input. A thread waits for it, so that Ctrl-C is heard meanwhile.
async fn read_line() -> Result<String, Failure> {
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        stdin().lock().read_line(&mut line).map(|_| line)
    });
    let line = read.await.map_err(|_| Failure::new(Exit::Failure, "the standard input cannot be read"))??;
    let line = line.trim_end_matches(['\n', '\r']).to_owned();
    if line.is_empty() { Err(Failure::new(Exit::Usage, "no password was given")) } else { Ok(line) }
}

/// Terminal that does not show what is typed, until it is dropped.
struct Hidden(Option<rustix::termios::Termios>);

impl Hidden {
    fn begin() -> Self {
        let Ok(before) = rustix::termios::tcgetattr(stdin()) else { return Self(None) };
        let mut silent = before.clone();
        silent.local_modes.remove(rustix::termios::LocalModes::ECHO);
        let _ = rustix::termios::tcsetattr(stdin(), rustix::termios::OptionalActions::Flush, &silent);
        Self(Some(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = rustix::termios::tcsetattr(stdin(), rustix::termios::OptionalActions::Flush, before);
        }
    }
}

//! The API: every route, the right that it asks for, where it stands, and what a person should know of it.
//!
//! [`super::admin_router`] and [`super::public_router`] are made of these groups, and so is the document
//! ([`super::openapi`]): what is not here is in neither.

#[cfg(test)]
mod tests;

use axum::{
    extract::{DefaultBodyLimit, State as From},
    middleware,
    response::IntoResponse as _,
};

use super::{
    State, credentials, curve, dashboards, doctor, events, gpus, healthz, history, hurry, incidents, jobs, lab, login,
    logs, metrics, notify,
    openapi::{
        self,
        Listener::{self, Page, Socket},
        Made, Needs, Routes, Text,
    },
    plan, runs, second, services, snapshot, users,
};

/// Both listeners.
const BOTH: &[Listener] = &[Page, Socket];
/// Refusals of the supervision loop.
const LOOP: &[u16] = &[404, 409, 422, 503];
/// Refusals of the accounts' file.
const ACCOUNTS: &[u16] = &[503];
/// Refusals of a login.
const LOGIN: &[u16] = &[401, 408, 429, 503];
/// Longest body that anybody may send, in bytes: a name and a password.
pub(super) const SMALL: usize = 4 << 10;

/// Introduction of the document.
pub(super) const ABOUT: &str = "\
The lab as its page, its command line and its metrics have it. The same operations are served on the page's port and \
on the Unix socket of the machine; `x-labd-on` says where each stands. On the socket its permissions decide, and no \
session is needed. On the page's port `x-labd-role` says who may: `anybody`; `anonymous`, which is everybody where \
`http.anonymous = \"viewer\"` in labd.toml and else a viewer; `viewer`; `admin`. A session is a cookie. What changes \
something also shows the session's CSRF token, and its `Origin` is the page's. Times are RFC 3339 in UTC. Every \
refusal is a problem document (RFC 9457), whose `detail` is one line for a person.";

/// Every group of routes.
pub(super) fn all() -> [Routes; 9] {
    [health(), metric(), reading(), telling(), acting(), entering(), leaving(), visiting(), here()]
}

/// Meaning of a part of a path, and an example.
pub(super) fn part(name: &str) -> (&'static str, &'static str) {
    match name {
        "id" => ("Id of a job: its owner's, or that of one of its attempts.", "raysubmit_DyhHq1rgX8yJ3ZeA"),
        "gpu" => ("Id of a GPU.", "SIM-0"),
        "fault" => ("Row of the fault table, as `labd gpu faults` lists them.", "xid-79"),
        "service" => ("Name of a service.", "ray-worker-0"),
        "verb" => ("What is to be done with it.", "restart"),
        "uid" => ("Id of a dashboard.", "rayDefaultDashboard"),
        "user" => ("Name of an account.", "ada"),
        "session" => ("Name of a session: eight hex digits.", "0123abcd"),
        _ => ("", ""),
    }
}

/// Whether labd itself lives, for whoever asks.
fn health() -> Routes {
    Routes::beside(Needs::Nothing, BOTH).get("/healthz", healthz::get, "Whether labd itself answers")
}

fn metric() -> Routes {
    Routes::beside(Needs::Reading, BOTH).get("/metrics", metrics_as_text, "Metrics, as Prometheus reads them")
}

/// The lab as it is.
fn reading() -> Routes {
    Routes::new(Needs::Reading, BOTH)
        .get("/snapshot", snapshot::get, "The whole lab at present")
        .note("Who is not logged in is shown neither command lines nor messages, notes and users of jobs.")
        .get("/stream", snapshot::stream, "The lab, and every change of it, as server-sent events")
        .note(
            "Event `alive` carries labd's time, every 5 s at least. Event `snapshot` carries the whole lab: at \
             once, then at each change, at most 4 times a second. With `deltas=true` a change is an event `delta` \
             with the members that differ, null for one that is gone. With `events=true`, which needs a login, \
             event `event` carries one entry of the journal, as in `/events/stream`. All but `alive` have an id: \
             whoever comes back with it hears what is new since.",
        )
        .get("/services", services::list, "Every service")
        .get("/services/{service}", services::one, "One service")
        .get("/gpus", gpus::list, "Every GPU, and what its readings come from")
        .get("/gpus/{gpu}", gpus::one, "One GPU")
        .get("/gpus/history", history::gpus, "What the GPUs did, in columns for a chart")
        .fails(&[503])
        .get("/jobs", jobs::list, "Jobs, newest first, by pages")
        .note(
            "Those of the snapshot, and older ones that the ledger has. Who is not logged in is shown neither \
             command lines nor messages, notes and users.",
        )
        .get("/runs", runs::list, "Training runs, newest first, at most 50")
        .get("/incidents", incidents::list, "What died and how long each step back took, newest first, by pages")
        .get("/me", login::me, "Who asks")
}

/// What is the affair of the lab's people: what services write, what happened and through whom, how everything is set up.
fn telling() -> Routes {
    Routes::new(Needs::Login, BOTH)
        .get("/openapi.json", openapi::serve, "This document")
        .get("/services/{service}/logs", logs::get, "What a service wrote, and writes")
        .fails(&[502])
        .get("/events", events::get, "What happened, in the order in which it did")
        .get("/events/stream", events::stream, "What happens, as server-sent events")
        .note(
            "Event `event` carries one entry of the journal as JSON; its id is its number. Begins after \
             `Last-Event-ID`, else after `after`, else with what happens from now on.",
        )
        .get("/plan", plan::get, "What labd wants to run, and how the machine is divided")
        .get("/doctor", doctor::get, "What `labd doctor` finds")
        .note("One examination at a time: who asks while one is under way, or 10 s after it, gets its answer.")
        .fails(&[403, 502])
        .get("/usage", history::usage, "GPU hours by day and week, and GPUs that jobs hold idle")
        .get("/usage.csv", history::csv, "The same for a spreadsheet")
        .get("/jobs/{id}", jobs::get, "One job with every attempt at it")
        .get("/jobs/{id}/logs", jobs::logs, "The last lines of a job's newest attempt, as Ray has them")
        .fails(&[502, 503, 504])
        .get("/jobs/{id}/curve", curve::get, "A job's training curve with its faults on it, in columns")
        .get("/jobs/{id}/curve.csv", curve::csv, "The same for a spreadsheet")
        .get(
            "/dashboards/{uid}",
            dashboards::get,
            "One of Ray's dashboards for Grafana, or labd's own, as far as charts need it",
        )
        .fails(&[502])
        .get("/notify", notify::list, "Who is told what happens, and whether that works")
}

/// What changes something.
fn acting() -> Routes {
    Routes::new(Needs::Admin, BOTH)
        .post("/services/{service}/{verb}", services::post, "Starts, stops or restarts a service")
        .fails(LOOP)
        .post("/jobs/{id}/stop", jobs::stop, "Stops the attempt at a job that runs or waits now")
        .fails(&[503])
        .post("/gpus/{gpu}/release", gpus::release, "Puts a quarantined GPU back to work, or forgets one that is gone")
        .fails(LOOP)
        .post("/gpus/{gpu}/drill/{fault}", gpus::drill, "Lets a simulated GPU have a fault")
        .fails(LOOP)
        .post("/notify/test", notify::test, "Sends a test message to one target of `[[notify]]`, or to all")
        .fails(&[404, 429])
        .post("/reload", lab::reload, "Reads labd.toml again; one with a mistake changes nothing")
        .fails(LOOP)
        .post("/apply", lab::apply, "Recreates what waits with changed settings")
        .fails(LOOP)
}

/// The way in, for whoever comes: small bodies, and no time to send them slowly.
fn entering() -> Routes {
    Routes::new(Needs::Nothing, &[Page])
        .post("/login", login::by_password, "A session for a name and a password")
        .fails(LOGIN)
        .post("/login/link", login::by_link, "A session for the token of a link that `labd open` printed")
        .fails(LOGIN)
        .within(|router| router.layer(DefaultBodyLimit::max(SMALL)).layer(middleware::from_fn(hurry)))
}

async fn metrics_as_text(state: From<State>) -> Made<Text> {
    Made::known(metrics::get(state).await.into_response())
}

fn leaving() -> Routes {
    Routes::new(Needs::Nothing, &[Page]).post("/logout", login::out, "Ends the session").fails(&[503])
}

/// The page's way to JupyterLab, for who has a session there.
fn visiting() -> Routes {
    Routes::new(Needs::Admin, &[Page])
        .post("/jupyter/ticket", second::ticket, "A ticket to JupyterLab's own origin, and where to show it")
        .fails(&[503])
}

/// What only a user of the machine may.
fn here() -> Routes {
    Routes::new(Needs::Admin, &[Socket])
        .post("/down", lab::down, "Stops and removes every container, keeps all data, ends labd")
        .fails(LOOP)
        .get("/credentials", credentials::get, "Credentials of the services, in the clear")
        .post("/links", users::link, "A link that logs its opener in once, as an admin")
        .get("/users", users::list, "Every account")
        .fails(ACCOUNTS)
        .post("/users", users::add, "Adds an account")
        .fails(&[409, 503])
        .delete("/users/{user}", users::remove, "Removes an account, and ends its sessions")
        .fails(ACCOUNTS)
        .post("/users/{user}/password", users::password, "Gives an account another password, and ends its sessions")
        .fails(&[409, 503])
        .post("/users/{user}/role", users::role, "Gives an account another role")
        .fails(ACCOUNTS)
        .get("/sessions", users::sessions, "Every session")
        .delete("/sessions/{session}", users::end, "Ends a session")
        .fails(ACCOUNTS)
}

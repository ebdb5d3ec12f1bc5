//! Commands that may run on: `status --watch`, `logs -f`, `events -f`.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::Method;

use super::{
    args,
    client::{Client, Events},
    exit::{Exit, Failure},
    path_segment, status,
    text::Out,
};
use crate::{
    snapshot::{Event, Snapshot},
    time::Timestamp,
};

/// Time between two tries while labd restarts.
const RETRY: Duration = Duration::from_millis(500);

/// Shows the status until Ctrl-C. Continues when labd is restarted.
pub(super) async fn watch(client: &Client<'_>, out: &mut Out) -> Result<(), Failure> {
    // The first connection must work: a wrong socket is an error, not something to wait for.
    let mut events = Events::new(client.send(Method::GET, "/api/v1/stream").await?);
    let mut last: Option<Snapshot> = None;
    loop {
        match tokio::time::timeout(Duration::from_secs(1), events.next()).await {
            Ok(Some((name, data))) if name == "snapshot" => last = serde_json::from_str(&data).ok(),
            Ok(Some(_)) | Err(_) => {}
            Ok(None) => {
                out.redraw("labd does not answer; waiting for it\n")?;
                tokio::time::sleep(RETRY).await;
                if let Ok(answer) = client.send(Method::GET, "/api/v1/stream").await {
                    events = Events::new(answer);
                }
                continue;
            }
        }
        if let Some(snapshot) = &last {
            let text = status::render(snapshot, Timestamp::now(), out.style());
            if out.is_terminal() { out.redraw(&text)? } else { out.text(&format!("{text}\n"))? }
        }
    }
}

/// Prints the output of a service.
pub(super) async fn logs(client: &Client<'_>, args: &args::Logs, out: &mut Out) -> Result<(), Failure> {
    let path =
        format!("/api/v1/services/{}/logs?tail={}&follow={}", path_segment(&args.service)?, args.tail, args.follow);
    let mut body = client.send(Method::GET, &path).await?.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Failure::new(Exit::Failure, "the daemon ended"))?;
        if let Some(data) = frame.data_ref() {
            out.theirs(data)?;
        }
    }
    out.theirs_end()
}

/// Prints events.
pub(super) async fn events(client: &Client<'_>, args: &args::Events, out: &mut Out) -> Result<(), Failure> {
    let mut query = format!("?limit={}", args.last.clamp(1, 1000));
    if let Some(service) = &args.service {
        query.push_str(&format!("&service={}", path_segment(service)?));
    }
    let mut events: Vec<Event> = client.json(&format!("/api/v1/events{query}")).await?;
    events.sort_by_key(|e| e.seq);
    if !args.json {
        out.line(&format!("{:<14}  {:<13}  {:<11}  REASON", "AT", "SERVICE", "WHAT"))?;
    }
    for event in &events {
        show(event, args.json, out)?;
    }
    if !args.follow {
        return Ok(());
    }
    let after = events.last().map_or(0, |e| e.seq);
    let mut query = format!("?after={after}");
    if let Some(service) = &args.service {
        query.push_str(&format!("&service={}", path_segment(service)?));
    }
    let mut stream = Events::new(client.send(Method::GET, &format!("/api/v1/events/stream{query}")).await?);
    while let Some((name, data)) = stream.next().await {
        if name == "event"
            && let Ok(event) = serde_json::from_str::<Event>(&data)
        {
            show(&event, args.json, out)?;
        }
    }
    Err(Failure::new(Exit::NotRunning, "the daemon ended; `labd up` starts it"))
}

fn show(event: &Event, json: bool, out: &mut Out) -> Result<(), Failure> {
    if json {
        return out.line(&serde_json::to_string(event).unwrap_or_default());
    }
    let room = out.style().width - 46;
    // Reasons are what one reads this for: on a terminal that is narrow they are cut, elsewhere never.
    let reason = status::clean(&event.reason);
    let reason = if out.is_terminal() { status::cut(&reason, room) } else { reason };
    out.line(&format!(
        "{:<14}  {:<13}  {:<11}  {reason}",
        local(event.at),
        status::cut(event.service.as_deref().unwrap_or("labd"), 13),
        status::cut(&event.what, 11),
    ))
}

/// Time such as `24 Nov 10:15:02` on this machine's clock.
fn local(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.as_millis())
        .map(|t| t.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%m-%d %H:%M:%S").to_string())
        .unwrap_or_default()
}

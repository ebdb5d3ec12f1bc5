//! Shapes: a message as each kind of target takes it. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hyper::{Method, header::HeaderValue};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::outbox::Message;
use crate::{
    config::{NotifyEvent, NotifyKind},
    secret::hex,
    text::{clip, path_segment},
    time::Timestamp,
};

/// Largest message of ntfy in bytes: a longer one becomes a file that nobody opens.
const NTFY: usize = 4_096;
/// Largest number of characters of a title.
const TITLE: usize = 100;

/// Sender, as those who are told see it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sender {
    /// The lab's name.
    pub(super) lab: String,
    /// The machine's host name.
    pub(super) host: String,
}

impl Sender {
    /// Host name as mail servers take one; absent where the machine's is none.
    pub(super) fn domain(&self) -> Option<&str> {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        Some(self.host.as_str()).filter(|host| (1..=253).contains(&host.len()) && host.chars().all(part))
    }
}

/// Request over HTTP that tells a target something. Its address and headers may hold secrets, so nothing shows it.
pub(super) struct Post {
    pub(super) url: Url,
    pub(super) method: Method,
    pub(super) headers: Vec<(&'static str, HeaderValue)>,
    pub(super) body: Bytes,
}

/// Title in one line: what happened, or how much did.
pub(super) fn title(sender: &Sender, message: &Message) -> String {
    let what = match message.lines.as_slice() {
        [only] => only.text.clone(),
        [first, rest @ ..] => format!("{} (and {} more)", clip(&first.text, TITLE / 2), rest.len()),
        [] => String::new(),
    };
    clip(&format!("labd {}: {what}", sender.lab), TITLE)
}

/// Text: a line for each notification, where more than one in order with its time.
pub(super) fn text(sender: &Sender, message: &Message) -> String {
    let lines = message.lines.iter().map(|line| format!("{} {}", minute(line.at), line.text));
    let mut all: Vec<String> = lines.collect();
    if let [only] = message.lines.as_slice() {
        all = vec![only.text.clone()];
    }
    if message.dropped > 0 {
        all.push(format!("{} earlier notifications were dropped; `labd events` has what happened", message.dropped));
    }
    all.push(format!("(lab {} on {})", sender.lab, sender.host));
    all.join("\n")
}

/// Time to the minute, for people who may be in another time zone.
fn minute(at: Timestamp) -> String {
    let text = at.to_string();
    match (text.get(..10), text.get(11..16)) {
        (Some(day), Some(time)) => format!("{day} {time} UTC"),
        _ => text,
    }
}

/// Whether somebody should look soon.
fn is_bad(message: &Message) -> bool {
    message.lines.iter().any(|line| {
        use NotifyEvent as E;
        matches!(line.event, E::JobLost | E::GpuQuarantined | E::CrashLoop | E::DiskFull)
    })
}

/// Request for a target that is told over HTTP. `None` for an address that no path can be added to, and for mail.
pub(super) fn post(kind: NotifyKind, url: Url, room: &str, sender: &Sender, message: &Message) -> Option<Post> {
    let mut url = url;
    let text = text(sender, message);
    let mut headers = vec![("content-type", HeaderValue::from_static("application/json"))];
    let mut method = Method::POST;
    let body = match kind {
        NotifyKind::Webhook => {
            let word = |event: NotifyEvent| if message.test { "test" } else { event.as_str() };
            let events = message.lines.iter();
            let events: Vec<_> =
                events.map(|l| json!({ "event": word(l.event), "at": l.at, "text": l.text })).collect();
            let (lab, host, title) = (&sender.lab, &sender.host, title(sender, message));
            let dropped = message.dropped;
            json!({ "lab": lab, "host": host, "title": title, "text": text, "events": events, "dropped": dropped })
                .to_string()
        }
        NotifyKind::Slack => {
            let text = calling_nobody(&text);
            // Their own three: what stands between `<` and `>` calls people or leads somewhere.
            let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            json!({ "text": text }).to_string()
        }
        NotifyKind::Matrix => {
            method = Method::PUT;
            // The same message has the same id: a try whose answer was lost is not shown twice.
            let id = fingerprint(sender, message);
            let path = url.path().trim_end_matches('/').to_owned();
            let room = path_segment(room);
            url.set_path(&format!("{path}/_matrix/client/v3/rooms/{room}/send/m.room.message/labd-{id}"));
            json!({ "msgtype": "m.text", "body": calling_nobody(&text), "m.mentions": {} }).to_string()
        }
        NotifyKind::Ntfy => {
            headers = vec![("content-type", HeaderValue::from_static("text/plain; charset=utf-8"))];
            let title = format!("labd {} on {}", sender.lab, sender.domain().unwrap_or("this machine"));
            headers.push(("x-title", HeaderValue::from_str(&title).ok()?));
            headers.push(("x-priority", HeaderValue::from_static(if is_bad(message) { "high" } else { "default" })));
            cut(text, NTFY)
        }
        NotifyKind::Smtp => return None,
    };
    Some(Post { url, method, headers, body: body.into() })
}

/// Text in which no `@channel`, `@room` or `@everyone` of a job's name calls everybody: a word joiner, which nobody sees, stands
/// behind each `@`.
fn calling_nobody(text: &str) -> String {
    text.replace('@', "@\u{2060}")
}

/// At most so many bytes, cut between characters.
fn cut(mut text: String, most: usize) -> String {
    const MORE: &str = "…";
    if text.len() > most {
        let end = (0..=most - MORE.len()).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(MORE);
    }
    text
}

fn fingerprint(sender: &Sender, message: &Message) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("{}\n{}\n{}\n", sender.lab, sender.host, message.dropped));
    for line in &message.lines {
        digest.update(format!("{} {}\n", line.at.as_millis(), line.text));
    }
    hex(&digest.finalize())[..32].to_owned()
}

/// Mail with its head (RFC 5322): ASCII alone, so that every server takes it.
pub(super) fn mail(from: &str, to: &[String], sender: &Sender, message: &Message, now: Timestamp) -> String {
    let id = fingerprint(sender, message);
    let mut mail = String::new();
    let date = jiff::Timestamp::from_millisecond(now.as_millis()).unwrap_or_default();
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_string(&date).unwrap_or_default();
    let subject = header(&title(sender, message));
    for (name, value) in [
        ("From", from.to_owned()),
        ("To", to.join(",\r\n ")),
        ("Subject", subject),
        ("Date", date),
        ("Message-ID", format!("<{id}@{}>", sender.domain().unwrap_or("labd.invalid"))),
        ("Auto-Submitted", "auto-generated".to_owned()),
        ("MIME-Version", "1.0".to_owned()),
        ("Content-Type", "text/plain; charset=utf-8".to_owned()),
        ("Content-Transfer-Encoding", "base64".to_owned()),
    ] {
        mail.push_str(&format!("{name}: {value}\r\n"));
    }
    let body = STANDARD.encode(text(sender, message).replace('\n', "\r\n") + "\r\n");
    for start in (0..body.len()).step_by(76) {
        mail.push_str("\r\n");
        mail.push_str(&body[start..body.len().min(start + 76)]);
    }
    mail
}

/// Text in a mail's head (RFC 2047): encoded words of at most 75 characters where it is not plain.
fn header(text: &str) -> String {
    let plain = |c: char| c == ' ' || c.is_ascii_graphic();
    if text.chars().all(plain) && !text.contains("=?") {
        return text.to_owned();
    }
    let mut words = vec![String::new()];
    for c in text.chars() {
        // 39 bytes are 52 in base64, 12 more stand around them, and the name of the header before.
        if words.last().is_some_and(|word| word.len() + c.len_utf8() > 39) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    let words: Vec<String> = words.iter().map(|word| format!("=?utf-8?B?{}?=", STANDARD.encode(word))).collect();
    words.join("\r\n ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Now;

    fn sender() -> Sender {
        Sender { lab: "dev".into(), host: "gpu1".into() }
    }

    fn message(lines: &[(NotifyEvent, &str)]) -> Message {
        let now = Now::from(Timestamp::from_millis(1_795_492_872_123));
        let lines = lines.iter().flat_map(|(event, text)| Message::of(*event, (*text).into(), now).lines).collect();
        Message { lines, ..Message::default() }
    }

    fn json_of(post: &Post) -> serde_json::Value {
        serde_json::from_slice(&post.body).expect("JSON")
    }

    #[test]
    fn one_is_told_as_it_is_and_several_with_their_times() {
        let one = message(&[(NotifyEvent::CrashLoop, "minio is in a crash loop")]);
        assert_eq!(text(&sender(), &one), "minio is in a crash loop\n(lab dev on gpu1)");
        assert_eq!(title(&sender(), &one), "labd dev: minio is in a crash loop");
        let mut two = message(&[(NotifyEvent::CrashLoop, "a"), (NotifyEvent::DiskFull, "b")]);
        two.dropped = 3;
        let lines = "2026-11-24 04:01 UTC a\n2026-11-24 04:01 UTC b\n3 earlier notifications were dropped";
        assert!(text(&sender(), &two).starts_with(lines), "{}", text(&sender(), &two));
        assert_eq!(title(&sender(), &two), "labd dev: a (and 1 more)");
    }

    #[test]
    fn each_kind_is_told_in_its_shape() {
        let message = message(&[(NotifyEvent::GpuQuarantined, "GPU <!channel> & co")]);
        let to = |kind, url: &str| post(kind, Url::parse(url).expect("a URL"), "!a b:lab", &sender(), &message);
        let hook = to(NotifyKind::Webhook, "https://h/x?key=1").expect("one");
        let event = &json_of(&hook)["events"][0];
        assert_eq!((event["event"].as_str(), hook.url.query()), (Some("gpu-quarantined"), Some("key=1")));
        let slack = to(NotifyKind::Slack, "https://h/x").expect("one");
        assert_eq!(json_of(&slack)["text"], "GPU &lt;!channel&gt; &amp; co\n(lab dev on gpu1)");
        let matrix = to(NotifyKind::Matrix, "https://h/base/").expect("one");
        let path = "/base/_matrix/client/v3/rooms/%21a%20b%3Alab/send/m.room.message/labd-";
        assert!(matrix.url.path().starts_with(path), "{}", matrix.url);
        assert_eq!((&matrix.method, &json_of(&matrix)["msgtype"]), (&Method::PUT, &json!("m.text")));
        let again = to(NotifyKind::Matrix, "https://h/base").expect("one");
        assert_eq!(again.url, matrix.url, "a second try is the same message");
        let ntfy = to(NotifyKind::Ntfy, "https://h/topic").expect("one");
        assert!(ntfy.headers.contains(&("x-priority", HeaderValue::from_static("high"))));
        assert!(ntfy.body.starts_with(b"GPU <!channel> & co\n"));
        assert!(to(NotifyKind::Smtp, "https://h").is_none());
    }

    #[test]
    fn a_jobs_name_calls_nobody() {
        let message = message(&[(NotifyEvent::RunEnded, "run @channel @room failed")]);
        let to = |kind| post(kind, Url::parse("https://h/x").expect("a URL"), "!r:lab", &sender(), &message);
        let quiet = "run @\u{2060}channel @\u{2060}room failed\n(lab dev on gpu1)";
        assert_eq!(json_of(&to(NotifyKind::Slack).expect("one"))["text"], quiet);
        let matrix = json_of(&to(NotifyKind::Matrix).expect("one"));
        assert_eq!((&matrix["body"], &matrix["m.mentions"]), (&json!(quiet), &json!({})));
    }

    #[test]
    fn ntfy_is_sent_no_more_than_it_shows() {
        let long = message(&vec![(NotifyEvent::RunEnded, "ä".repeat(290).as_str()); 20]);
        let post =
            post(NotifyKind::Ntfy, Url::parse("https://h/t").expect("a URL"), "", &sender(), &long).expect("one");
        assert!((NTFY - 2..=NTFY).contains(&post.body.len()) && std::str::from_utf8(&post.body).is_ok());
    }

    #[test]
    fn a_mail_is_ascii_in_short_lines_and_has_one_head() {
        let text = format!("run Füchse\u{2028} failed: {}", "x".repeat(200));
        let message = message(&[(NotifyEvent::RunEnded, &text), (NotifyEvent::RunEnded, "b")]);
        let to = ["a@lab".to_owned(), "b@lab".to_owned()];
        let mail = mail("labd@lab", &to, &sender(), &message, Timestamp::from_millis(1_795_492_872_123));
        assert!(
            mail.is_ascii() && mail.split("\r\n").all(|line| line.len() <= 78 && !line.contains(['\r', '\n'])),
            "{mail}"
        );
        let (head, body) = mail.split_once("\r\n\r\n").expect("head and body");
        assert!(head.starts_with("From: labd@lab\r\nTo: a@lab,\r\n b@lab\r\nSubject: =?utf-8?B?"), "{head}");
        assert!(head.contains("\r\nDate: Tue, 24 Nov 2026 04:01:12 -0000\r\n"), "{head}");
        let body = STANDARD.decode(body.replace("\r\n", "")).expect("base64");
        let body = String::from_utf8(body).expect("text");
        assert!(body.contains("run Füchse"));
        assert_eq!(body.replace("\r\n", "\n"), super::text(&sender(), &message) + "\n", "all of it");
        assert_eq!(header("plain"), "plain");
    }
}

//! `[[notify]]`: who is told what, and the checks of it. No error quotes an address: it may end in a log.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};
use url::Url;

use super::Config;

/// Largest number of targets. Chosen, not measured: each keeps what it was not told yet.
const MOST: usize = 8;
/// Largest number of recipients of a mail.
const MOST_TO: usize = 20;

/// Entry of `[[notify]]`: a target that is told what happens to the lab. Secrets are in files, so that `labd.toml` can be shown
/// to anyone.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// Name, by which logs and commands call it: 1 to 32 lower-case letters, digits and dashes.
    pub name: String,
    /// Kind of target.
    pub kind: NotifyKind,
    /// Events that it is told of; all when absent.
    #[serde(default = "every_event")]
    pub events: Vec<NotifyEvent>,
    /// Address to send to; of Matrix the home server's.
    pub url: Option<String>,
    /// File that holds the address, where that is a secret itself.
    pub url_file: Option<PathBuf>,
    /// File that holds a token, which is sent as `Authorization: Bearer`.
    pub token_file: Option<PathBuf>,
    /// Matrix room, such as `!abc:example.edu`.
    pub room: Option<String>,
    /// Mail server, such as `mail.example.edu` or `mail.example.edu:587`.
    pub server: Option<String>,
    /// Protection of the connection to the mail server; STARTTLS when absent.
    #[serde(default)]
    pub security: MailSecurity,
    /// Mail address of the sender.
    pub from: Option<String>,
    /// Mail addresses of the recipients: one, or a list.
    #[serde(default, deserialize_with = "one_or_more")]
    pub to: Vec<String>,
    /// User for the mail server.
    pub user: Option<String>,
    /// File that holds the password for the mail server.
    pub password_file: Option<PathBuf>,
    /// File with certificates (PEM) that are trusted beside this machine's own.
    pub ca_file: Option<PathBuf>,
}

/// Kind of target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotifyKind {
    /// JSON by POST.
    Webhook,
    /// Slack's incoming webhook, which Mattermost and others take as well.
    Slack,
    /// Message in a Matrix room.
    Matrix,
    /// Topic of an ntfy server.
    Ntfy,
    /// Mail.
    Smtp,
}

impl NotifyKind {
    /// Word in `labd.toml`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Slack => "slack",
            Self::Matrix => "matrix",
            Self::Ntfy => "ntfy",
            Self::Smtp => "smtp",
        }
    }
}

/// Event that somebody can be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotifyEvent {
    /// A job ended by itself, or a person stopped it.
    RunEnded,
    /// A job was lost and is not submitted again.
    JobLost,
    /// A GPU is quarantined or missing.
    GpuQuarantined,
    /// A job holds a GPU and does not use it.
    GpuIdle,
    /// A service is in a crash loop.
    CrashLoop,
    /// A file system is 95 % full.
    DiskFull,
    /// All of the lab works again after one of the above.
    LabWhole,
}

impl NotifyEvent {
    /// Every event, in the order above.
    pub const ALL: [Self; 7] = [
        Self::RunEnded,
        Self::JobLost,
        Self::GpuQuarantined,
        Self::GpuIdle,
        Self::CrashLoop,
        Self::DiskFull,
        Self::LabWhole,
    ];

    /// Word in `labd.toml` and in what is sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RunEnded => "run-ended",
            Self::JobLost => "job-lost",
            Self::GpuQuarantined => "gpu-quarantined",
            Self::GpuIdle => "gpu-idle",
            Self::CrashLoop => "crash-loop",
            Self::DiskFull => "disk-full",
            Self::LabWhole => "lab-whole",
        }
    }
}

/// Protection of the connection to a mail server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MailSecurity {
    /// TLS from STARTTLS on, port 587. A server without it is sent nothing.
    #[default]
    Starttls,
    /// TLS from the first byte on, port 465.
    Tls,
    /// None, port 25: for a server on this machine or in its own network.
    None,
}

impl MailSecurity {
    const fn port(self) -> u16 {
        match self {
            Self::Starttls => 587,
            Self::Tls => 465,
            Self::None => 25,
        }
    }
}

fn every_event() -> Vec<NotifyEvent> {
    NotifyEvent::ALL.to_vec()
}

/// One text or a list of them. The error does not quote what is there instead.
fn one_or_more<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        More(Vec<String>),
    }
    match Either::deserialize(d) {
        Ok(Either::One(one)) => Ok(vec![one]),
        Ok(Either::More(more)) => Ok(more),
        Err(_) => Err(de::Error::custom("expected an address or a list of addresses")),
    }
}

/// Address of a target as it must be, and why it is none. The text does not quote it.
pub fn parse_target_url(text: &str) -> Result<Url, &'static str> {
    const RIGHT: &str = "must be a URL that begins with `https://` or `http://`";
    let url = Url::parse(text).map_err(|_| RIGHT)?;
    if matches!(url.scheme(), "http" | "https") && url.has_host() { Ok(url) } else { Err(RIGHT) }
}

/// Host of an address as one connects to it: IPv6 without the brackets.
pub fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Whether a host is this machine, so that nobody on the way can listen.
pub fn is_this_machine(host: &str) -> bool {
    let host = bare(host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Notify {
    /// Host and port of the mail server; `None` where the setting is no such thing.
    pub fn mail_server(&self) -> Option<(String, u16)> {
        let server = self.server.as_deref()?;
        // As an address of the web, so that hosts and ports are read as everywhere.
        let url = Url::parse(&format!("smtp://{server}")).ok()?;
        let host = url.host_str().filter(|host| !host.is_empty())?;
        let plain = url.username().is_empty() && url.password().is_none() && matches!(url.path(), "" | "/");
        if !plain || url.query().is_some() || url.fragment().is_some() || server.contains(char::is_whitespace) {
            return None;
        }
        Some((bare(host).to_owned(), url.port().unwrap_or(self.security.port())))
    }

    /// Files that it names, by the setting.
    fn files(&self) -> [(&'static str, Option<&Path>); 4] {
        [
            ("url_file", self.url_file.as_deref()),
            ("token_file", self.token_file.as_deref()),
            ("password_file", self.password_file.as_deref()),
            ("ca_file", self.ca_file.as_deref()),
        ]
    }

    /// Settings of one kind alone that are set.
    fn special(&self) -> impl Iterator<Item = &'static str> {
        let set = [
            ("url", self.url.is_some()),
            ("url_file", self.url_file.is_some()),
            ("token_file", self.token_file.is_some()),
            ("room", self.room.is_some()),
            ("server", self.server.is_some()),
            ("security", self.security != MailSecurity::default()),
            ("from", self.from.is_some()),
            ("to", !self.to.is_empty()),
            ("user", self.user.is_some()),
            ("password_file", self.password_file.is_some()),
        ];
        set.into_iter().filter(|(_, set)| *set).map(|(key, _)| key)
    }

    /// Checks what the types cannot express. The error names the setting.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let wrong = |key, text: &str| Err((key, text.to_owned()));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=32).contains(&self.name.len()) || !self.name.chars().all(plain) {
            return wrong("name", "must be 1 to 32 lower-case letters, digits and dashes");
        }
        if self.events.is_empty() {
            return wrong(
                "events",
                "is empty, so nothing would be told; name events, or remove the line for all of them",
            );
        }
        let kind = self.kind;
        let fits: &[&str] = match kind {
            NotifyKind::Webhook | NotifyKind::Ntfy => &["url", "url_file", "token_file"],
            NotifyKind::Slack => &["url", "url_file"],
            NotifyKind::Matrix => &["url", "url_file", "token_file", "room"],
            NotifyKind::Smtp => &["server", "security", "from", "to", "user", "password_file"],
        };
        if let Some(key) = self.special().find(|key| !fits.contains(key)) {
            let text = format!("is not for `kind = \"{}\"`, which takes {}; remove it", kind.as_str(), fits.join(", "));
            return Err((key, text));
        }
        for (key, path) in self.files() {
            if path.is_some_and(|p| !p.is_absolute()) {
                return wrong(key, "must be an absolute path, beginning with `/`");
            }
        }
        if kind == NotifyKind::Smtp { self.check_mail() } else { self.check_http() }
    }

    fn check_http(&self) -> Result<(), (&'static str, String)> {
        let wrong = |key, text: &str| Err((key, text.to_owned()));
        match (&self.url, &self.url_file) {
            (Some(_), Some(_)) => return wrong("url_file", "and `url` exclude each other; remove one of the two"),
            (None, None) => {
                return wrong("url", "is missing; set it, or `url_file` where the address is a secret itself");
            }
            (Some(url), None) => {
                let url = parse_target_url(url).map_err(|text| ("url", text.to_owned()))?;
                if !url.username().is_empty() || url.password().is_some() {
                    return wrong("url", "carries a login; put the address into a file and name that in `url_file`");
                }
                if self.token_file.is_some() && url.scheme() == "http" && !url.host_str().is_some_and(is_this_machine) {
                    return wrong("url", "would send the token in the clear; use `https://`");
                }
            }
            (None, Some(_)) => {}
        }
        if self.kind == NotifyKind::Matrix {
            if !self.room.as_deref().is_some_and(|r| r.starts_with('!') && r.contains(':') && r.len() <= 255) {
                return wrong("room", "must be the room's internal id, such as `\"!abc:example.edu\"`");
            }
            if self.token_file.is_none() {
                return wrong("token_file", "is missing: Matrix takes messages only from somebody it knows");
            }
        }
        Ok(())
    }

    fn check_mail(&self) -> Result<(), (&'static str, String)> {
        const ADDRESS: &str = "must be a mail address such as `lab@example.edu`";
        let wrong = |key, text: &str| Err((key, text.to_owned()));
        let is_address = |text: &str| text.is_ascii() && text.parse::<lettre::Address>().is_ok();
        let Some((host, _)) = self.mail_server() else {
            return wrong(
                "server",
                "must be a mail server such as `\"mail.example.edu\"` or `\"mail.example.edu:587\"`",
            );
        };
        if !self.from.as_deref().is_some_and(is_address) {
            return wrong("from", ADDRESS);
        }
        if self.to.is_empty() || self.to.len() > MOST_TO || !self.to.iter().all(|to| is_address(to)) {
            return Err(("to", format!("{ADDRESS}, or a list of at most {MOST_TO}")));
        }
        match (&self.user, &self.password_file) {
            (Some(_), None) => wrong("password_file", "is missing: a user needs a password"),
            (None, Some(_)) => wrong("user", "is missing: a password is for a user"),
            (Some(_), Some(_)) if self.security == MailSecurity::None && !is_this_machine(&host) => {
                wrong("security", "would send the password in the clear; use `\"starttls\"` or `\"tls\"`")
            }
            _ => Ok(()),
        }
    }
}

impl Config {
    pub(super) fn check_notify(&self) -> Result<(), (Vec<String>, String)> {
        let at = |i: usize, key: &str| vec!["notify".to_owned(), i.to_string(), key.to_owned()];
        for (i, notify) in self.notify.iter().enumerate() {
            if i >= MOST {
                return Err((at(i, "name"), format!("is one too many; use at most {MOST}")));
            }
            if self.notify[..i].iter().any(|other| other.name == notify.name) {
                return Err((at(i, "name"), format!("{:?} is there twice; give each a name of its own", notify.name)));
            }
            notify.check().map_err(|(key, text)| (at(i, key), text))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("labd.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn errors_name_line_and_what_would_be_right_and_quote_no_address() {
        let of = |kind: &str, more: &str| format!("[[notify]]\nname = \"ops\"\nkind = \"{kind}\"\n{more}");
        let mail = "server = \"mail.hidden\"\nfrom = \"a@hidden\"\nto = \"b@hidden\"\n";
        for (text, says) in [
            (of("webhook", ""), &["labd.toml:1:", "`notify.url`", "`url_file`"] as &[&str]),
            (of("webhook", "url = \"hidden\""), &["labd.toml:4:", "https://"]),
            (of("webhook", "url = \"https://u:p@hidden/\""), &["labd.toml:4:", "login", "`url_file`"]),
            (of("webhook", "url = \"http://hidden/\"\ntoken_file = \"/t\""), &["labd.toml:4:", "in the clear"]),
            (of("webhook", "url = \"https://hidden/\"\nurl_file = \"/u\""), &["labd.toml:5:", "exclude"]),
            (of("webhook", "url_file = \"hidden\""), &["labd.toml:4:", "absolute"]),
            (
                of("slack", "url_file = \"/u\"\ntoken_file = \"/hidden\""),
                &["labd.toml:5:", "`notify.token_file`", "slack"],
            ),
            (of("slack", "url_file = \"/u\"\nto = \"a@hidden\""), &["labd.toml:5:", "`notify.to`"]),
            (of("slack", "url_file = \"/u\"\nevents = []"), &["labd.toml:5:", "`notify.events`"]),
            (of("slack", "url_file = \"/u\"\nevents = [\"run-over\"]"), &["labd.toml:5:", "run-ended"]),
            (of("matrix", "url = \"https://hidden\"\nroom = \"#lab:hidden\""), &["labd.toml:5:", "internal id"]),
            (of("matrix", "url = \"https://hidden\"\nroom = \"!a:hidden\""), &["labd.toml:1:", "`notify.token_file`"]),
            (of("pager", ""), &["labd.toml:3:", "webhook"]),
            (of("smtp", "server = \"smtp://hidden\""), &["labd.toml:4:", "`notify.server`"]),
            (of("smtp", "server = \"m\"\nfrom = \"hidden\""), &["labd.toml:5:", "`notify.from`"]),
            (
                of("smtp", "server = \"m\"\nfrom = \"a@b\"\nto = [\"a@b\", \"hidden\"]"),
                &["labd.toml:6:", "`notify.to`"],
            ),
            (
                of("smtp", &format!("server = \"m\"\nfrom = \"a@b\"\nto = {:?}", ["a@hidden"; MOST_TO + 1])),
                &["labd.toml:6:", "at most 20"],
            ),
            (
                (0..=MOST).fold(String::new(), |all, n| {
                    all + &format!("[[notify]]\nname = \"n{n}\"\nkind = \"slack\"\nurl_file = \"/u\"\n")
                }),
                &["labd.toml:34:", "use at most 8"],
            ),
            (of("smtp", "server = \"m\"\nfrom = \"a@b\"\nto = 1"), &["labd.toml:6:", "list of addresses"]),
            (of("smtp", &format!("{mail}user = \"hidden\"")), &["labd.toml:1:", "`notify.password_file`"]),
            (
                of("smtp", &format!("{mail}user = \"u\"\npassword_file = \"/p\"\nsecurity = \"none\"")),
                &["labd.toml:9:", "in the clear"],
            ),
            (
                format!("{}{}", of("slack", "url_file = \"/u\"\n"), of("slack", "url_file = \"/u\"")),
                &["labd.toml:6:", "twice"],
            ),
            ("[[notify]]\nname = \"Ops\"\nkind = \"slack\"\nurl_file = \"/u\"".into(), &["labd.toml:2:", "lower-case"]),
        ] {
            let line = parse(&text).expect_err(&text);
            for part in says {
                assert!(line.contains(part), "{text:?} says: {line}");
            }
            assert!(!line.contains('\n') && !line.contains("hidden"), "one line without addresses: {line}");
        }
    }

    #[test]
    fn a_target_is_told_of_everything_unless_it_says_otherwise() {
        let config =
            parse("[[notify]]\nname = \"a\"\nkind = \"ntfy\"\nurl = \"https://ntfy.lab/gpu1\"").expect("valid");
        assert_eq!(config.notify[0].events, NotifyEvent::ALL);
        for event in NotifyEvent::ALL {
            assert_eq!(serde_json::to_value(event).expect("a word"), event.as_str());
        }
    }

    #[test]
    fn a_mail_server_has_the_port_of_its_protection() {
        for (server, security, want) in [
            ("mail.lab", "starttls", Some(("mail.lab", 587))),
            ("mail.lab", "tls", Some(("mail.lab", 465))),
            ("127.0.0.1:2525", "none", Some(("127.0.0.1", 2525))),
            ("[::1]:25", "none", Some(("::1", 25))),
            ("user@mail.lab", "tls", None),
            ("mail.lab ", "tls", None),
            ("mail.lab/x", "tls", None),
            ("", "tls", None),
        ] {
            let text = format!(
                "[[notify]]\nname = \"a\"\nkind = \"smtp\"\nserver = \"{server}\"\nsecurity = \"{security}\"\n\
                 from = \"a@lab\"\nto = \"b@lab\""
            );
            let read = parse(&text).ok().and_then(|c| c.notify[0].mail_server());
            assert_eq!(read, want.map(|(host, port)| (host.to_owned(), port)), "{server}");
        }
    }
}

//! Targets on loopback: what arrives, and that nobody waits for one that does not answer.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig, crypto,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use super::*;
use crate::{
    http::testing::a_snapshot,
    journal::EventQuery,
    snapshot::{JobOutcome, JobStatus, ServiceState},
    time::simulated,
};

/// What sinks were sent, in order.
type Heard = Arc<Mutex<Vec<String>>>;

/// Sink that stops listening when it is dropped.
struct Sink {
    heard: Heard,
    task: JoinHandle<()>,
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sink {
    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Speaks {
    /// HTTP, with this answer.
    Http(&'static str),
    Smtp,
    /// SMTP that goes over to TLS when it is asked to.
    StartTls,
    /// Nothing, ever.
    Nothing,
}

async fn sink(at: SocketAddr, speaks: Speaks, tls: bool) -> (SocketAddr, Sink) {
    let listener = TcpListener::bind(at).await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    let heard = Heard::default();
    let all = heard.clone();
    let task = tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let heard = all.clone();
            if speaks == Speaks::Nothing {
                // Until whoever asks gives up.
                tokio::spawn(async move { tokio::io::copy(&mut stream, &mut tokio::io::sink()).await });
            } else if speaks == Speaks::StartTls {
                tokio::spawn(async move {
                    let _ = start_tls(stream, &heard).await;
                });
            } else if tls {
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor().accept(stream).await {
                        let _ = serve(stream, speaks, &heard).await;
                    }
                });
            } else {
                tokio::spawn(async move {
                    let _ = serve(stream, speaks, &heard).await;
                });
            }
        }
    });
    (at, Sink { heard, task })
}

fn tls_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls").join(name)
}

fn acceptor() -> TlsAcceptor {
    let chain =
        CertificateDer::pem_file_iter(tls_file("cert.pem")).expect("PEM").collect::<Result<_, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_file(tls_file("key.pem")).expect("PEM");
    let config = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they fit");
    TlsAcceptor::from(Arc::new(config))
}

/// What is said before TLS is heard, too: it must be nothing of a mail's.
async fn start_tls(stream: TcpStream, heard: &Heard) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 sink\r\n").await?;
    let mut all = String::new();
    while !all.ends_with("STARTTLS\r\n") {
        if stream.read_line(&mut all).await? == 0 {
            break;
        }
        let answer: &[u8] =
            if all.ends_with("STARTTLS\r\n") { b"220 go on\r\n" } else { b"250-sink\r\n250 STARTTLS\r\n" };
        stream.write_all(answer).await?;
    }
    heard.lock().unwrap_or_else(PoisonError::into_inner).push(all);
    serve(acceptor().accept(stream.into_inner()).await?, Speaks::StartTls, heard).await
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, speaks: Speaks, heard: &Heard) -> io::Result<()> {
    // A paused clock stands still while a thread works: what the kernel takes its time for is no hour then.
    let (_served, end) = std::sync::mpsc::channel::<()>();
    tokio::task::spawn_blocking(move || end.recv());
    let mut stream = BufReader::new(stream);
    let mut all = String::new();
    let hear = |all: String| heard.lock().unwrap_or_else(PoisonError::into_inner).push(all);
    if let Speaks::Http(answer) = speaks {
        while !all.ends_with("\r\n\r\n") {
            if stream.read_line(&mut all).await? == 0 {
                return Ok(());
            }
        }
        let length = all.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or_default()];
        stream.read_exact(&mut body).await?;
        all.push_str(&String::from_utf8_lossy(&body));
        hear(all);
        stream.write_all(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").as_bytes()).await?;
        return stream.flush().await;
    }
    if speaks == Speaks::Smtp {
        stream.write_all(b"220 sink\r\n").await?;
    }
    let mut data = false;
    loop {
        stream.flush().await?;
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        all.push_str(&line);
        let answer = match line.trim_end() {
            "." if data => {
                data = false;
                hear(std::mem::take(&mut all));
                "250 taken"
            }
            _ if data => continue,
            "DATA" => {
                data = true;
                "354 go on"
            }
            "QUIT" => "221 bye",
            l if l.starts_with("EHLO") => "250-sink\r\n250 AUTH PLAIN LOGIN",
            l if l.starts_with("AUTH") => "235 welcome",
            l if l.starts_with("RCPT") && l.contains("nobody") => "550 no such user <nobody@secret-to>",
            _ => "250 ok",
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
    }
}

/// Part of a host name that is too long to be asked for, so that no test waits for a name server.
const UNRESOLVED: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn free() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn secrets(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("written");
    path
}

fn config(text: &str) -> Config {
    Config::parse(std::path::Path::new("labd.toml"), text).expect("valid")
}

fn hook(name: &str, at: SocketAddr) -> String {
    format!("[[notify]]\nname = \"{name}\"\nkind = \"webhook\"\nurl = \"http://{at}/hook\"\n")
}

/// Lab whose people are told.
struct Lab {
    snapshot: watch::Sender<Arc<Snapshot>>,
    config: watch::Sender<Arc<Config>>,
    journal: Journal,
    notifier: Notifier,
}

impl Lab {
    fn new(text: &str, journal: Journal) -> Self {
        let (snapshot, snapshots) = watch::channel(Arc::new(a_snapshot()));
        let (config, configs) = watch::channel(Arc::new(config(text)));
        let notifier = spawn(Parts { snapshot: snapshots, config: configs, journal: journal.clone() });
        Self { snapshot, config, journal, notifier }
    }

    /// Lab as it is, from which on what happens is news.
    async fn begun(text: &str) -> Self {
        simulated::begin(Some(Timestamp::from_millis(1_800_000_000_000)));
        let lab = Self::new(text, Journal::in_memory());
        tokio::time::sleep(Duration::from_mins(2)).await;
        lab
    }

    fn service(&self, state: ServiceState) {
        self.snapshot.send_modify(|snapshot| Arc::make_mut(snapshot).services[0].state = state);
    }

    fn job_ended(&self) {
        self.snapshot.send_modify(|snapshot| {
            let job = &mut Arc::make_mut(snapshot).jobs[0];
            (job.status, job.outcome) = (JobStatus::Succeeded, Some(JobOutcome::Succeeded));
            job.ended_at = Some(Timestamp::now());
        });
    }

    fn target(&self, name: &str) -> TargetView {
        let targets = self.notifier.watch().borrow().clone();
        targets.iter().find(|t| t.name == name).expect("configured").clone()
    }

    async fn journaled(&self) -> String {
        let query = EventQuery { after_seq: None, service: None, kind: None, limit: 500, newest: true };
        format!("{:#?}", self.journal.events(query).await)
    }
}

/// Waits for a condition, on the paused clock.
async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(start_paused = true)]
async fn what_happens_while_targets_are_away_is_told_once_when_they_are_back() {
    let (web, web_sink) = sink(free(), Speaks::Http("200 OK"), false).await;
    let (mail, mail_sink) = sink(free(), Speaks::Smtp, false).await;
    drop((web_sink, mail_sink));
    let mail_target = format!(
        "[[notify]]\nname = \"mail\"\nkind = \"smtp\"\nserver = \"{mail}\"\nsecurity = \"none\"\n\
         from = \"labd@lab\"\nto = [\"a@lab\", \"b@lab\"]\n"
    );
    let lab = Lab::begun(&format!("{}{mail_target}", hook("web", web))).await;
    lab.service(ServiceState::CrashLoop);
    until("it fails", || lab.target("web").trouble.is_some() && lab.target("mail").trouble.is_some()).await;
    assert_eq!(lab.target("web").trouble.as_deref(), Some("the connection is refused"));
    tokio::time::sleep(Duration::from_mins(5)).await;
    lab.job_ended();
    tokio::time::sleep(Duration::from_mins(5)).await;
    let (_, web) = sink(web, Speaks::Http("204 No Content"), false).await;
    let (_, mail) = sink(mail, Speaks::Smtp, false).await;
    let back = Moment::now();
    until("both are told", || !web.heard().is_empty() && !mail.heard().is_empty()).await;
    assert!(Moment::now().since(back) <= Duration::from_mins(6) + LOOK, "tried again every 5 min, ±20 %");
    let told = web.heard();
    assert!(told[0].starts_with("POST /hook HTTP/1.1\r\n") && told[0].contains("crash-loop"), "{}", told[0]);
    assert!(told[0].contains("run-ended"), "folded: {}", told[0]);
    let told = mail.heard();
    assert!(told[0].contains("RCPT TO:<b@lab>") && told[0].contains("(and 1 more)"), "{}", told[0]);
    until("that is known", || lab.target("web").trouble.is_none() && lab.target("web").waiting == 0).await;
    lab.service(ServiceState::Ready);
    until("it is whole", || web.heard().len() == 2 && mail.heard().len() == 2).await;
    assert!(web.heard()[1].contains("the lab is whole again"), "{}", web.heard()[1]);
    tokio::time::sleep(Duration::from_hours(2)).await;
    assert_eq!((web.heard().len(), mail.heard().len()), (2, 2), "nothing twice");
    let journaled = lab.journaled().await;
    assert_eq!(journaled.matches("notifications to `web` are not delivered").count(), 1, "{journaled}");
    assert_eq!(journaled.matches("notifications to `web` are delivered again").count(), 1, "{journaled}");
}

#[tokio::test(start_paused = true)]
async fn a_target_that_hangs_delays_nobody() {
    let (hangs, _hanging) = sink(free(), Speaks::Nothing, false).await;
    let (works, web) = sink(free(), Speaks::Http("200 OK"), false).await;
    let mail = format!(
        "[[notify]]\nname = \"mail\"\nkind = \"smtp\"\nserver = \"{hangs}\"\nsecurity = \"none\"\n\
         from = \"a@lab\"\nto = \"b@lab\"\n"
    );
    let lab = Lab::begun(&format!("{}{mail}{}", hook("hangs", hangs), hook("works", works))).await;
    let began = Moment::now();
    lab.service(ServiceState::CrashLoop);
    until("the other is told", || web.heard().len() == 1).await;
    assert!(Moment::now().since(began) < send::LIMIT, "before the others are given up");
    until("they are given up", || lab.target("hangs").trouble.is_some() && lab.target("mail").trouble.is_some()).await;
    assert_eq!(lab.target("mail").trouble.as_deref(), Some("it does not answer within 20 s"));
    tokio::time::sleep(Duration::from_hours(25)).await;
    assert_eq!((lab.target("hangs").waiting, web.heard().len()), (0, 1));
    let journaled = lab.journaled().await;
    assert!(journaled.contains("1 notification to `hangs` is given up after 1 d"), "{journaled}");
}

#[tokio::test(start_paused = true)]
async fn what_was_not_told_is_told_by_the_next_labd() {
    let (at, away) = sink(free(), Speaks::Http("200 OK"), false).await;
    drop(away);
    let lab = Lab::begun(&hook("web", at)).await;
    lab.service(ServiceState::CrashLoop);
    until("it fails", || lab.target("web").trouble.is_some()).await;
    let journal = lab.journal.clone();
    drop(lab);
    let (_, web) = sink(at, Speaks::Http("200 OK"), false).await;
    let next = Lab::new(&hook("web", at), journal);
    next.service(ServiceState::CrashLoop);
    until("it is told", || !web.heard().is_empty()).await;
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(web.heard().len(), 1, "{:?}", web.heard());
    // The one after that knows what the first one told, though the second found nothing new, and tells what began meanwhile.
    let journal = next.journal.clone();
    drop(next);
    let next = Lab::new(&hook("web", at), journal);
    next.service(ServiceState::CrashLoop);
    next.snapshot.send_modify(|lab| Arc::make_mut(lab).services[1].state = ServiceState::CrashLoop);
    until("what began meanwhile is told", || web.heard().len() == 2).await;
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(web.heard().len(), 2, "{:?}", web.heard());
    let second = next.snapshot.borrow().services[1].name.clone();
    let told = &web.heard()[1];
    assert!(told.contains(&second) && !told.contains("ray-head"), "{told}");
    // Nobody is told any more, and what was remembered is forgotten.
    next.config.send_replace(Arc::new(Config::default()));
    until("that is known", || next.notifier.watch().borrow().is_empty()).await;
    assert_eq!(next.journal.memory(MEMORY).as_deref(), Some(""));
}

/// Writer that keeps what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn addresses_and_secrets_are_in_no_log_and_no_reason() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = Log::default();
    // With one subscriber alone, the first thread that comes to a line decides for all whether that is logged.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    let _quiet = tracing::subscriber::set_default(subscriber);
    let (web, refuses) = sink(free(), Speaks::Http("403 Forbidden"), false).await;
    let (mail, mails) = sink(free(), Speaks::Smtp, false).await;
    let token = secrets(&dir, "token", "secret-token\n");
    let password = secrets(&dir, "password", "secret-password");
    let url = secrets(&dir, "url", &format!("http://secret-user:secret-pass@{web}/secret-path?secret-key=1\n"));
    let clear = secrets(&dir, "clear", "http://:secret-pass@192.0.2.1/secret-path");
    let away = secrets(&dir, "away", &format!("http://secret-{UNRESOLVED}/secret-path"));
    let text = format!(
        "[[notify]]\nname = \"hook\"\nkind = \"webhook\"\nurl_file = {url:?}\n\
         [[notify]]\nname = \"room\"\nkind = \"matrix\"\nurl = \"http://{web}\"\nroom = \"!secret-room:lab\"\n\
         token_file = {token:?}\n\
         [[notify]]\nname = \"clear\"\nkind = \"webhook\"\nurl_file = {clear:?}\n\
         [[notify]]\nname = \"away\"\nkind = \"slack\"\nurl_file = {away:?}\n\
         [[notify]]\nname = \"lost\"\nkind = \"slack\"\nurl_file = \"/nowhere/secret-path\"\n\
         [[notify]]\nname = \"mail\"\nkind = \"smtp\"\nserver = \"{mail}\"\nsecurity = \"none\"\nuser = \"secret-user\"\n\
         password_file = {password:?}\nfrom = \"secret-from@lab\"\nto = \"nobody@secret-to\"\n"
    );
    let lab = Lab::begun(&text).await;
    lab.service(ServiceState::CrashLoop);
    let names = ["hook", "room", "clear", "away", "lost", "mail"];
    until("all fail", || names.iter().all(|name| lab.target(name).trouble.is_some())).await;
    assert_eq!(lab.target("lost").trouble.as_deref(), Some("the file of `url_file` cannot be read: entity not found"));
    let clear = "the login in its address would be sent in the clear; use `https://`";
    assert_eq!(lab.target("clear").trouble.as_deref(), Some(clear));
    assert_eq!(lab.target("mail").trouble.as_deref(), Some("it answers 550 to the mail"));
    assert!(lab.target("room").trouble.is_some_and(|t| t.starts_with("it answers 403: are its address and its token")));
    let tested = lab.notifier.test(None).await.expect("there are some");
    assert!(tested.iter().all(|t| !t.delivered && t.reason.is_some()), "{tested:?}");
    // They were sent what they need.
    let heard = refuses.heard().join("\n");
    for sent in
        ["authorization: Bearer secret-token", "authorization: Basic", "/secret-path?secret-key=1", "%21secret-room"]
    {
        assert!(heard.to_lowercase().contains(&sent.to_lowercase()), "{sent}: {heard}");
    }
    assert_eq!(mails.heard().len(), 0);
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned();
    let said = [
        logged,
        lab.journaled().await,
        format!("{:?}", lab.notifier.watch().borrow()),
        serde_json::to_string(&tested).expect("plain data"),
        lab.journal.memory(MEMORY).unwrap_or_default(),
    ];
    assert!(said[0].contains("`mail` are not delivered") && said[4].contains("crash-loop"), "{said:?}");
    for said in said {
        let address = web.port().to_string();
        assert!(!said.contains("secret") && !said.contains(&format!(":{address}")), "{said}");
    }
}

#[tokio::test]
async fn certificates_are_those_of_the_machine_and_of_the_file() {
    let (web, told) = sink(free(), Speaks::Http("200 OK"), true).await;
    let (mail, mails) = sink(free(), Speaks::Smtp, true).await;
    let ca = tls_file("ca.pem");
    let of = |name: &str, more: &str| format!("[[notify]]\nname = \"{name}\"\n{more}\n");
    let web = format!("kind = \"slack\"\nurl = \"https://localhost:{}/x\"", web.port());
    let by_mail = format!(
        "kind = \"smtp\"\nserver = \"localhost:{}\"\nsecurity = \"tls\"\nfrom = \"a@lab\"\nto = \"b@lab\"",
        mail.port()
    );
    let trusted = |target: &str| format!("{target}\nca_file = {ca:?}");
    let text = [of("a", &web), of("b", &trusted(&web)), of("c", &by_mail), of("d", &trusted(&by_mail))].concat();
    let (_snapshot, snapshots) = watch::channel(Arc::new(a_snapshot()));
    let notifier = Notifier::none(snapshots, watch::channel(Arc::new(config(&text))).1);
    let tested = notifier.test(None).await.expect("there are some");
    let outcomes: Vec<(bool, &str)> =
        tested.iter().map(|t| (t.delivered, t.reason.as_deref().unwrap_or_default())).collect();
    let untrusted = "its certificate is by nobody whom this machine trusts: name the CA's certificate in `ca_file`";
    assert_eq!(outcomes, [(false, untrusted), (true, ""), (false, untrusted), (true, "")]);
    assert_eq!((told.heard().len(), mails.heard().len()), (1, 1));
    let unknown = notifier.test(Some("x")).await.expect_err("there is none");
    assert_eq!(unknown.to_string(), "no target of that name; there are: a, b, c, d");
}

#[tokio::test]
async fn a_mail_and_its_password_go_over_a_connection_that_is_made_safe_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let (later, mails) = sink(free(), Speaks::StartTls, false).await;
    let (never, none) = sink(free(), Speaks::Smtp, false).await;
    let password = secrets(&dir, "password", "hunter2");
    let of = |name: &str, port: u16, more: &str| {
        format!(
            "[[notify]]\nname = \"{name}\"\nkind = \"smtp\"\nserver = \"localhost:{port}\"\nsecurity = \"starttls\"\n\
             user = \"u\"\npassword_file = {password:?}\nfrom = \"a@lab\"\nto = \"b@lab\"\n{more}\n"
        )
    };
    let trusted = format!("ca_file = {:?}", tls_file("ca.pem"));
    let text =
        [of("safe", later.port(), &trusted), of("untrusted", later.port(), ""), of("unable", never.port(), &trusted)]
            .concat();
    let (_snapshot, snapshots) = watch::channel(Arc::new(a_snapshot()));
    let notifier = Notifier::none(snapshots, watch::channel(Arc::new(config(&text))).1);
    let tested = notifier.test(None).await.expect("there are some");
    let reasons: Vec<_> = tested.iter().map(|t| t.reason.as_deref().unwrap_or_default()).collect();
    assert!(tested[0].delivered && !tested[1].delivered && !tested[2].delivered, "{reasons:?}");
    assert!(reasons[1].contains("`ca_file`") && reasons[2].contains("offers no STARTTLS"), "{reasons:?}");
    let (open, mail): (Vec<_>, Vec<_>) = mails.heard().into_iter().partition(|said| said.ends_with("STARTTLS\r\n"));
    assert!(open.len() == 2 && open.iter().all(|said| !said.contains("AUTH") && !said.contains("MAIL")), "{open:?}");
    assert!(mail.len() == 1 && mail[0].contains("AUTH PLAIN") && mail[0].contains("RCPT TO:<b@lab>"), "{mail:?}");
    assert!(none.heard().is_empty(), "nothing was sent in the clear");
}

#[tokio::test]
async fn a_proxy_is_asked_for_what_is_behind_it() {
    let (proxy, asked) = sink(free(), Speaks::Http("407 Proxy Authentication Required"), false).await;
    let text = format!(
        "[images.build]\nhttps_proxy = \"http://u:p@{proxy}\"\nno_proxy = \"near\"\n\
         [[notify]]\nname = \"far\"\nkind = \"slack\"\nurl = \"https://far.invalid/x\"\n\
         [[notify]]\nname = \"near\"\nkind = \"slack\"\nurl = \"https://{UNRESOLVED}.near/x\"\n"
    );
    let (_snapshot, snapshots) = watch::channel(Arc::new(a_snapshot()));
    let notifier = Notifier::none(snapshots, watch::channel(Arc::new(config(&text))).1);
    let far = notifier.test(Some("far")).await.expect("there is one");
    assert_eq!(far[0].reason.as_deref(), Some("the proxy answers 407"));
    assert!(asked.heard()[0].starts_with("CONNECT far.invalid:443 HTTP/1.1\r\n"), "{:?}", asked.heard());
    assert!(asked.heard()[0].contains("Proxy-Authorization: Basic dTpw\r\n"));
    notifier.test(Some("near")).await.expect("there is one");
    assert_eq!(asked.heard().len(), 1);
}

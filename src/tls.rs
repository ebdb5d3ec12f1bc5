//! Certificate of the page, where `[http] tls` asks for one: made here, or read from the files that `labd.toml` names, and kept
//! up to date while labd runs. One task owns it; the page's listeners take for each connection what it serves then.
//!
//! A new one that is broken changes nothing: the one before is served, and it is said. Where there is none at all nothing is
//! served either: who asked for TLS does not get a page without.

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_rustls::rustls::{
    self, ServerConfig, crypto::ring, pki_types::ServerName, server::ServerSessionMemoryCache, sign::SingleCertAndKey,
};

use crate::{
    config::{
        Config, Tls,
        tls::{self, Certificate, Wrong},
    },
    files,
    journal::{Entry, Journal, Kind},
    snapshot::TlsView,
    time::Timestamp,
};

/// File in the data directory with the certificate that labd made and its key: one file, so that the two always fit.
const FILE: &str = "page.pem";
/// Time for which a certificate of labd's own is valid. Each new one has to be compared and trusted again, so it is long; Apple's
/// systems take at most 825 days of one that a person trusts by hand.
const LIFETIME: Duration = Duration::from_hours(820 * 24);
/// Time by which it is valid earlier than it was made: laptops' clocks are off.
const EARLIER: Duration = Duration::from_hours(24);
/// Time before its end at which another one is made: whoever trusted the old one should not meet an error first. Chosen, not
/// measured.
const RENEWED: Duration = Duration::from_hours(30 * 24);
/// Time between two looks at the files that `labd.toml` names: certbot renews 30 days before the end, so a minute is soon.
const LOOK: Duration = Duration::from_mins(1);
/// Time between two looks at a certificate of labd's own, which nobody else changes.
const LOOK_AT_OWN: Duration = Duration::from_hours(1);
/// Longest wait for files: on a network file system whose server is away, reading may never end.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is said then.
const SILENT: &str = "its file system does not answer: is its server away?";
/// Largest number of sessions that clients may resume: some browsers of some people. Each holds a few hundred bytes.
const SESSIONS: usize = 64;
/// Names of every machine to itself: what a forwarded port is visited as, the second origin's among them.
const LOOPBACK: [&str; 5] = ["localhost", "labd.localhost", "jupyter.localhost", "127.0.0.1", "::1"];

/// How the page's listeners speak to whoever connects.
#[derive(Clone, Default)]
pub enum Speaks {
    /// HTTP.
    #[default]
    Plain,
    /// HTTP over TLS.
    Tls(Arc<ServerConfig>),
    /// Not at all: TLS is asked for, and there is no certificate.
    Nothing,
}

/// What the page is served with now.
#[derive(Clone, Default)]
pub struct Served {
    /// How listeners speak.
    pub speaks: Speaks,
    /// The certificate.
    pub view: Option<TlsView>,
    /// What is wrong with the certificate that should be served, in one line.
    pub trouble: Option<String>,
    /// What visitors will stumble over with the one that is served, in one line.
    pub advice: Option<String>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served").field("view", &self.view).field("trouble", &self.trouble).finish_non_exhaustive()
    }
}

impl Served {
    /// State for a configuration before its certificate is read.
    fn not_yet(tls: Tls) -> Self {
        let speaks = if tls == Tls::Off { Speaks::Plain } else { Speaks::Nothing };
        Self { speaks, ..Self::default() }
    }
}

/// Parts of the task.
pub struct Parts {
    /// Configuration; each reload makes the files be read again.
    pub config: watch::Receiver<Arc<Config>>,
    /// Path of `labd.toml`, for errors.
    pub path: PathBuf,
    /// Names and addresses under which people reach this machine, the one that links use first.
    pub hosts: Vec<String>,
    /// Journal, for a certificate that takes another one's place.
    pub journal: Journal,
    /// Signal that turns true when the daemon ends.
    pub stopped: watch::Receiver<bool>,
}

/// Certificate that is served, and where it is from.
#[derive(Clone)]
struct Loaded {
    tls: Tls,
    certificate: Certificate,
    server: Arc<ServerConfig>,
    /// Sum of what the files held.
    sum: [u8; 32],
    /// What is wrong with it, though it is served.
    trouble: Option<String>,
}

impl Loaded {
    fn new(tls: Tls, certificate: Certificate, sum: [u8; 32], trouble: Option<String>) -> Result<Self, String> {
        let server = server(&certificate).map_err(|e| format!("TLS cannot be set up: {e}"))?;
        Ok(Self { tls, certificate, server: Arc::new(server), sum, trouble })
    }
}

/// Starts the task, and waits until it has a certificate, or for as long as files may take.
pub async fn spawn(parts: Parts) -> watch::Receiver<Arc<Served>> {
    let tls = parts.config.borrow().http.tls;
    let (tell, mut served) = watch::channel(Arc::new(Served::not_yet(tls)));
    tokio::spawn(keep(parts, tell));
    if tls != Tls::Off {
        let _ = tokio::time::timeout(PATIENCE * 2, served.changed()).await;
    }
    served
}

async fn keep(parts: Parts, tell: watch::Sender<Arc<Served>>) {
    let Parts { mut config, path, hosts, journal, mut stopped } = parts;
    let hosts = Arc::new(hosts);
    let mut loaded: Option<Loaded> = None;
    loop {
        let now = config.borrow_and_update().clone();
        let mut trouble = None;
        if now.http.tls == Tls::Off {
            loaded = None;
        } else {
            let (names, path, config, before) = (hosts.clone(), path.clone(), now.clone(), loaded.clone());
            let reading = tokio::task::spawn_blocking(move || load(&config, &path, &names, before, Timestamp::now()));
            let mut reading =
                reading.map(|done| done.unwrap_or_else(|_| Err("it could not be read: a bug in labd".into())));
            let done = if let Ok(done) = tokio::time::timeout(PATIENCE, &mut reading).await {
                done
            } else {
                publish(&tell, served(&now, &hosts, loaded.as_ref(), Some(SILENT.to_owned())));
                // Another thread would hang beside this one.
                reading.await
            };
            match done {
                Ok(new) => {
                    note(&journal, loaded.as_ref(), &new);
                    trouble.clone_from(&new.trouble);
                    loaded = Some(new);
                }
                Err(text) => trouble = Some(text),
            }
        }
        publish(&tell, served(&now, &hosts, loaded.as_ref(), trouble));
        let next = match now.http.tls {
            Tls::Given => LOOK,
            Tls::SelfSigned => LOOK_AT_OWN,
            Tls::Off => Duration::MAX,
        };
        tokio::select! {
            () = tokio::time::sleep(next) => {}
            Ok(()) = config.changed() => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// Tells what is served where that is something else than before, and logs what is wrong once.
fn publish(tell: &watch::Sender<Arc<Served>>, new: Served) {
    let old = tell.borrow().clone();
    let same_way = match (&old.speaks, &new.speaks) {
        (Speaks::Plain, Speaks::Plain) | (Speaks::Nothing, Speaks::Nothing) => true,
        (Speaks::Tls(a), Speaks::Tls(b)) => Arc::ptr_eq(a, b),
        _ => false,
    };
    for (before, text) in [(&old.trouble, &new.trouble), (&old.advice, &new.advice)] {
        if let Some(text) = text.as_ref().filter(|_| before != text) {
            tracing::warn!("the page's certificate: {text}");
        }
    }
    if !(same_way && old.view == new.view && old.trouble == new.trouble && old.advice == new.advice) {
        tell.send_replace(Arc::new(new));
    }
}

fn note(journal: &Journal, before: Option<&Loaded>, new: &Loaded) {
    let Certificate { fingerprint, until, .. } = &new.certificate;
    match before {
        Some(old) if old.certificate.fingerprint == *fingerprint => return,
        Some(_) => journal.record(Entry {
            at: Timestamp::now(),
            service: None,
            kind: Kind::Daemon,
            what: "certificate".to_owned(),
            reason: format!("the page has another certificate, valid until {until}: SHA-256 {fingerprint}"),
        }),
        None => {}
    }
    let whose = if new.tls == Tls::SelfSigned { "labd's own" } else { "given" };
    tracing::info!(certificate = whose, sha256 = %fingerprint, valid_until = %until, "the page speaks TLS");
}

/// What is served with a certificate, or without one.
fn served(config: &Config, hosts: &[String], loaded: Option<&Loaded>, trouble: Option<String>) -> Served {
    let Some(loaded) = loaded else { return Served { trouble, ..Served::not_yet(config.http.tls) } };
    let certificate = &loaded.certificate;
    let (host, advice) = match host(config.lab.page.ip(), hosts, |host| certificate.covers(host)) {
        Ok(host) => (host, None),
        Err(advice) => (None, Some(advice)),
    };
    let view = TlsView {
        fingerprint: certificate.fingerprint.clone(),
        self_signed: loaded.tls == Tls::SelfSigned,
        expires_at: certificate.until,
        host,
    };
    Served { speaks: Speaks::Tls(loaded.server.clone()), view: Some(view), trouble, advice }
}

/// Name for links to the page: none where the address that they would name is one of the certificate's; else the first of this
/// machine's names that is. Fails with what would be right.
fn host(page: IpAddr, hosts: &[String], covers: impl Fn(&str) -> bool) -> Result<Option<String>, String> {
    // Reached through a tunnel, whatever the certificate says.
    if page.is_loopback() {
        return Ok(None);
    }
    let named = if page.is_unspecified() { hosts.first().cloned().unwrap_or_default() } else { page.to_string() };
    if covers(&named) {
        return Ok(None);
    }
    match hosts.iter().find(|host| covers(host)) {
        Some(host) => Ok(Some(host.clone())),
        None => Err(format!(
            "it is not for {named}, by which links name the page: set `node.address` in labd.toml to the name that it is for"
        )),
    }
}

/// TLS 1.2 and 1.3 with a certificate.
pub(crate) fn server(certificate: &Certificate) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from((*certificate.certified).clone())));
    // WebSockets, and all that is behind the page, speak it alone.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    Ok(config)
}

/// The certificate that a configuration asks for. Reads and writes files.
fn load(
    config: &Config,
    path: &Path,
    hosts: &[String],
    before: Option<Loaded>,
    now: Timestamp,
) -> Result<Loaded, String> {
    let before = before.filter(|before| before.tls == config.http.tls);
    match config.http.tls {
        Tls::Given => given(config, before, |wrong| wrong.at(path).to_string()),
        _ => own(&config.lab.data_dir.join(FILE), &names(config.lab.page.ip(), hosts), before, now),
    }
}

fn given(config: &Config, before: Option<Loaded>, said: impl Fn(Wrong) -> String) -> Result<Loaded, String> {
    let (chain, key) = tls::read(&config.http).map_err(&said)?;
    let sum = Sha256::new().chain_update(&chain).chain_update(&key).finalize().into();
    match before {
        Some(before) if before.sum == sum => Ok(before),
        _ => Loaded::new(Tls::Given, Certificate::parse(&chain, &key).map_err(said)?, sum, None),
    }
}

/// What is open beyond this machine without TLS.
pub fn open_without(config: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    let page = config.lab.page;
    if config.http.tls == Tls::Off && !page.ip().is_loopback() {
        lines.push(format!(
            "the page is open beyond this machine ({page}) without TLS: logins cross the network for everybody to read; set \
             `http.tls = \"self-signed\"`"
        ));
    }
    let publish = config.network.publish;
    if !publish.is_loopback() {
        lines.push(format!(
            "services' ports are open beyond this machine (`network.publish = \"{publish}\"`), and speak no TLS: tokens and \
             passwords cross the network for everybody to read; the page, which can speak it, leads to most of them"
        ));
    }
    lines
}

/// Names and addresses of a certificate of labd's own: those of every machine to itself, and those of this one that can stand in
/// a certificate.
pub(crate) fn names(page: IpAddr, hosts: &[String]) -> Vec<String> {
    let page = (!page.is_unspecified()).then(|| page.to_string());
    let mut names: Vec<String> = LOOPBACK.map(str::to_owned).into();
    for host in hosts.iter().cloned().chain(page) {
        let host = host.to_ascii_lowercase();
        if !names.contains(&host) && ServerName::try_from(host.as_str()).is_ok() {
            names.push(host);
        }
    }
    names
}

/// Reason why a certificate of labd's own needs another one in its place.
fn outdated(certificate: &Certificate, names: &[String], is_first_look: bool, now: Timestamp) -> Option<String> {
    if let Some(name) = names.iter().find(|name| !certificate.covers(name)) {
        return Some(format!("the one before was not for {name}"));
    }
    if now.plus(RENEWED) >= certificate.until {
        return Some(format!("the one before ends at {}", certificate.until));
    }
    // At first the clock may not be set yet; and one that was made by a clock that was ahead is of no use for years.
    if !is_first_look && now < certificate.from {
        return Some(format!("the one before is not valid before {}", certificate.from));
    }
    None
}

fn own(path: &Path, names: &[String], before: Option<Loaded>, now: Timestamp) -> Result<Loaded, String> {
    let is_first_look = before.is_none();
    let is_fine = |c: &Certificate| outdated(c, names, is_first_look, now).is_none();
    // One that could not be written is in memory alone.
    if let Some(before) = before.as_ref().filter(|before| before.trouble.is_some() && is_fine(&before.certificate)) {
        return Ok(before.clone());
    }
    let loaded = |certificate, trouble| Loaded::new(Tls::SelfSigned, certificate, [0; 32], trouble);
    let cannot = |e: &dyn fmt::Display| format!("cannot be made: {e}");
    let why = match read_own(path) {
        Ok(Some(kept)) => match outdated(&kept, names, is_first_look, now) {
            None => {
                let same = before.filter(|before| before.certificate.fingerprint == kept.fingerprint);
                return same.map_or_else(|| loaded(kept, None), Ok);
            }
            Some(why) => why,
        },
        Ok(None) => "there was none".to_owned(),
        Err(e) => format!("{} cannot be read: {e}", path.display()),
    };
    let text = make(names, now).map_err(|e| cannot(&e))?;
    let certificate = Certificate::parse(text.as_bytes(), text.as_bytes()).map_err(|wrong| cannot(&wrong.text))?;
    tracing::info!("the page has a new certificate of labd's own: {why}");
    let kept = files::write_private(path, text.as_bytes());
    let trouble = kept
        .err()
        .map(|e| format!("it cannot be kept in {}: {e}; labd makes another one when it starts again", path.display()));
    loaded(certificate, trouble)
}

/// The certificate that labd made, if it is there.
fn read_own(path: &Path) -> io::Result<Option<Certificate>> {
    files::make_private(path)?;
    let text = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    Certificate::parse(&text, &text).map(Some).map_err(|wrong| io::Error::other(wrong.text))
}

/// A new certificate and its key, as PEM.
pub(crate) fn make(names: &[String], now: Timestamp) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    let day = |at: Timestamp| {
        let at = jiff::Timestamp::from_millisecond(at.as_millis()).unwrap_or_default();
        let day = jiff::tz::Offset::UTC.to_datetime(at).date();
        rcgen::date_time_ymd(day.year().into(), day.month().unsigned_abs(), day.day().unsigned_abs())
    };
    params.not_before = day(now.minus(EARLIER));
    params.not_after = day(now.plus(LIFETIME));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "labd");
    for name in names {
        params.subject_alt_names.push(match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    // Whoever trusts it trusts this page, and nothing that it would sign.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn now() -> Timestamp {
        Timestamp::parse("2026-11-30T12:00:00Z").expect("a time")
    }

    fn days(n: u64) -> Duration {
        Duration::from_hours(24 * n)
    }

    fn config(text: &str) -> Arc<Config> {
        Arc::new(Config::parse(Path::new("labd.toml"), text).expect("right"))
    }

    /// Certificate and key that labd would make, in two files.
    fn put(dir: &Path, name: &str) -> String {
        let text = make(&[name.to_owned()], Timestamp::now()).expect("made");
        let (certificate, key) = text.split_at(text.find("-----BEGIN PRIVATE KEY").expect("both"));
        fs::write(dir.join("cert"), certificate).expect("written");
        fs::write(dir.join("key"), key).expect("written");
        Certificate::parse(certificate.as_bytes(), key.as_bytes()).expect("right").fingerprint
    }

    #[test]
    fn a_certificate_of_labds_own_stays_until_it_ends_or_a_name_comes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(FILE);
        let hosts = ["GPU1.lab.example".to_owned(), "gpu1".to_owned(), "192.0.2.7".to_owned(), "no name".to_owned()];
        let wanted = names([10, 0, 0, 7].into(), &hosts);
        assert_eq!(wanted[LOOPBACK.len()..], ["gpu1.lab.example", "gpu1", "192.0.2.7", "10.0.0.7"]);
        assert_eq!(names([0, 0, 0, 0].into(), &[]), LOOPBACK);
        let look = |names: &[String], now| own(&path, names, None, now).expect("one").certificate;

        let first = look(&wanted, now());
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(wanted.iter().all(|name| first.covers(name)) && !first.covers("evil.example"));
        assert!(first.from < now() && first.until > now().plus(days(800)) && first.until < first.from.plus(days(825)));
        assert_eq!(look(&wanted, now().plus(days(700))).fingerprint, first.fingerprint, "a restart keeps it");
        assert_eq!(look(&wanted[..6], now()).fingerprint, first.fingerprint, "fewer names are no reason");

        let renewed = look(&wanted, first.until.minus(days(29)));
        assert!(renewed.fingerprint != first.fingerprint && renewed.until > first.until);
        let more = names([10, 0, 0, 8].into(), &hosts);
        let named = look(&more, first.until.minus(days(29)));
        assert!(named.fingerprint != renewed.fingerprint && named.covers("10.0.0.8"));

        // A clock that is not set yet is no reason at first, and one that was ahead is, later.
        let kept = own(&path, &more, None, now().minus(days(20_000))).expect("one");
        assert_eq!(kept.certificate.fingerprint, named.fingerprint);
        let later = own(&path, &more, Some(kept), now()).expect("one").certificate;
        assert_ne!(later.fingerprint, named.fingerprint);
        fs::write(&path, "broken").expect("written");
        assert_ne!(look(&more, now()).fingerprint, later.fingerprint);
    }

    #[test]
    fn a_certificate_that_cannot_be_kept_is_served_and_said() {
        let path = Path::new("/proc/page.pem");
        let first = own(path, &names([127, 0, 0, 1].into(), &[]), None, now()).expect("one");
        assert!(first.trouble.as_ref().is_some_and(|text| text.contains("/proc/page.pem")), "{:?}", first.trouble);
        let fingerprint = first.certificate.fingerprint.clone();
        let again = own(path, &names([127, 0, 0, 1].into(), &[]), Some(first), now()).expect("one");
        assert_eq!(again.certificate.fingerprint, fingerprint, "not another one each hour");
    }

    #[test]
    fn links_name_what_the_certificate_is_for() {
        let hosts = ["192.0.2.7".to_owned(), "gpu1.lab.example".to_owned(), "gpu1".to_owned()];
        let found = |page: &str, covered: &'static [&str]| {
            host(page.parse().expect("an address"), &hosts, |host| covered.contains(&host))
        };
        assert_eq!(found("127.0.0.1", &[]), Ok(None));
        assert_eq!(found("0.0.0.0", &["192.0.2.7", "gpu1"]), Ok(None));
        assert_eq!(found("0.0.0.0", &["gpu1", "gpu1.lab.example"]), Ok(Some("gpu1.lab.example".into())));
        assert_eq!(found("10.0.0.1", &["gpu1"]), Ok(Some("gpu1".into())));
        let advice = found("0.0.0.0", &["www.example"]).expect_err("none fits");
        assert!(advice.contains("not for 192.0.2.7") && advice.contains("`node.address`"), "{advice}");
    }

    #[test]
    fn what_is_open_without_tls_is_said() {
        for (text, says) in [
            ("", &[] as &[&str]),
            ("[lab]\npage = \"[::1]:8600\"", &[]),
            ("[lab]\npage = \"0.0.0.0:8600\"\n[http]\ntls = \"self-signed\"", &[]),
            ("[lab]\npage = \"0.0.0.0:8600\"", &["the page is open"]),
            ("[network]\npublish = \"10.0.0.1\"\n[http]\ntls = \"self-signed\"", &["services' ports"]),
            ("[lab]\npage = \"[::]:8600\"\n[network]\npublish = \"0.0.0.0\"", &["the page is open", "services' ports"]),
        ] {
            let said = open_without(&config(text));
            assert_eq!(said.len(), says.len(), "{text}: {said:?}");
            assert!(said.iter().zip(says).all(|(line, part)| line.contains(part)), "{text}: {said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_given_certificate_is_read_again_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("labd.toml");
        let text = format!(
            "[http]\ntls = \"given\"\ncertificate = {:?}\nkey = {:?}\n",
            dir.path().join("cert"),
            dir.path().join("key")
        );
        fs::write(&path, &text).expect("written");
        let (reload, configs) = watch::channel(config(&text));
        let (stop, stopped) = watch::channel(false);
        let journal = Journal::open(&dir.path().join("journal.db"), days(1)).expect("opens");
        let parts = Parts { config: configs, path, hosts: vec!["lab.example".into()], journal, stopped };
        let mut served = spawn(parts).await;
        let now = served.borrow_and_update().clone();
        assert!(matches!(now.speaks, Speaks::Nothing), "TLS is asked for, so nothing is served without");
        assert!(now.trouble.as_ref().is_some_and(|text| text.contains("labd.toml:3: `http.certificate`")), "{now:?}");

        let shown =
            |served: &watch::Receiver<Arc<Served>>| served.borrow().view.as_ref().map(|v| v.fingerprint.clone());
        let first = put(dir.path(), "lab.example");
        served.changed().await.expect("it goes on");
        assert_eq!((shown(&served), served.borrow_and_update().trouble.clone()), (Some(first.clone()), None));
        let second = put(dir.path(), "lab.example");
        served.changed().await.expect("it goes on");
        assert_eq!(shown(&served), Some(second.clone()), "within a minute");
        served.mark_unchanged();

        fs::write(dir.path().join("key"), include_str!("../tests/data/tls/key.pem")).expect("written");
        // Asked for by a reload.
        reload.send_modify(|_| {});
        served.changed().await.expect("it goes on");
        let now = served.borrow_and_update().clone();
        assert!(now.trouble.as_ref().is_some_and(|text| text.contains("labd.toml:4: `http.key`")), "{now:?}");
        assert!(shown(&served) == Some(second) && matches!(now.speaks, Speaks::Tls(_)), "the one before");
        tokio::time::sleep(LOOK * 10).await;
        assert!(!served.has_changed().expect("it goes on"), "and said once");

        reload.send_replace(config("[lab]\npage = \"0.0.0.0:8600\"\n"));
        served.changed().await.expect("it goes on");
        assert!(matches!(served.borrow_and_update().speaks, Speaks::Plain) && shown(&served).is_none());
        stop.send_replace(true);
        while served.changed().await.is_ok() {}
    }
}

//! Delivery of one message to one target, in bounded time. Reasons of failures name neither addresses nor secrets.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::header::HeaderValue;
use lettre::transport::smtp::client::{Certificate, TlsParameters};
use tokio::sync::Semaphore;
use tokio_rustls::rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use super::{
    http, mail,
    outbox::Message,
    shape::{self, Sender},
};
use crate::{
    config::{
        Config, Notify, NotifyKind,
        notify::{is_this_machine, parse_target_url},
    },
    secret::Secret,
};

/// Longest time for a delivery, from reading its secrets to the answer: less than the command line waits for a test.
pub(super) const LIMIT: Duration = Duration::from_secs(20);
/// Largest file of a secret.
const SECRET: u64 = 8 << 10;
/// Largest file of certificates: a system's whole bundle is a quarter.
const CERTIFICATES: u64 = 1 << 20;
/// Largest number of threads that read files at once: on a file system that hangs they never end, and others need threads, too.
/// All targets together read 32 files.
static READERS: Semaphore = Semaphore::const_new(32);

/// Reason why a target was not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// Reason in one line, without addresses and secrets.
    pub(super) why: String,
    /// Time for which the target asks not to be sent anything.
    pub(super) after: Option<Duration>,
}

impl Refused {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), after: None }
    }

    /// The same with what was going on.
    #[must_use]
    pub(super) fn during(self, what: &str) -> Self {
        Self { why: format!("{} to {what}", self.why), ..self }
    }
}

/// Delivers a message, or says within [`LIMIT`] why not.
pub(super) async fn deliver(
    target: &Notify,
    config: &Config,
    sender: &Sender,
    message: &Message,
) -> Result<(), Refused> {
    match tokio::time::timeout(LIMIT, deliver_in_time(target, config, sender, message)).await {
        Ok(done) => done,
        Err(_) => Err(Refused::new(format!("it does not answer within {} s", LIMIT.as_secs()))),
    }
}

async fn deliver_in_time(target: &Notify, config: &Config, sender: &Sender, message: &Message) -> Result<(), Refused> {
    if target.kind == NotifyKind::Smtp {
        let password = match &target.password_file {
            Some(path) => Some(secret("password_file", path).await?),
            None => None,
        };
        let tls = async |host: String| trusted(host, target.ca_file.clone()).await;
        return mail::send(target, password, sender, message, tls).await;
    }
    let url = match (&target.url, &target.url_file) {
        (Some(url), _) => Secret::new(url.as_str()),
        (None, Some(path)) => secret("url_file", path).await?,
        (None, None) => return Err(Refused::new("it has no address")),
    };
    let token = match &target.token_file {
        Some(path) => Some(secret("token_file", path).await?),
        None => None,
    };
    let url = parse_target_url(url.expose()).map_err(|text| Refused::new(format!("what `url_file` names {text}")))?;
    let (host, tls) = (url.host_str().unwrap_or_default().to_owned(), url.scheme() == "https");
    if token.is_some() && !tls && !is_this_machine(&host) {
        return Err(Refused::new("its token would be sent in the clear; use `https://`"));
    }
    let login = !url.username().is_empty() || url.password().is_some();
    if login && !tls && !is_this_machine(&host) {
        return Err(Refused::new("the login in its address would be sent in the clear; use `https://`"));
    }
    let room = target.room.as_deref().unwrap_or_default();
    let post = shape::post(target.kind, url, room, sender, message);
    let mut post = post.ok_or_else(|| Refused::new("its address is no valid one"))?;
    if let Some(token) = token {
        let value = HeaderValue::from_str(&format!("Bearer {}", token.expose()));
        let mut value = value.map_err(|_| Refused::new("what `token_file` names is no token"))?;
        value.set_sensitive(true);
        post.headers.push(("authorization", value));
    }
    http::send(post, config.images.build.proxy(&host, tls), roots(target.ca_file.clone())).await
}

/// Secret in a file, read each time, so that it can be changed.
async fn secret(setting: &'static str, path: &Path) -> Result<Secret, Refused> {
    let cannot = move |what: &str| Refused::new(format!("the file of `{setting}` {what}"));
    let bytes = read(path.to_owned(), SECRET).await.map_err(|what| cannot(&what))?;
    let text = String::from_utf8(bytes).map_err(|_| cannot("is no text; it must hold one line"))?;
    let text = text.trim();
    if text.is_empty() || text.contains(char::is_control) {
        return Err(cannot("must hold one line"));
    }
    Ok(Secret::new(text))
}

/// Bytes of a file, in a thread of its own. Fails with what is wrong with it, without its name.
async fn read(path: PathBuf, most: u64) -> Result<Vec<u8>, String> {
    in_thread(move || {
        let file = File::open(path).map_err(|e| format!("cannot be read: {}", e.kind()))?;
        let mut bytes = Vec::new();
        file.take(most + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {}", e.kind()))?;
        if bytes.len() as u64 > most {
            Err(format!("is too large; at most {} KiB are read", most >> 10))
        } else {
            Ok(bytes)
        }
    })
    .await
}

async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    // Who waits for long is given up with the whole delivery.
    let Ok(permit) = READERS.acquire().await else { return Err("cannot be read".to_owned()) };
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(permit);
        done
    });
    done.await.unwrap_or_else(|_| Err("cannot be read".to_owned()))
}

/// What this machine trusts, and a file of the lab's own.
async fn roots(ca_file: Option<PathBuf>) -> Result<RootCertStore, Refused> {
    let own = own(ca_file).await?;
    let system = in_thread(|| Ok(rustls_native_certs::load_native_certs().certs));
    let system = system.await.map_err(|_| Refused::new("this machine's certificates cannot be read"))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system);
    roots.add_parsable_certificates(own.into_iter().flatten());
    Ok(roots)
}

/// The same for mail.
async fn trusted(host: String, ca_file: Option<PathBuf>) -> Result<TlsParameters, Refused> {
    let own = own(ca_file).await?;
    let made = in_thread(move || {
        let wrong = |_| "TLS cannot be set up with the certificates of this machine and `ca_file`".to_owned();
        let mut tls = TlsParameters::builder(host);
        for certificate in own.into_iter().flatten() {
            tls = tls.add_root_certificate(Certificate::from_der(certificate.to_vec()).map_err(wrong)?);
        }
        tls.build().map_err(wrong)
    });
    made.await.map_err(Refused::new)
}

/// Certificates in `ca_file`.
async fn own(ca_file: Option<PathBuf>) -> Result<Option<Vec<CertificateDer<'static>>>, Refused> {
    let Some(path) = ca_file else { return Ok(None) };
    let cannot = |what: &str| Refused::new(format!("the file of `ca_file` {what}"));
    let pem = read(path, CERTIFICATES).await.map_err(|what| cannot(&what))?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(Some(certificates)),
        _ => Err(cannot("must hold certificates (PEM)")),
    }
}

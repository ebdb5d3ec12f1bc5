//! TLS of the page (`[http] tls`): the checks of its settings, and of the certificate and key that they name. What the files hold
//! is judged without touching anything else; the daemon starts without them, and says so.

use std::{
    fmt,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::{
    CertificateError, Error, RootCertStore,
    client::{verify_server_cert_signed_by_trust_anchor, verify_server_name},
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject as _},
    },
    server::ParsedCertificate,
    sign::CertifiedKey,
};

use super::{Config, ConfigError, HttpSettings, line};
use crate::time::Timestamp;

/// Largest file that is read: chains of certificates have some kB.
const LARGEST: u64 = 1 << 20;

/// TLS of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// None: plain HTTP.
    #[default]
    Off,
    /// With a certificate that labd makes itself, and renews.
    SelfSigned,
    /// With the certificate that `certificate` and `key` name.
    Given,
}

/// Setting that is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// `http.certificate`.
    Certificate,
    /// `http.key`.
    Key,
}

impl Setting {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Key => "key",
        }
    }

    fn path(self) -> Vec<String> {
        vec!["http".to_owned(), self.as_str().to_owned()]
    }
}

/// What is wrong with a setting, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The setting.
    pub setting: Setting,
    /// Text in one line.
    pub text: String,
}

impl Wrong {
    fn certificate(text: impl Into<String>) -> Self {
        Self { setting: Setting::Certificate, text: text.into() }
    }

    fn key(text: impl Into<String>) -> Self {
        Self { setting: Setting::Key, text: text.into() }
    }

    /// The error as that of `labd.toml` at this path, with the line of the setting.
    pub fn at(self, path: &Path) -> ConfigError {
        // The text was read a moment ago.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let key = self.setting.path();
        ConfigError {
            path: path.to_owned(),
            line: line::of_key(&text, &key),
            text: format!("`{}`: {}", line::dotted(&key), self.text),
        }
    }
}

/// Certificate with its issuers and its key, of which rustls has found that they fit.
#[derive(Clone)]
pub struct Certificate {
    /// What a server shows and signs with.
    pub certified: Arc<CertifiedKey>,
    /// SHA-256 fingerprint of the certificate, as browsers and `openssl x509 -fingerprint` show it.
    pub fingerprint: String,
    /// Time from which it is valid.
    pub from: Timestamp,
    /// Time until which it is valid.
    pub until: Timestamp,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("fingerprint", &self.fingerprint)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads a chain of certificates and a key, both PEM.
    pub fn parse(chain: &[u8], key: &[u8]) -> Result<Self, Wrong> {
        let broken = |e: &pem::Error| format!("is not PEM that can be read ({e:?}); name a file as certbot writes it");
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|e| Wrong::certificate(broken(&e)))?;
        let Some(own) = certificates.first() else {
            return Err(Wrong::certificate(no_certificate(chain)));
        };
        let (from, until) = validity(own).ok_or_else(|| {
            Wrong::certificate("holds no certificate that browsers take: its first one is not X.509 of version 3")
        })?;
        let key = match PrivateKeyDer::from_pem_slice(key) {
            Ok(key) => key,
            Err(pem::Error::NoItemsFound) => return Err(Wrong::key(no_key(key))),
            // What stands in the file is nobody's to print.
            Err(_) => return Err(Wrong::key("is not PEM that can be read; name a file as certbot writes it")),
        };
        let fingerprint = fingerprint(own);
        let provider = ring::default_provider();
        let fits_another = |key: &PrivateKeyDer<'static>| {
            let mut others = certificates.iter().skip(1);
            others.any(|other| CertifiedKey::from_der(vec![other.clone()], key.clone_key(), &provider).is_ok())
        };
        let certified = match CertifiedKey::from_der(certificates.clone(), key.clone_key(), &provider) {
            Ok(certified) => certified,
            Err(Error::InconsistentKeys(_)) if fits_another(&key) => {
                return Err(Wrong::certificate(
                    "begins with an issuer's certificate; put the page's own first, then its issuers",
                ));
            }
            Err(Error::InconsistentKeys(_)) => {
                return Err(Wrong::key("does not belong to the certificate; name the two that were made together"));
            }
            Err(_) => {
                return Err(Wrong::key(
                    "holds a key of a kind that labd cannot use; it takes RSA from 2,048 bits, ECDSA P-256 and P-384, and \
                     Ed25519",
                ));
            }
        };
        Ok(Self { certified: Arc::new(certified), fingerprint, from, until })
    }

    /// Whether it is for a name or an address.
    pub fn covers(&self, host: &str) -> bool {
        let Ok(name) = ServerName::try_from(host) else { return false };
        let own = self.certified.cert.first().map(ParsedCertificate::try_from);
        own.and_then(Result::ok).is_some_and(|own| verify_server_name(&own, &name).is_ok())
    }

    /// Warning about the time for which it is valid, in one line.
    pub fn out_of_time(&self, now: Timestamp) -> Option<String> {
        match now {
            now if now > self.until => Some(format!("expired at {}; browsers refuse it: renew it", self.until)),
            now if now < self.from => {
                Some(format!("is not valid before {}; if it is later than that now, set the clock", self.from))
            }
            _ => None,
        }
    }
}

/// Reason why a file has no certificate in it.
fn no_certificate(text: &[u8]) -> &'static str {
    match String::from_utf8_lossy(text) {
        text if text.contains("PRIVATE KEY-----") => "holds a key and no certificate; that one goes into `http.key`",
        text if text.trim().is_empty() => {
            "holds no certificate; it must have the page's own, then those of its issuers"
        }
        text if text.contains("-----BEGIN TRUSTED CERTIFICATE") => {
            "holds openssl's own form of a certificate; write it anew with `openssl x509 -in FILE`"
        }
        _ => {
            "holds no certificate in PEM (`-----BEGIN CERTIFICATE-----`); `openssl x509 -inform der -in FILE` writes one from DER"
        }
    }
}

/// Reason why a file has no key in it that can be used.
fn no_key(text: &[u8]) -> &'static str {
    match String::from_utf8_lossy(text) {
        text if text.contains("ENCRYPTED") => {
            "is encrypted, and nobody is there to ask for its passphrase; `openssl pkey -in FILE` writes it without"
        }
        text if text.contains("-----BEGIN CERTIFICATE") => "holds a certificate and no key; name the file with its key",
        _ => "holds no key in PEM (`-----BEGIN PRIVATE KEY-----`); name the file that was made with the certificate",
    }
}

/// Times between which a certificate is valid: a verifier that is asked at the end of time says when it ended.
fn validity(certificate: &CertificateDer<'_>) -> Option<(Timestamp, Timestamp)> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let asked = |at: u64| {
        let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
        verify_server_cert_signed_by_trust_anchor(&parsed, &RootCertStore::empty(), &[], at, &[]).err()
    };
    let time =
        |at: UnixTime| Timestamp::from_millis(i64::try_from(at.as_secs()).unwrap_or(i64::MAX).saturating_mul(1_000));
    let Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) = asked(u64::MAX >> 1)? else {
        return None;
    };
    let from = match asked(0)? {
        Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => time(not_before),
        _ => Timestamp::from_millis(0),
    };
    Some((from, time(not_after)))
}

/// SHA-256 of a certificate, in pairs of upper-case digits with colons.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let pairs: Vec<String> = Sha256::digest(certificate.as_ref()).iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

/// Contents of the two files that the settings name.
pub fn read(http: &HttpSettings) -> Result<(Vec<u8>, Vec<u8>), Wrong> {
    let one = |path: Option<&PathBuf>, wrong: fn(String) -> Wrong| {
        let path = path.ok_or_else(|| wrong("is missing".to_owned()))?;
        contents(path).map_err(|text| wrong(format!("{} {text}", path.display())))
    };
    let chain = one(http.certificate.as_ref(), Wrong::certificate)?;
    Ok((chain, one(http.key.as_ref(), Wrong::key)?))
}

fn contents(path: &Path) -> Result<Vec<u8>, String> {
    let broken = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => "does not exist; name the file itself, with its absolute path".to_owned(),
        _ => format!("cannot be read: {e}"),
    };
    // Opened afterwards: opening a pipe may wait forever.
    if !std::fs::metadata(path).map_err(broken)?.is_file() {
        return Err("is not a file; name the file itself".to_owned());
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes)).map_err(broken)?;
    if bytes.len() as u64 > LARGEST {
        return Err("is larger than a certificate or a key ever is".to_owned());
    }
    Ok(bytes)
}

/// The certificate that a configuration names, where it does. Fails for one that cannot be served.
pub fn examine(config: &Config, path: &Path) -> Result<Option<Certificate>, ConfigError> {
    if config.http.tls != Tls::Given {
        return Ok(None);
    }
    let found = read(&config.http).and_then(|(chain, key)| Certificate::parse(&chain, &key));
    found.map(Some).map_err(|wrong| wrong.at(path))
}

/// Checks the certificate that a configuration names: [`examine`], with a warning about one that browsers will refuse.
pub fn check(config: &Config, path: &Path, now: Timestamp) -> Result<Option<String>, ConfigError> {
    let late = examine(config, path)?.and_then(|certificate| certificate.out_of_time(now));
    Ok(late.map(|text| Wrong::certificate(text).at(path).to_string()))
}

impl Config {
    pub(super) fn check_tls(&self) -> Result<(), (Vec<String>, String)> {
        let http = &self.http;
        let paths = [(Setting::Certificate, &http.certificate), (Setting::Key, &http.key)];
        for (setting, path) in paths {
            match path {
                Some(_) if http.tls != Tls::Given => {
                    return Err((setting.path(), "is for `tls = \"given\"`; set that, or remove this line".into()));
                }
                Some(path) if !path.is_absolute() => {
                    return Err((setting.path(), "must be an absolute path, beginning with `/`".into()));
                }
                None if http.tls == Tls::Given => {
                    let which = setting.as_str();
                    let text = format!(
                        "is \"given\", and `http.{which}` is missing; name the file, or use \"self-signed\" for one that labd makes"
                    );
                    return Err((vec!["http".into(), "tls".into()], text));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::make;

    const CERTIFICATE: &str = include_str!("../../tests/data/tls/cert.pem");
    const KEY: &str = include_str!("../../tests/data/tls/key.pem");
    const CA: &str = include_str!("../../tests/data/tls/ca.pem");

    fn at(year: i16) -> Timestamp {
        Timestamp::parse(&format!("{year}-06-01T12:00:00Z")).expect("a time")
    }

    /// Certificate and key that labd would make, apart.
    fn made(now: Timestamp) -> (String, String) {
        let text = make(&["lab.example".to_owned()], now).expect("made");
        let (certificate, key) = text.split_at(text.find("-----BEGIN PRIVATE KEY").expect("both"));
        (certificate.to_owned(), key.to_owned())
    }

    #[test]
    fn a_certificate_says_its_fingerprint_its_time_and_its_names() {
        let found = Certificate::parse(CERTIFICATE.as_bytes(), KEY.as_bytes()).expect("they fit");
        // As `openssl x509 -noout -fingerprint -sha256` and `-dates` say it.
        let openssl = "E3:A2:9E:86:7E:8E:58:58:84:F9:28:1A:46:54:FD:5F:BC:28:BB:06:64:83:FC:E6:00:82:1C:ED:E4:77:91:79";
        assert_eq!(found.fingerprint, openssl);
        assert_eq!(Some(found.from), Timestamp::parse("2026-11-30T03:55:11Z"));
        assert_eq!(Some(found.until), Timestamp::parse("2126-11-06T03:55:11Z"));
        assert_eq!(
            ["localhost", "127.0.0.1", "127.0.0.2", "lab.example", "", "a b"].map(|host| found.covers(host)),
            [true, true, false, false, false, false]
        );
        assert!(found.out_of_time(at(2100)).is_none());
        assert!(found.out_of_time(at(2127)).is_some_and(|text| text.contains("expired at 2126-11-06")));
        assert!(found.out_of_time(at(2000)).is_some_and(|text| text.contains("not valid before 2026")));
        let chain = format!("{CERTIFICATE}{CA}");
        let found = Certificate::parse(chain.as_bytes(), KEY.as_bytes()).expect("with its issuer");
        assert_eq!((found.certified.cert.len(), found.fingerprint.as_str()), (2, openssl));
        assert!(!format!("{found:?}").contains("key"));
    }

    #[test]
    fn what_cannot_be_served_is_said_with_the_file_that_is_to_blame() {
        use Setting::{Certificate as C, Key as K};
        let (other, its_key) = made(at(2026));
        let upside_down = format!("{CA}{CERTIFICATE}");
        let encrypted = KEY.replace("PRIVATE", "ENCRYPTED PRIVATE");
        let no_base64 = CERTIFICATE.replacen("MII", "???", 1);
        let cut_off = &CERTIFICATE[..CERTIFICATE.len() / 2];
        let no_x509 = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let no_such_key = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
        for (certificate, key, setting, says) in [
            ("", KEY, C, "holds no certificate"),
            ("\u{1}\u{2}", KEY, C, "-inform der"),
            (KEY, KEY, C, "`http.key`"),
            (&no_base64, KEY, C, "not PEM"),
            (cut_off, KEY, C, "not PEM"),
            (no_x509, KEY, C, "version 3"),
            (&upside_down, KEY, C, "own first"),
            (CERTIFICATE, "", K, "holds no key"),
            (CERTIFICATE, CERTIFICATE, K, "a certificate and no key"),
            (CERTIFICATE, &encrypted, K, "passphrase"),
            (CERTIFICATE, no_such_key, K, "RSA"),
            (CERTIFICATE, &its_key, K, "does not belong"),
            (&other, KEY, K, "does not belong"),
        ] {
            let wrong = Certificate::parse(certificate.as_bytes(), key.as_bytes()).expect_err(says);
            assert!(wrong.setting == setting && wrong.text.contains(says), "{says}: {wrong:?}");
            assert!(!wrong.text.contains('\n'), "{wrong:?}");
        }
    }

    #[test]
    fn files_are_refused_with_the_line_of_the_setting_and_an_expired_one_is_a_warning() {
        let dir = tempfile::tempdir().expect("a directory");
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let (old, its_key) = made(at(2020));
        let [good, key, old, its_key] =
            [("good", CERTIFICATE), ("key", KEY), ("old", &old), ("its-key", &its_key)].map(|(n, t)| put(n, t));
        let missing = dir.path().join("missing");
        let found = |certificate: &Path, key: &Path| {
            let text = format!("[http]\ntls = \"given\"\ncertificate = {certificate:?}\nkey = {key:?}\n");
            let path = put("labd.toml", &text);
            let config = Config::parse(&path, &text).expect("of the settings nothing is wrong");
            check(&config, &path, at(2030)).map_err(|e| e.to_string())
        };
        assert_eq!(found(&good, &key), Ok(None));
        let warned = found(&old, &its_key).expect("served all the same").expect("and warned of");
        assert!(warned.contains("labd.toml:3: `http.certificate`: expired at 2022-08-"), "{warned}");
        for (certificate, key, says) in [
            (&missing, &key, &["labd.toml:3: `http.certificate`", "missing does not exist"] as &[&str]),
            (&good, &missing, &["labd.toml:4: `http.key`", "missing does not exist"]),
            (&good, &dir.path().to_owned(), &["labd.toml:4: `http.key`", "is not a file"]),
            (&good, &its_key, &["labd.toml:4: `http.key`", "does not belong to the certificate"]),
        ] {
            let said = found(certificate, key).expect_err("refused");
            assert!(says.iter().all(|part| said.contains(part)), "{said}");
        }
        let large = put("large", &"x".repeat(2 << 20));
        assert!(found(&large, &key).expect_err("refused").contains("larger"));
        assert_eq!(check(&Config::default(), Path::new("/nowhere"), at(2030)), Ok(None));
    }
}

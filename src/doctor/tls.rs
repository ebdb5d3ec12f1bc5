//! Checks of the page's TLS: the certificate that is served, and what is open beyond this machine without one.

use super::{Check, Scene, blocking, is_open_to_all};
use crate::{
    config::{
        Config, ConfigError, Tls,
        tls::{self, Certificate},
    },
    snapshot::Snapshot,
    time::Timestamp,
    tls::open_without,
};

const NAME: &str = "tls";

/// Whether what is open beyond this machine speaks TLS, and whether the page's certificate is right.
pub(super) async fn tls(scene: &Scene) -> Vec<Check> {
    let Ok((config, _)) = &scene.config else {
        return vec![Check::skipped(NAME, "labd.toml is wrong, see there")];
    };
    let (named, path) = (config.clone(), scene.subject.config.clone());
    let given = blocking(move || (tls::examine(&named, &path), open_key(&named))).await;
    let Some((given, open)) = given else {
        return vec![Check::fail(
            NAME,
            "the certificate's file system does not answer",
            "findmnt -t nfs,nfs4,cifs,fuse",
        )];
    };
    let mut checks = vec![judge_certificate(config, given, scene.snapshot(), scene.root_user, Timestamp::now())];
    checks.extend(open);
    checks.extend(open_without(config).into_iter().map(|line| {
        let fix = "# see `http.tls`, `lab.page` and `network.publish` in labd.toml; a tunnel needs no open port: `labd status`";
        Check::warn(NAME, line, fix)
    }));
    // What is open says all that there is to say of none.
    if checks.len() > 1 && config.http.tls == Tls::Off {
        checks.remove(0);
    }
    checks
}

/// Warning that every user of this machine can read the given certificate's key.
fn open_key(config: &Config) -> Option<Check> {
    let key = config.http.key.as_ref().filter(|_| config.http.tls == Tls::Given)?;
    let why = format!("every local user can read the page's key, {}, or write to it", key.display());
    is_open_to_all(key).then(|| Check::warn(NAME, why, format!("chmod o= {}", key.display())))
}

/// Judges the certificate. `given` is the one that labd.toml names, `daemon` what the daemon shows, where one runs.
fn judge_certificate(
    config: &Config,
    given: Result<Option<Certificate>, ConfigError>,
    daemon: Option<&Snapshot>,
    root_user: bool,
    now: Timestamp,
) -> Check {
    const RELOAD: &str = "labd config check\nlabd reload";
    match (config.http.tls, given, daemon.map(|snapshot| snapshot.tls.as_ref())) {
        (Tls::Off, ..) => Check::ok(NAME, "off: nothing is open beyond this machine"),
        (_, Err(e), _) if e.text.contains("ermission denied") && !root_user => {
            Check::skipped(NAME, "the certificate's files cannot be read (needs root)")
        }
        (_, Err(e), _) => {
            let at = e.line.map(|l| format!("+{l} ")).unwrap_or_default();
            Check::fail(NAME, e.to_string(), format!("editor {at}{}\n{RELOAD}", e.path.display()))
        }
        (_, Ok(Some(certificate)), _) if certificate.out_of_time(now).is_some() => {
            let why = certificate.out_of_time(now).unwrap_or_default();
            Check::fail(
                NAME,
                format!("the page's certificate {why}"),
                "# renew it, as with `certbot renew`\ntimedatectl",
            )
        }
        (_, Ok(_), Some(None)) => {
            Check::warn(NAME, "labd serves no certificate, though labd.toml asks for TLS", RELOAD)
        }
        (_, Ok(_), Some(Some(view))) => {
            let whose = if view.self_signed { "labd's own" } else { "the given" };
            let why = format!(
                "{whose} certificate, valid until {}; its SHA-256 fingerprint: {}",
                view.expires_at, view.fingerprint
            );
            Check::ok(NAME, why)
        }
        (_, Ok(Some(certificate)), None) => {
            let why = format!(
                "the given certificate, valid until {}; its SHA-256 fingerprint: {}",
                certificate.until, certificate.fingerprint
            );
            Check::ok(NAME, why)
        }
        (_, Ok(None), None) => {
            Check::ok(NAME, "labd makes a certificate when it starts, or serves the one that it made")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;
    use crate::{doctor::Verdict, http::testing::a_snapshot, snapshot::TlsView};

    #[test]
    fn a_key_that_everybody_can_read_is_said() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = dir.path().join("key.pem");
        fs::write(&key, "").expect("written");
        let text = format!("[http]\ntls = \"given\"\ncertificate = \"/c.pem\"\nkey = \"{}\"", key.display());
        let config = Config::parse(Path::new("labd.toml"), &text).expect("right");
        for (mode, is_said) in [(0o600, false), (0o640, false), (0o644, true)] {
            fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("set");
            assert_eq!(open_key(&config).is_some(), is_said, "{mode:o}");
        }
    }

    #[test]
    fn the_certificate_is_judged_as_it_is_served() {
        let config = |text: &str| Config::parse(Path::new("labd.toml"), text).expect("right");
        let (off, own) = (config(""), config("[http]\ntls = \"self-signed\""));
        let now = Timestamp::now();
        let view = TlsView { fingerprint: "AB:CD".into(), self_signed: true, expires_at: now, host: None };
        let judge = |config: &Config, daemon| judge_certificate(config, Ok(None), daemon, true, now);
        assert_eq!(judge(&off, None).verdict, Verdict::Ok);
        assert_eq!(judge(&own, None).verdict, Verdict::Ok);
        let (without, with) = (a_snapshot(), Snapshot { tls: Some(view), ..a_snapshot() });
        let shown = judge(&own, Some(&with));
        assert!(shown.verdict == Verdict::Ok && shown.why.ends_with("AB:CD"), "{}", shown.why);
        assert_eq!(judge(&own, Some(&without)).verdict, Verdict::Warn);
        let broken = ConfigError { path: "/etc/labd/labd.toml".into(), line: Some(7), text: "`http.key`: no".into() };
        let found = judge_certificate(&own, Err(broken), None, true, now);
        assert!(found.verdict == Verdict::Fail && found.why.contains("labd.toml:7: `http.key`"), "{}", found.why);
    }
}

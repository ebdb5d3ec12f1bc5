//! Checks of mirrors and registries: whether what builds and pulls need can be reached, and what time they say it is.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use url::Url;

use super::{Check, Scene, blocking, within};
use crate::{
    config::Config,
    daemon::Machine,
    node,
    spec::{ImageName, ImageSource, ImageSpec},
    time::Timestamp,
};

/// Longest wait for a mirror or registry.
const REACH: Duration = Duration::from_secs(4);

/// Answer of a mirror or registry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Answer {
    /// Name of the host.
    pub(super) host: String,
    /// Reason why it cannot be reached; absent when it can.
    pub(super) trouble: Option<String>,
    /// Seconds by which this machine's clock is ahead of its clock, where it says what time it is.
    pub(super) skew_seconds: Option<i64>,
}

/// Asks Debian's mirror, which every build begins with.
pub(super) async fn ask_mirror(config: Config) -> Answer {
    ask(&places(&config)[0].url, &config).await
}

/// Place that images are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    what: &'static str,
    pub(super) url: String,
    images: Vec<ImageName>,
}

/// Places that the images of `labd.toml` come from, Debian's mirror first.
pub(super) fn places(config: &Config) -> Vec<Place> {
    let build = &config.images.build;
    let or = |set: &Option<String>, default: &str| set.clone().unwrap_or_else(|| default.to_owned());
    // The builds take the first of a list.
    let goproxy = or(&build.goproxy, "https://proxy.golang.org");
    let goproxy = goproxy.split([',', '|']).next().unwrap_or_default().to_owned();
    let all = vec![ImageName::Ray, ImageName::Minio, ImageName::Prometheus];
    let not_pulled = |names: Vec<ImageName>| -> Vec<ImageName> {
        names.into_iter().filter(|n| config.images.reference(*n).is_none()).collect()
    };
    let mut found = vec![
        Place {
            what: "Debian mirror",
            url: or(&build.debian_mirror, "http://deb.debian.org/debian"),
            images: not_pulled(all),
        },
        Place {
            what: "PyPI",
            url: or(&build.pip_index_url, "https://pypi.org/simple"),
            images: not_pulled(vec![ImageName::Ray]),
        },
        Place { what: "Go proxy", url: goproxy, images: not_pulled(vec![ImageName::Minio]) },
    ];
    for name in ImageName::ALL {
        let reference = match (config.images.reference(name), name) {
            (Some(reference), _) => reference,
            (None, ImageName::Grafana) => "grafana/grafana",
            (None, _) => continue,
        };
        let url = format!("https://{}/v2/", registry(reference));
        match found.iter_mut().find(|p| p.url == url) {
            Some(place) => place.images.push(name),
            None => found.push(Place { what: "image registry", url, images: vec![name] }),
        }
    }
    found
}

/// Host that an image reference names.
fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "registry-1.docker.io",
    }
}

/// Whether what images are made from can be reached, for those that the engine does not have.
pub(super) async fn packages(scene: &Scene) -> Vec<Check> {
    const NAME: &str = "packages";
    let Ok((config, _)) = scene.config.clone() else {
        return vec![Check::skipped(NAME, "labd.toml is wrong, see there")];
    };
    let (path, pretended) = (scene.subject.config.clone(), scene.simulated());
    let (asked, again) = (config.clone(), config.clone());
    let wish = blocking(move || {
        let simulate = (pretended > 0).then_some(pretended);
        let machine = Machine::without_gpus(node::facts(), simulate, [198, 18, 100]);
        machine.resolve(asked, &path, true).map(|w| w.plan.images).unwrap_or_default()
    });
    let images: Vec<ImageSpec> = wish.await.unwrap_or_default();
    let mut missing: Vec<ImageName> = Vec::new();
    for image in &images {
        let there = match (&scene.engine, scene.setup().await) {
            (Ok(engine), Ok(_)) => within(engine.has_image(&image.reference)).await,
            _ => None,
        };
        // An engine that cannot be asked will have to make them.
        if !matches!(there, Some(Ok(true))) {
            missing.push(image.name);
        }
    }
    if !images.is_empty() && missing.is_empty() {
        return vec![Check::ok(NAME, "every image is there: nothing has to be fetched")];
    }
    let places: Vec<Place> =
        places(&config).into_iter().filter(|p| p.images.iter().any(|i| missing.contains(i))).collect();
    let answers = places.into_iter().enumerate().map(|(i, place)| {
        let config = &again;
        async move {
            let answer = if i == 0 && place.what == "Debian mirror" {
                scene.mirror().await.clone()
            } else {
                ask(&place.url, config).await
            };
            (place, answer)
        }
    });
    let answers = futures_util::future::join_all(answers).await;
    let pulled = |name: ImageName| images.iter().any(|i| i.name == name && matches!(i.source, ImageSource::Pull));
    judge_packages(&answers, &missing, pulled)
}

fn judge_packages(
    answers: &[(Place, Answer)],
    missing: &[ImageName],
    pulled: impl Fn(ImageName) -> bool,
) -> Vec<Check> {
    const NAME: &str = "packages";
    let words = |names: &[ImageName]| names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
    let mut checks = Vec::new();
    for (place, answer) in answers {
        let Some(trouble) = &answer.trouble else { continue };
        let needed: Vec<ImageName> = place.images.iter().copied().filter(|i| missing.contains(i)).collect();
        if needed.is_empty() {
            continue;
        }
        let why = format!("{} {}: {trouble}; unavailable: {}", place.what, answer.host, words(&needed));
        let setting = match place.what {
            "Debian mirror" => "images.build.debian_mirror",
            "PyPI" => "images.build.pip_index_url",
            "Go proxy" => "images.build.goproxy",
            _ => "images.NAME",
        };
        let fix =
            format!("curl -sSI -m 5 {}\n# or set `{setting}` or `images.build.https_proxy` in labd.toml", place.url);
        // The rest of the lab runs without its graphs.
        let optional = needed.iter().all(|i| *i == ImageName::Grafana && pulled(*i));
        checks.push(if optional { Check::warn(NAME, why, fix) } else { Check::fail(NAME, why, fix) });
    }
    if checks.is_empty() {
        let hosts: Vec<&str> = answers.iter().map(|(_, a)| a.host.as_str()).collect();
        let what = if missing.is_empty() { String::new() } else { format!(" for {}", words(missing)) };
        checks.push(Check::ok(NAME, format!("reached{what}: {}", hosts.join(", "))));
    }
    checks
}

/// Asks a place as the builds would, through the proxy of `labd.toml`. No TLS is spoken: of an https place it is seen
/// whether somebody is there, not what it says.
async fn ask(url: &str, config: &Config) -> Answer {
    let Ok(url) = Url::parse(url) else {
        return Answer { host: url.to_owned(), trouble: Some("is not a URL".to_owned()), skew_seconds: None };
    };
    let host = url.host_str().unwrap_or_default().to_owned();
    match tokio::time::timeout(REACH, reach(&url, config)).await {
        Ok(Ok(skew_seconds)) => Answer { host, trouble: None, skew_seconds },
        Ok(Err(trouble)) => Answer { host, trouble: Some(trouble), skew_seconds: None },
        Err(_) => {
            let trouble = format!("no answer within {} s", REACH.as_secs());
            Answer { host, trouble: Some(trouble), skew_seconds: None }
        }
    }
}

/// Connects to a place. Fails with why it cannot be reached; else returns how far our clock is ahead of its clock,
/// where it says so.
async fn reach(url: &Url, config: &Config) -> Result<Option<i64>, String> {
    let build = &config.images.build;
    let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(443));
    let tls = url.scheme() == "https";
    let proxy = build.proxy(host, tls).and_then(|p| Url::parse(p).ok());
    let target = match &proxy {
        Some(p) => (p.host_str().unwrap_or_default().to_owned(), p.port_or_known_default().unwrap_or(3128)),
        None => (host.to_owned(), port),
    };
    let by = if proxy.is_some() { format!("proxy {}: ", target.0) } else { String::new() };
    let mut stream =
        TcpStream::connect((target.0.as_str(), target.1)).await.map_err(|e| format!("{by}{}", said(&e)))?;
    let request = match (&proxy, tls) {
        (None, true) => return Ok(None),
        (Some(_), true) => format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n"),
        (Some(_), false) => format!("HEAD {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        (None, false) => format!("HEAD {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n", url.path()),
    };
    stream.write_all(request.as_bytes()).await.map_err(|e| format!("{by}{}", said(&e)))?;
    let mut head = Vec::new();
    let mut piece = [0; 2048];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < 1 << 16 {
        match stream.read(&mut piece).await.map_err(|e| format!("{by}{}", said(&e)))? {
            0 => break,
            n => head.extend_from_slice(&piece[..n]),
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let status: u16 = head
        .split_whitespace()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .ok_or_else(|| format!("{by}does not speak HTTP"))?;
    // Whatever else a place says of its front page, it is there; a proxy that refuses or cannot reach it is not.
    if (proxy.is_some() && tls && status != 200) || matches!(status, 407 | 502..=504) {
        return Err(format!("{by}answers {status}"));
    }
    Ok(if tls { None } else { skew(&head, Timestamp::now()) })
}

/// Seconds by which `now` is ahead of the `Date` in the head of an answer.
fn skew(head: &str, now: Timestamp) -> Option<i64> {
    let date = head.lines().find_map(|l| l.split_once(':').filter(|(k, _)| k.eq_ignore_ascii_case("date")))?.1;
    let date = jiff::fmt::rfc2822::parse(date.trim()).ok()?;
    Some(now.as_millis() / 1000 - date.timestamp().as_second())
}

fn said(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ if error.to_string().contains("lookup address") => "its name cannot be resolved".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use tokio::net::TcpListener;

    use crate::doctor::Verdict;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("labd.toml"), text).expect("right")
    }

    #[test]
    fn only_what_the_configuration_would_use_is_asked() {
        let hosts = |text: &str| -> Vec<String> {
            places(&config(text)).into_iter().filter(|p| !p.images.is_empty()).map(|p| p.url).collect()
        };
        assert_eq!(
            hosts(""),
            [
                "http://deb.debian.org/debian",
                "https://pypi.org/simple",
                "https://proxy.golang.org",
                "https://registry-1.docker.io/v2/"
            ]
        );
        let text = "[images]\nray = \"rayproject/ray:2.60.0\"\nminio = \"quay.io/minio/minio:x\"\n[images.build]\n\
                    debian_mirror = \"http://mirror.example/debian\"\n";
        let registries = ["https://registry-1.docker.io/v2/", "https://quay.io/v2/"];
        assert_eq!(hosts(text), ["http://mirror.example/debian", registries[0], registries[1]]);
        assert_eq!(registry("localhost:5000/x"), "localhost:5000");
    }

    #[test]
    fn what_cannot_be_had_says_how_much_it_matters() {
        let places = places(&config(""));
        let answers: Vec<(Place, Answer)> = places
            .into_iter()
            .map(|p| {
                let away = p.what == "image registry";
                (p, Answer { host: "h".into(), trouble: away.then(|| "connection refused".into()), skew_seconds: None })
            })
            .collect();
        let all = [ImageName::Ray, ImageName::Grafana];
        let found = judge_packages(&answers, &all, |n| n == ImageName::Grafana);
        assert_eq!((found.len(), found[0].verdict), (1, Verdict::Warn), "{found:?}");
        assert!(found[0].why.ends_with("unavailable: grafana"), "{}", found[0].why);
        let none: Vec<(Place, Answer)> =
            answers.into_iter().map(|(p, a)| (p, Answer { trouble: Some("no".into()), ..a })).collect();
        assert!(judge_packages(&none, &all, |_| false).iter().all(|c| c.verdict == Verdict::Fail));
    }

    #[tokio::test]
    async fn a_mirror_says_what_time_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((mut peer, _)) = listener.accept().await {
                let _ = peer.read(&mut [0; 512]).await;
                let _ = peer.write_all(b"HTTP/1.1 200 OK\r\ndate: Wed, 25 Nov 2020 02:00:00 GMT\r\n\r\n").await;
            }
        });
        let answer = ask(&format!("http://127.0.0.1:{port}/debian"), &Config::default()).await;
        assert_eq!(answer.trouble, None);
        assert!(answer.skew_seconds.is_some_and(|s| s > 3600 * 24 * 365), "{answer:?}");
        // The same by way of a proxy, which is not one.
        let text = format!("[images.build]\nhttps_proxy = \"http://127.0.0.1:{port}\"\n");
        assert_eq!(ask("https://mirror.invalid/", &config(&text)).await.trouble, None);
        let text = "[images.build]\nhttps_proxy = \"http://127.0.0.1:1\"\n";
        let refused = ask("https://mirror.invalid/", &config(text)).await;
        assert_eq!(refused.trouble.as_deref(), Some("proxy 127.0.0.1: connection refused"));
        assert_eq!(skew("HTTP/1.1 200 OK\r\nDate: rubbish\r\n", Timestamp::now()), None);
    }
}

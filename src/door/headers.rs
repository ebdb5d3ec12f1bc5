//! Headers on their way through the door. Pure.

use std::net::SocketAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header, uri::Scheme};
use url::{Position, Url};

use super::upstream::{Kind, Upstream};

/// Headers that concern one connection only (RFC 9110, section 7.6.1), beside those that `Connection` names.
const HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
/// Header with which the door shows itself to JupyterLab.
pub const DOOR: HeaderName = HeaderName::from_static("x-labd-door");
/// The same of Ray.
pub(super) const X_RAY_AUTHORIZATION: HeaderName = HeaderName::from_static("x-ray-authorization");
/// JupyterLab's only cookie that passes: its pages read it.
const XSRF: &str = "_xsrf";

/// Headers with which a service is asked: the client's, less what only the door may say, and what signs the door in.
pub(super) fn request_headers(
    mut headers: HeaderMap,
    up: &Upstream,
    host: &HeaderValue,
    sign_in: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    is_websocket: bool,
) -> HeaderMap {
    let xsrf = (up.kind == Kind::Jupyter).then(|| xsrf(&headers)).flatten();
    drop_hop(&mut headers, tells_who_asks);
    drop_all(&mut headers, |name| {
        let dropped = ["x-webauth-", "x-forwarded-", "x-labd-"];
        dropped.iter().any(|prefix| name.starts_with(prefix))
            || matches!(
                name,
                "authorization"
                    | "x-ray-authorization"
                    | "cookie"
                    | "forwarded"
                    | "x-real-ip"
                    // Some servers take another method from it than the one that was judged.
                    | "x-http-method-override"
                    // The door's own server has answered it.
                    | "expect"
            )
    });
    // Services compare it with Origin, and build addresses from it.
    headers.insert(header::HOST, host.clone());
    headers.extend(xsrf.map(|value| (header::COOKIE, value)));
    for (name, value) in sign_in {
        headers.insert(name, value);
    }
    if up.kind == Kind::Ray {
        // It hides people's variables from browsers alone, which it tells by these.
        headers.insert(header::USER_AGENT, HeaderValue::from_static("Mozilla/5.0 (labd)"));
        headers.insert("sec-fetch-site", HeaderValue::from_static("same-origin"));
    }
    if is_websocket {
        headers.remove(header::CONTENT_LENGTH);
        upgrade(&mut headers);
    }
    headers
}

/// Where an answer comes from, and what the client asked for.
pub(super) struct Place<'a> {
    /// Address of the service.
    pub(super) address: SocketAddr,
    /// Scheme of the client's address.
    pub(super) scheme: &'a Scheme,
    /// Host of the client's address.
    pub(super) host: &'a str,
    /// Path of the client's address.
    pub(super) path: &'a str,
}

/// Headers with which the client is answered: the service's, less what would reach beyond its prefix.
pub(super) fn response_headers(
    mut headers: HeaderMap,
    up: &Upstream,
    place: &Place<'_>,
    is_websocket: bool,
) -> HeaderMap {
    let cookies: Vec<HeaderValue> = match up.kind {
        Kind::Jupyter => headers.get_all(header::SET_COOKIE).iter().filter_map(|v| set_xsrf(v, up)).collect(),
        _ => Vec::new(),
    };
    let to = headers.get(header::LOCATION).and_then(|v| location(v.to_str().ok()?, up, place)?.parse().ok());
    let policies: Vec<HeaderValue> =
        headers.get_all(header::CONTENT_SECURITY_POLICY).iter().filter_map(without_frame_ancestors).collect();
    drop_hop(&mut headers, |_| false);
    drop_all(&mut headers, |name| {
        name.starts_with("access-control-")
            || matches!(
                name,
                "set-cookie"
                    | "service-worker-allowed"
                    | "clear-site-data"
                    | "content-security-policy"
                    | "x-frame-options"
                    | "location"
                    | "refresh"
                    // What a browser keeps of these holds for the whole host, labd's page included.
                    | "alt-svc"
                    | "strict-transport-security"
                    // The door signs in; a browser would ask the person for a password that nobody reads.
                    | "www-authenticate"
            )
    });
    for policy in policies {
        headers.append(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.append(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("frame-ancestors 'self'"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.extend(to.map(|to| (header::LOCATION, to)));
    for cookie in cookies {
        headers.append(header::SET_COOKIE, cookie);
    }
    if is_websocket {
        upgrade(&mut headers);
    }
    headers
}

fn upgrade(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// Whether services judge by the header who asks. `Connection` cannot take it away: without it Ray takes a browser for a
/// program, and Grafana lets any page open its WebSocket.
fn tells_who_asks(name: &str) -> bool {
    matches!(name, "host" | "origin" | "referer" | "user-agent")
        || name.starts_with("sec-")
        || name.starts_with("access-control-request-")
}

/// Removes what concerns one connection only; what `Connection` names and must stay is kept.
pub(crate) fn drop_hop(headers: &mut HeaderMap, stays: fn(&str) -> bool) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse::<HeaderName>().ok())
        .filter(|name| !stays(name.as_str()))
        .collect();
    for name in named.iter().chain(&HOP) {
        headers.remove(name);
    }
}

fn drop_all(headers: &mut HeaderMap, dropped: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| dropped(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The cookie `_xsrf` alone; the first one, as JupyterLab's page reads it.
fn xsrf(headers: &HeaderMap) -> Option<HeaderValue> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok());
    let value =
        cookies.flat_map(|v| v.split(';')).find_map(|pair| pair.trim().strip_prefix(XSRF)?.strip_prefix('='))?;
    format!("{XSRF}={value}").parse().ok()
}

/// JupyterLab's `_xsrf`, for its own prefix on this host.
fn set_xsrf(cookie: &HeaderValue, up: &Upstream) -> Option<HeaderValue> {
    let mut parts = cookie.to_str().ok()?.split(';').map(str::trim);
    let pair = parts.next().filter(|pair| pair.split_once('=').is_some_and(|(name, _)| name.trim() == XSRF))?;
    let kept = parts.filter(|part| {
        let name = part.split('=').next().unwrap_or_default().trim();
        !name.eq_ignore_ascii_case("path") && !name.eq_ignore_ascii_case("domain")
    });
    let path = format!("Path={}", up.prefix);
    let all: Vec<&str> = std::iter::once(pair).chain(kept).chain([path.as_str()]).collect();
    all.join("; ").parse().ok()
}

/// Policies of one header, less what they say on frames.
fn without_frame_ancestors(value: &HeaderValue) -> Option<HeaderValue> {
    let is_other = |directive: &&str| {
        let name = directive.split_ascii_whitespace().next();
        name.is_some_and(|name| !name.eq_ignore_ascii_case("frame-ancestors"))
    };
    let policy = |policy: &str| {
        let rest: Vec<&str> = policy.split(';').map(str::trim).filter(is_other).collect();
        (!rest.is_empty()).then(|| rest.join("; "))
    };
    let all: Vec<String> = value.to_str().ok()?.split(',').filter_map(policy).collect();
    (!all.is_empty()).then(|| all.join(", ").parse().ok()).flatten()
}

/// Address of a redirect as the client must see it; none when it leads out of the service.
fn location(raw: &str, up: &Upstream, place: &Place<'_>) -> Option<String> {
    let base = Url::parse(&format!("{}://{}{}", place.scheme, place.host, place.path)).ok()?;
    let theirs = Url::parse(&format!("http://{}", place.address)).ok()?;
    let to = base.join(raw).ok()?;
    // They may build it from the Host header, and do not know of the client's scheme.
    let is_own = |of: &Url| to.host() == of.host() && (to.port() == of.port());
    if !matches!(to.scheme(), "http" | "https") || !(is_own(&base) || is_own(&theirs)) {
        return None;
    }
    let path = &to[Position::BeforePath..];
    if path.starts_with(up.prefix) {
        return Some(path.to_owned());
    }
    // A relative one that leaves the prefix leads to what is not theirs.
    let is_absolute = raw.trim_start().starts_with('/') || Url::parse(raw).is_ok();
    is_absolute.then(|| format!("{}{}", up.prefix, &path[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::tests::map;

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<String> =
            headers.iter().map(|(name, v)| format!("{name}: {}", v.to_str().expect("text"))).collect();
        lines.sort();
        lines
    }

    fn ask(kind: Kind, headers: &[(&'static str, &str)], is_websocket: bool) -> Vec<String> {
        let host = HeaderValue::from_static("lab:8600");
        let sign_in = [(header::AUTHORIZATION, HeaderValue::from_static("Bearer door"))];
        lines(&request_headers(map(headers), kind.upstream(), &host, sign_in, is_websocket))
    }

    fn answer(kind: Kind, headers: &[(&'static str, &str)]) -> Vec<String> {
        let place = Place {
            address: "127.0.0.1:9001".parse().expect("one"),
            scheme: &Scheme::HTTP,
            host: "lab:8600",
            path: "/x/y",
        };
        let mut lines = lines(&response_headers(map(headers), kind.upstream(), &place, false));
        lines.retain(|l| {
            l != "x-content-type-options: nosniff" && l != "content-security-policy: frame-ancestors 'self'"
        });
        lines
    }

    #[test]
    fn a_client_cannot_say_what_only_the_door_may() {
        let said = [
            ("host", "evil"),
            ("authorization", "Bearer mine"),
            ("x-ray-authorization", "Bearer mine"),
            ("x-webauth-user", "admin"),
            ("x-webauth-role", "admin"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("x-labd-door", "guess"),
            ("x-labd-csrf", "the page's"),
            ("x-http-method-override", "DELETE"),
            ("cookie", "session=a; ray-authentication-token=b; token=c; _xsrf=d"),
            ("proxy-authorization", "Basic x"),
            ("connection", "keep-alive, x-private, cookie"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("user-agent", "Mozilla/5.0"),
            ("accept", "*/*"),
        ];
        let heard = ["accept: */*", "authorization: Bearer door", "host: lab:8600", "user-agent: Mozilla/5.0"];
        for kind in [Kind::Grafana, Kind::Prometheus, Kind::MinioConsole] {
            assert_eq!(ask(kind, &said, false), heard);
        }
        // Ray takes everybody for a browser.
        let browser = ["sec-fetch-site: same-origin", "user-agent: Mozilla/5.0 (labd)"];
        assert_eq!(ask(Kind::Ray, &said, false), [&heard[..3], &browser].concat());
    }

    #[test]
    fn of_cookies_only_jupyters_own_passes() {
        let cookies = [("cookie", "a=b; _xsrf=2|first; x_xsrf=no"), ("cookie", "_xsrf=second; token=c")];
        assert!(ask(Kind::Jupyter, &cookies, false).contains(&"cookie: _xsrf=2|first".to_owned()));
        assert!(!ask(Kind::Jupyter, &[("cookie", "x_xsrf=1; _xsrfy=2")], false).join("\n").contains("cookie"));
    }

    #[test]
    fn who_asks_cannot_be_hidden_by_connection() {
        let said = [
            ("connection", "origin, Referer, user-agent, sec-fetch-site, host, sec-websocket-key"),
            ("origin", "http://lab:8600"),
            ("referer", "http://lab:8600/ray/"),
            ("user-agent", "Mozilla"),
            ("sec-fetch-site", "same-origin"),
            ("sec-websocket-key", "abc"),
            ("content-length", "5"),
        ];
        assert_eq!(
            ask(Kind::Grafana, &said, true),
            [
                "authorization: Bearer door",
                "connection: upgrade",
                "host: lab:8600",
                "origin: http://lab:8600",
                "referer: http://lab:8600/ray/",
                "sec-fetch-site: same-origin",
                "sec-websocket-key: abc",
                "upgrade: websocket",
                "user-agent: Mozilla",
            ]
        );
    }

    #[test]
    fn a_service_does_not_reach_beyond_its_prefix() {
        let said = [
            ("set-cookie", "ray-authentication-token=secret; Path=/"),
            ("set-cookie", "_xsrf=x; Path=/"),
            ("service-worker-allowed", "/"),
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("clear-site-data", "\"*\""),
            ("alt-svc", "h2=\":9\""),
            ("strict-transport-security", "max-age=1"),
            ("www-authenticate", "Basic"),
            ("refresh", "0; url=http://evil"),
            ("connection", "close, x-private"),
            ("x-private", "1"),
            ("transfer-encoding", "chunked"),
            ("x-frame-options", "DENY"),
            ("content-type", "text/html"),
        ];
        for kind in [Kind::Ray, Kind::Grafana, Kind::Prometheus, Kind::MinioConsole] {
            assert_eq!(answer(kind, &said), ["content-type: text/html"]);
        }
    }

    #[test]
    fn frames_are_for_this_origin() {
        let all = |headers: &[(&'static str, &str)]| {
            let place = Place {
                address: "127.0.0.1:1".parse().expect("one"),
                scheme: &Scheme::HTTP,
                host: "lab",
                path: "/grafana/",
            };
            lines(&response_headers(map(headers), Kind::Grafana.upstream(), &place, false))
        };
        let ours = ["content-security-policy: frame-ancestors 'self'", "x-content-type-options: nosniff"];
        assert_eq!(all(&[]), ours);
        assert_eq!(all(&[("content-security-policy", "frame-ancestors *"), ("x-frame-options", "DENY")]), ours);
        let said = "script-src 'self';Frame-Ancestors 'none'; img-src *, frame-ancestors a b, sandbox";
        assert_eq!(
            all(&[("content-security-policy", said), ("x-content-type-options", "other")]),
            [
                "content-security-policy: frame-ancestors 'self'",
                "content-security-policy: script-src 'self'; img-src *, sandbox",
                ours[1]
            ]
        );
    }

    #[test]
    fn jupyters_cookie_stays_under_its_prefix() {
        let said = [
            ("set-cookie", "_xsrf=2|ab; expires=Tue, 01 Jan 2030 00:00:00 GMT; Domain=lab; Path=/"),
            ("set-cookie", "username-lab=secret; HttpOnly; Path=/jupyter/"),
        ];
        let kept = ["set-cookie: _xsrf=2|ab; expires=Tue, 01 Jan 2030 00:00:00 GMT; Path=/jupyter/"];
        assert_eq!(answer(Kind::Jupyter, &said), kept);
    }

    #[test]
    fn redirects_stay_with_their_service() {
        let table = [
            (Kind::Ray, "/ray/", "/", Some("/ray/")),
            (Kind::Ray, "/ray/x", "/api/y?z=1#w", Some("/ray/api/y?z=1#w")),
            (Kind::Ray, "/ray/x", "/ray/y", Some("/ray/y")),
            (Kind::Ray, "/ray/x", "http://127.0.0.1:9001/y", Some("/ray/y")),
            (Kind::Ray, "/ray/x", "http://lab:8600/y", Some("/ray/y")),
            (Kind::Ray, "/ray/x", "https://lab:8600/y", Some("/ray/y")),
            (Kind::Ray, "/ray/x", "http://lab:8601/y", None),
            (Kind::Ray, "/ray/x", "http://evil.example/y", None),
            (Kind::Ray, "/ray/x", "//evil.example/y", None),
            (Kind::Ray, "/ray/x", "/\\evil.example/y", None),
            (Kind::Ray, "/ray/x", "javascript:alert(1)", None),
            (Kind::Ray, "/ray/x", "http://lab:8600@evil.example/", None),
            (Kind::Ray, "/ray/a/b", "c?d", Some("/ray/a/c?d")),
            (Kind::Ray, "/ray/a/b", "../c", Some("/ray/c")),
            (Kind::Ray, "/ray/a", "../minio/", None),
            (Kind::Ray, "/ray/a", "/../minio/", Some("/ray/minio/")),
            (Kind::Prometheus, "/prometheus/", "/prometheus/graph", Some("/prometheus/graph")),
            (Kind::MinioConsole, "/minio/x", "/login", Some("/minio/login")),
            (Kind::Grafana, "/grafana/", "/grafana/login", Some("/grafana/login")),
            (Kind::Grafana, "/grafana/", "http://lab:8600/grafana/login", Some("/grafana/login")),
            (Kind::Jupyter, "/jupyter/", "/jupyter/lab?", Some("/jupyter/lab?")),
        ];
        for (kind, path, raw, expected) in table {
            let place = Place {
                address: "127.0.0.1:9001".parse().expect("one"),
                scheme: &Scheme::HTTP,
                host: "lab:8600",
                path,
            };
            assert_eq!(location(raw, kind.upstream(), &place).as_deref(), expected, "{raw} from {path}");
        }
    }
}

//! What the door refuses, or answers itself, before a service hears of it. Pure.

use std::borrow::Cow;

use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, uri::PathAndQuery},
    response::{IntoResponse, Response},
};

use super::{
    Admission, console,
    target::{Refused, target, understood},
    upstream::{Kind, Upstream},
};

/// Methods that are passed on. `TRACE` would show the secret that the door adds.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SERVICE_WORKER: HeaderName = HeaderName::from_static("service-worker");
/// Ray's page opens a dialog that asks for the token, and never closes it, unless it hears that none is wanted.
const NO_LOGIN: &str = r#"{"authentication_mode":"disabled"}"#;

/// Answer that the door gives itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Own {
    /// A refusal, in one line.
    Line(StatusCode, Cow<'static, str>),
    /// A redirect within this origin.
    Moved(String),
    /// JSON.
    Json(&'static str),
    /// Success without a body.
    Done,
}

impl Own {
    pub(super) fn line(status: StatusCode, text: impl Into<Cow<'static, str>>) -> Self {
        Self::Line(status, text.into())
    }
}

impl IntoResponse for Own {
    fn into_response(self) -> Response {
        /// Time after which a client should ask again: a service that died is back in about 5 s.
        const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");
        let mut response = match self {
            Self::Line(status, text) => (status, format!("{text}\n")).into_response(),
            Self::Moved(to) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, to)]).into_response(),
            Self::Json(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
            Self::Done => StatusCode::OK.into_response(),
        };
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// Part of the name of the log of Ray's agent for environments.
const ENVIRONMENTS: &str = "runtime_env_agent";

/// Request that may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passed {
    /// Path and query to ask for.
    pub(super) target: PathAndQuery,
    /// Value of its one `Host` header.
    pub(super) host: String,
    /// Whether it wants to become a WebSocket.
    pub(super) is_websocket: bool,
}

/// Judges a request by everything but its body.
pub(super) fn check(
    up: &Upstream,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    admission: &Admission,
) -> Result<Passed, Own> {
    let refuse = |status, text: &'static str| Err(Own::line(status, text));
    let Some(host) = one_host(uri, headers) else {
        return refuse(StatusCode::BAD_REQUEST, "a request must name its host in one Host header");
    };
    if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
        return refuse(StatusCode::BAD_REQUEST, "a request must not tell its length in two ways");
    }
    if !METHODS.contains(method) {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "this method is not passed on");
    }
    let upgrades = headers.contains_key(header::UPGRADE);
    let is_websocket = upgrades && is_websocket(method, headers);
    if upgrades && !is_websocket {
        return refuse(StatusCode::BAD_REQUEST, "only WebSockets can be opened here");
    }
    let reads = matches!(*method, Method::GET | Method::HEAD) && !upgrades;
    // A page on another port of this host makes a browser ask with the cookie; it may lead here, and embed nothing.
    let told = |name| single(headers, &HeaderName::from_static(name)).unwrap_or_default();
    let is_foreign = matches!(told("sec-fetch-site"), "same-site" | "cross-site");
    if reads && is_foreign && told("sec-fetch-mode") != "navigate" {
        return refuse(StatusCode::FORBIDDEN, "refused: a page of another origin asks for this");
    }
    if !reads && !origin_is_own(headers, admission.scheme.as_str(), &host) {
        return refuse(StatusCode::FORBIDDEN, "refused: the request does not come from a page of this origin");
    }
    if headers.contains_key(SERVICE_WORKER) {
        return refuse(StatusCode::FORBIDDEN, "refused: service workers would outlive the login");
    }
    let path = target(uri.path(), up).map_err(|refused| not_passed(refused, up, uri))?;
    if let Some(own) = own_answer(up, method, &understood(path), uri.query().unwrap_or_default()) {
        return Err(own);
    }
    if !admission.admin && up.admin_only {
        return Err(Own::line(StatusCode::FORBIDDEN, format!("{} is for admins only", up.name)));
    }
    if !admission.admin && !reads {
        return refuse(StatusCode::FORBIDDEN, "a viewer may read only");
    }
    let query = match up.kind {
        Kind::MinioConsole => console::query(method, path, uri.query()),
        _ => uri.query().map(Cow::Borrowed),
    };
    let text = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    match text.parse() {
        Ok(target) => Ok(Passed { target, host, is_websocket }),
        Err(_) => refuse(StatusCode::BAD_REQUEST, "this address is not passed on"),
    }
}

fn not_passed(refused: Refused, up: &Upstream, uri: &Uri) -> Own {
    match refused {
        Refused::NoSlash => Own::Moved(uri.query().map_or(up.prefix.to_owned(), |q| format!("{}?{q}", up.prefix))),
        Refused::Elsewhere => Own::line(StatusCode::NOT_FOUND, format!("{} is not here", up.name)),
        Refused::Ambiguous => {
            let text =
                "this address is not passed on: it has dot segments, empty segments, backslashes or control characters";
            Own::line(StatusCode::BAD_REQUEST, text)
        }
    }
}

/// Answer to what must not reach a service, or need not. `path` is what the service would understand.
fn own_answer(up: &Upstream, method: &Method, path: &str, query: &str) -> Option<Own> {
    let below = |of: &str| path.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let forbidden = |text: &'static str| Some(Own::line(StatusCode::FORBIDDEN, text));
    match up.kind {
        // It answers any browser with the real token in a cookie.
        Kind::Ray if below("/api/authenticate") => forbidden("Ray's token is not given out here"),
        Kind::Ray if path == "/api/authentication_mode" && matches!(*method, Method::GET | Method::HEAD) => {
            Some(Own::Json(NO_LOGIN))
        }
        // These start a profiler in somebody's process, by a GET, and answer with pages of that process's making.
        Kind::Ray if ["/worker", "/task", "/memory_profile"].iter().any(|of| below(of)) => {
            forbidden("processes are not profiled through this page")
        }
        // It writes each job's environment there, and what a person puts into `env_vars` is theirs.
        Kind::Ray if below("/api/v0/logs") && names(query, ENVIRONMENTS) => {
            forbidden("this log has jobs' environment variables in it, and is not shown here")
        }
        // It has no button that would; and what is submitted past the front door is in no ledger.
        Kind::Ray if !matches!(*method, Method::GET | Method::HEAD) => {
            forbidden("Ray's dashboard is only looked at here: jobs are submitted at its own port")
        }
        Kind::Prometheus if below("/prometheus/debug") => forbidden("profiles of Prometheus are not shown here"),
        // The session is the door's, and everybody's who comes through it.
        Kind::MinioConsole if below("/api/v1/logout") => Some(Own::Done),
        _ => None,
    }
}

/// Whether a value of a query has this word in it.
fn names(query: &str, word: &str) -> bool {
    url::form_urlencoded::parse(query.as_bytes()).any(|(_, value)| value.to_ascii_lowercase().contains(word))
}

/// The host that a request names, if it names one, once.
fn one_host(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let host = single(headers, &header::HOST)?;
    (uri.authority().is_none() && !host.is_empty()).then(|| host.to_owned())
}

/// Text of a header that was sent once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn is_websocket(method: &Method, headers: &HeaderMap) -> bool {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    *method == Method::GET
        && single(headers, &header::UPGRADE).is_some_and(|v| v.eq_ignore_ascii_case("websocket"))
        && connection.flat_map(|v| v.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Whether a page of this very origin sent the request. Another port of this host is the same site to a browser, so that
/// cookies go along: only the origin tells it apart.
pub fn origin_is_own(headers: &HeaderMap, scheme: &str, host: &str) -> bool {
    let named = single(headers, &header::ORIGIN)
        .and_then(|origin| origin.strip_prefix(scheme)?.strip_prefix("://"))
        .is_some_and(|named| named.eq_ignore_ascii_case(host));
    let site_is_fine = !headers.contains_key(SEC_FETCH_SITE)
        || matches!(single(headers, &SEC_FETCH_SITE), Some("same-origin" | "none"));
    named && site_is_fine
}

#[cfg(test)]
mod tests {
    use axum::http::uri::Scheme;
    use tokio::sync::watch;

    use super::*;
    use crate::door::tests::map;

    fn judge(
        kind: Kind,
        method: &str,
        uri: &str,
        headers: &[(&'static str, &str)],
        admin: bool,
    ) -> Result<Passed, Own> {
        let mut headers = map(headers);
        headers.append(header::HOST, HeaderValue::from_static("lab:8600"));
        let admission = Admission { admin, scheme: Scheme::HTTP, ended: watch::channel(false).1 };
        let method: Method = method.parse().expect("a method");
        check(kind.upstream(), &method, &uri.parse().expect("an address"), &headers, &admission)
    }

    fn status(own: Own) -> u16 {
        own.into_response().status().as_u16()
    }

    const OWN: (&str, &str) = ("origin", "http://lab:8600");
    const WS: [(&str, &str); 2] = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];

    #[test]
    fn only_a_page_of_this_origin_is_its_own() {
        let own = |headers: &[(&'static str, &str)]| origin_is_own(&map(headers), "http", "lab:8600");
        for good in [
            vec![OWN],
            vec![OWN, ("sec-fetch-site", "same-origin")],
            vec![OWN, ("sec-fetch-site", "none")],
            vec![("origin", "http://LAB:8600")],
        ] {
            assert!(own(&good), "{good:?}");
        }
        for bad in [
            vec![],
            vec![("origin", "null")],
            vec![("origin", "")],
            vec![("origin", "http://lab:8601")],
            vec![("origin", "http://lab")],
            vec![("origin", "https://lab:8600")],
            vec![("origin", "http://lab:8600.evil.example")],
            vec![("origin", "http://lab:8600/")],
            vec![OWN, OWN],
            vec![OWN, ("sec-fetch-site", "same-site")],
            vec![OWN, ("sec-fetch-site", "cross-site")],
            vec![OWN, ("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
        ] {
            assert!(!own(&bad), "{bad:?}");
        }
    }

    #[test]
    fn the_log_with_everybodys_environment_variables_is_not_passed_on() {
        let asked = |query: &str| {
            judge(Kind::Ray, "GET", &format!("/ray/api/v0/logs/file?node_ip=198.18.0.9&{query}"), &[], true)
        };
        for query in
            ["filename=runtime_env_agent.log", "filename=x%2F..%2Fruntime_env%5Fagent.log.1", "glob=Runtime_Env_Agent*"]
        {
            assert_eq!(asked(query).map_err(status), Err(403), "{query}");
        }
        for query in ["filename=runtime_env_setup-01000000.log", "filename=raylet.out", "submission_id=raysubmit_1"] {
            assert!(asked(query).is_ok(), "{query}");
        }
    }

    #[test]
    fn what_changes_something_needs_an_origin() {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            assert_eq!(judge(Kind::Grafana, method, "/grafana/x", &[], true).map_err(status), Err(403), "{method}");
            assert!(judge(Kind::Grafana, method, "/grafana/x", &[OWN], true).is_ok(), "{method}");
            assert_eq!(
                judge(Kind::Ray, method, "/ray/x", &[OWN], true).map_err(status),
                Err(403),
                "{method}: to look at"
            );
        }
        assert_eq!(judge(Kind::Grafana, "GET", "/grafana/live", &WS, true).map_err(status), Err(403));
        let headers = [OWN, WS[0], WS[1]];
        assert!(judge(Kind::Grafana, "GET", "/grafana/live", &headers, true).is_ok_and(|p| p.is_websocket));
        assert!(judge(Kind::Ray, "GET", "/ray/x", &[("origin", "http://evil")], true).is_ok_and(|p| !p.is_websocket));
    }

    #[test]
    fn some_requests_are_nobodys() {
        for (method, uri, headers, expected) in [
            ("TRACE", "/ray/", vec![OWN], 405),
            ("CONNECT", "/ray/", vec![OWN], 405),
            ("BREW", "/ray/", vec![OWN], 405),
            ("GET", "http://lab:8600/ray/", vec![], 400),
            ("GET", "/ray/", vec![("host", "evil")], 400),
            ("POST", "/ray/", vec![OWN, ("transfer-encoding", "chunked"), ("content-length", "3")], 400),
            ("GET", "/ray/", vec![OWN, ("connection", "upgrade"), ("upgrade", "h2c")], 400),
            ("GET", "/ray/", vec![OWN, ("upgrade", "websocket")], 400),
            ("POST", "/ray/", vec![OWN, WS[0], WS[1]], 400),
            ("GET", "/ray/sw.js", vec![("service-worker", "script")], 403),
            ("GET", "/ray/../minio/", vec![], 400),
            ("GET", "/minio/", vec![], 404),
            ("GET", "/ray", vec![], 307),
        ] {
            let judged = judge(Kind::Ray, method, uri, &headers, true).map_err(status);
            assert_eq!(judged, Err(expected), "{method} {uri} {headers:?}");
        }
        assert_eq!(judge(Kind::Ray, "GET", "/ray?a=b", &[], false), Err(Own::Moved("/ray/?a=b".into())));
    }

    #[test]
    fn what_gives_secrets_away_is_blocked_however_it_is_written() {
        for (kind, uri) in [
            (Kind::Ray, "/ray/api/authenticate"),
            (Kind::Ray, "/ray/api/%61uthenticate"),
            (Kind::Ray, "/ray/api%2Fauthenticate/"),
            (Kind::Ray, "/ray/api/authenticate?x"),
            (Kind::Prometheus, "/prometheus/debug/pprof"),
            (Kind::Prometheus, "/prometheus/debug/pprof/heap"),
            (Kind::Prometheus, "/prometheus/%64ebug%2fpprof"),
        ] {
            for method in ["GET", "POST"] {
                assert_eq!(judge(kind, method, uri, &[OWN], true).map_err(status), Err(403), "{uri}");
            }
        }
        for admin in [true, false] {
            let judged = judge(Kind::Ray, "GET", "/ray/api/authentication_mode", &[], admin);
            assert_eq!(judged, Err(Own::Json(NO_LOGIN)));
        }
        assert_eq!(judge(Kind::MinioConsole, "POST", "/minio/api/v1/logout", &[OWN], true), Err(Own::Done));
        assert!(judge(Kind::Ray, "GET", "/ray/api/authenticates", &[], true).is_ok());
    }

    #[test]
    fn a_page_on_another_port_may_lead_here_and_embed_nothing() {
        for site in ["same-site", "cross-site"] {
            let leads = [("sec-fetch-site", site), ("sec-fetch-mode", "navigate")];
            assert!(judge(Kind::Ray, "GET", "/ray/", &leads, true).is_ok(), "{site}");
            let embeds = [("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")];
            assert_eq!(judge(Kind::Ray, "GET", "/ray/", &embeds, true).map_err(status), Err(403), "{site}");
        }
        for path in ["/ray/worker/traceback?pid=1", "/ray/task/cpu_profile", "/ray/memory_profile", "/ray/%77orker/x"] {
            assert_eq!(judge(Kind::Ray, "GET", path, &[], true).map_err(status), Err(403), "{path}");
        }
        assert!(judge(Kind::Ray, "GET", "/ray/workers", &[], true).is_ok());
    }

    #[test]
    fn a_viewer_reads_and_does_nothing_else() {
        let ws = [OWN, WS[0], WS[1]];
        for (kind, path) in [(Kind::Ray, "/ray/"), (Kind::Prometheus, "/prometheus/")] {
            assert!(judge(kind, "GET", path, &[], false).is_ok());
            assert!(judge(kind, "HEAD", path, &[], false).is_ok());
            assert_eq!(judge(kind, "POST", path, &[OWN], false).map_err(status), Err(403));
            assert_eq!(judge(kind, "GET", path, &ws, false).map_err(status), Err(403));
        }
        for (kind, path) in
            [(Kind::MinioConsole, "/minio/"), (Kind::Grafana, "/grafana/"), (Kind::Jupyter, "/jupyter/")]
        {
            assert_eq!(judge(kind, "GET", path, &[], false).map_err(status), Err(403));
        }
    }

    #[test]
    fn queries_pass_as_they_are() {
        let passed = judge(Kind::Prometheus, "GET", "/prometheus/graph?a=%2e%2e&b=//&stsx=1", &[], true);
        assert_eq!(passed.expect("passes").target, "/prometheus/graph?a=%2e%2e&b=//&stsx=1");
        let passed = judge(Kind::MinioConsole, "GET", "/minio/login?sts=secret", &[], true);
        assert_eq!(passed.expect("passes").target, "/login?cp=y&cpb=/minio/");
    }
}

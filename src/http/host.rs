//! Refusal of requests that name another host. A page elsewhere can point its own name at this machine (DNS rebinding)
//! and read what a browser here may read; the `Host` header still carries that name.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header, uri::Scheme},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use super::ApiError;

/// Name of the second origin on the page's own port, so that one forwarded port is enough. Browsers know it for this machine's
/// own without asking anybody, and take it for another site than `localhost`.
pub(super) const SECOND: &str = "jupyter.localhost";

/// Sends what names the second origin to its router, and to no other.
pub(super) async fn fork(State(second): State<Router>, request: Request, next: Next) -> Response {
    let named = request.headers().get_all(header::HOST).iter().filter_map(|host| host.to_str().ok());
    let mut named = named.chain(request.uri().authority().map(axum::http::uri::Authority::as_str));
    if named.any(is_second) {
        return TowerToHyperService::new(second).call(request).await.into_response();
    }
    next.run(request).await
}

fn is_second(host: &str) -> bool {
    plain(host) == SECOND
}

/// Lets requests through on the second origin that name it, or what the page can be called, too.
pub(super) async fn check_second(State(names): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let host = host_of(&request);
    if is_second(&host) || is_allowed(&host, &names) { next.run(request).await } else { refused(&host).into_response() }
}

/// Lets requests through that name loopback, an IP address or a configured name.
pub(super) async fn check(State(names): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let host = host_of(&request);
    if is_allowed(&host, &names) { next.run(request).await } else { refused(&host).into_response() }
}

fn host_of(request: &Request) -> String {
    request
        .uri()
        .authority()
        .map(|a| a.as_str().to_owned())
        .or_else(|| Some(request.headers().get(header::HOST)?.to_str().ok()?.to_owned()))
        .unwrap_or_default()
}

fn refused(host: &str) -> ApiError {
    let text = format!(
        "the name `{}` is not one of this lab's: open the page by its IP address, or add the name to `lab.host_names` \
         in labd.toml",
        name_of(host).escape_default()
    );
    ApiError::new(StatusCode::FORBIDDEN, text)
}

/// Name without port and last dot, in lower case.
fn plain(host: &str) -> String {
    name_of(host).trim_end_matches('.').to_ascii_lowercase()
}

/// Whether a browser takes this name for its own machine, which is where a port was forwarded to.
fn is_localhost(name: &str) -> bool {
    // Of a name alone: `evil.example/.localhost` would lead elsewhere.
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    is_name && (name == "localhost" || name.ends_with(".localhost"))
}

/// Address of the second origin for whoever reached the page under this host; none where that needs the second listener, and
/// `port` says that there is none.
pub(super) fn second_origin(scheme: &Scheme, host: &str, port: Option<u16>) -> Option<String> {
    let name = name_of(host);
    if is_localhost(&plain(host)) {
        return Some(format!("{scheme}://{SECOND}{}", &host[name.len()..]));
    }
    port.map(|port| format!("{scheme}://{name}:{port}"))
}

fn is_allowed(host: &str, names: &[String]) -> bool {
    let name = plain(host);
    // What is below the second origin is of one site with it.
    if name == SECOND || name.strip_suffix(SECOND).is_some_and(|below| below.ends_with('.')) {
        return false;
    }
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(&name);
    is_localhost(&name)
        || bare.parse::<IpAddr>().is_ok()
        || (!name.is_empty() && names.iter().any(|n| n.eq_ignore_ascii_case(&name)))
}

/// Host without the port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{
        public_router,
        testing::{Lab, ask_as, status_and_text},
    };

    #[test]
    fn names_are_told_apart() {
        let names = ["gpu.lab.example".to_owned()];
        for host in
            ["localhost", "localhost:8080", "127.0.0.1:80", "[::1]:80", "[fe80::1]", "10.1.2.3", "GPU.lab.example.:443"]
        {
            assert!(is_allowed(host, &names), "{host}");
        }
        for host in
            ["", ":80", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "evil-localhost", "[x]"]
        {
            assert!(!is_allowed(host, &names), "{host}");
        }
        assert!(!is_allowed("evil.example/.localhost", &[]) && !is_allowed("a@.localhost", &[]));
        for second in ["jupyter.localhost", "Jupyter.localhost.:80", "x.jupyter.localhost"] {
            assert!(!is_allowed(second, &names), "{second} is not the page's");
        }
    }

    #[tokio::test]
    async fn a_rebound_name_is_refused_with_a_reason() {
        let lab = Lab::new();
        for path in ["/", "/api/v1/snapshot", "/metrics", "/nothing"] {
            let answer = ask_as(public_router(lab.state.clone()), "evil.example:8080", "GET", path).await;
            let (status, text) = status_and_text(answer).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
            assert!(text.contains("evil.example") && text.contains("labd.toml"), "{text}");
        }
    }
}

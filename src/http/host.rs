//! Refusal of requests that name another host. A page elsewhere can point its own name at this machine (DNS rebinding)
//! and read what a browser here may read; the `Host` header still carries that name.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::ApiError;

/// Lets requests through that name loopback, an IP address or a configured name.
pub(super) async fn check(State(names): State<Arc<[String]>>, request: Request, next: Next) -> Response {
    let host = request
        .uri()
        .authority()
        .map(|a| a.as_str().to_owned())
        .or_else(|| Some(request.headers().get(header::HOST)?.to_str().ok()?.to_owned()))
        .unwrap_or_default();
    if is_allowed(&host, &names) {
        return next.run(request).await;
    }
    let text = format!(
        "the name `{}` is not one of this lab's: open the page by its IP address, or add the name to `lab.host_names` \
         in labd.toml",
        name_of(&host).escape_default()
    );
    ApiError::new(StatusCode::FORBIDDEN, text).into_response()
}

fn is_allowed(host: &str, names: &[String]) -> bool {
    let name = name_of(host).trim_end_matches('.').to_ascii_lowercase();
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(&name);
    name == "localhost"
        || name.ends_with(".localhost")
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

//! Files of the page, from `web/`, embedded.

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::{Mutex, PoisonError},
};

use axum::{
    extract::Path,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use rust_embed::RustEmbed;

use super::ApiError;
use crate::secret::hex;

#[derive(RustEmbed)]
#[folder = "web/"]
struct Web;

/// The page itself.
pub(super) async fn index(headers: HeaderMap) -> Response {
    file("index.html", &headers)
}

/// Page with panels of one of Ray's dashboards.
pub(super) fn panel(headers: &HeaderMap) -> Response {
    file("panel.html", headers)
}

/// File that the page needs.
pub(super) async fn get(Path(name): Path<String>, headers: HeaderMap) -> Response {
    file(&name, &headers)
}

/// Module of the page.
pub(super) async fn module(Path(name): Path<String>, headers: HeaderMap) -> Response {
    file(&format!("js/{name}"), &headers)
}

/// Library of somebody else's that the page needs.
pub(super) async fn vendored(Path(name): Path<String>, headers: HeaderMap) -> Response {
    file(&format!("vendor/{name}"), &headers)
}

fn file(name: &str, headers: &HeaderMap) -> Response {
    // In a debug build `get` reads the folder itself, and takes other ways to a file for the same.
    let Some(file) = Web::iter().find(|known| known == name).and_then(|_| Web::get(name)) else {
        let text = format!("there is no `/{}`", name.escape_default());
        return ApiError::new(StatusCode::NOT_FOUND, text).into_response();
    };
    let packs = takes_gzip(headers);
    let digest = &hex(&file.metadata.sha256_hash())[..32];
    let tag = if packs { format!("\"{digest}-gz\"") } else { format!("\"{digest}\"") };
    // Kept by the browser, asked for again each time: a new labd shows its new page at once.
    let caching = [
        (header::ETAG, tag.clone()),
        (header::CACHE_CONTROL, "no-cache".to_owned()),
        (header::VARY, "accept-encoding".to_owned()),
    ];
    let known = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(',').map(str::trim).any(|t| t == "*" || t.trim_start_matches("W/") == tag));
    if known {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    let kind = [(header::CONTENT_TYPE, content_type(name))];
    if packs {
        let body = packed(&tag, &file.data);
        return (caching, kind, [(header::CONTENT_ENCODING, "gzip")], body).into_response();
    }
    (caching, kind, file.data).into_response()
}

/// Whether whoever asks can unpack gzip.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let offers = headers.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    offers.split(',').any(|offer| {
        let (coding, weight) = offer.split_once(';').unwrap_or((offer, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
        coding.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

/// Packed file, made when it is first asked for: some 60 kB for the whole page.
fn packed(tag: &str, data: &[u8]) -> Bytes {
    static PACKED: Mutex<BTreeMap<String, Bytes>> = Mutex::new(BTreeMap::new());
    let mut all = PACKED.lock().unwrap_or_else(PoisonError::into_inner);
    all.entry(tag.to_owned())
        .or_insert_with(|| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            // A `Vec` takes every byte.
            let _ = encoder.write_all(data);
            encoder.finish().unwrap_or_default().into()
        })
        .clone()
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => "text/plain; charset=utf-8",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{
        public_router,
        testing::{Lab, ask, ask_with, status_and_text},
    };

    #[tokio::test]
    async fn every_file_has_its_type_and_a_tag_that_works() {
        let lab = Lab::new();
        for (path, kind) in [
            ("/", "text/html; charset=utf-8"),
            ("/index.html", "text/html; charset=utf-8"),
            ("/js/main.js", "text/javascript; charset=utf-8"),
            ("/js/views/job.js", "text/javascript; charset=utf-8"),
            ("/vendor/htm-preact.js", "text/javascript; charset=utf-8"),
            ("/vendor/LICENSE-uplot", "text/plain; charset=utf-8"),
            ("/style.css", "text/css; charset=utf-8"),
            ("/favicon.svg", "image/svg+xml"),
        ] {
            let answer = ask(public_router(lab.state.clone()), "GET", path).await;
            assert_eq!(answer.status(), 200, "{path}");
            assert_eq!(answer.headers()["content-type"], kind);
            assert_eq!(answer.headers()["cache-control"], "no-cache");
            assert!(
                answer.headers()["content-security-policy"].to_str().expect("text").starts_with("default-src 'self'")
            );
            let tag = answer.headers()["etag"].to_str().expect("text").to_owned();
            let again = ask_with(public_router(lab.state.clone()), path, "if-none-match", &tag).await;
            let (status, text) = status_and_text(again).await;
            assert_eq!((status, text.as_str()), (StatusCode::NOT_MODIFIED, ""));
        }
    }

    #[tokio::test]
    async fn nothing_else_is_served() {
        let lab = Lab::new();
        for path in [
            "/Cargo.toml",
            "/..%2fCargo.toml",
            "/js/../index.html",
            "/js/%2e%2e/style.css",
            "/js/nothing.js",
            "/%2e%2e/Cargo.toml",
            "/web/index.html",
            "/favicon.ico",
        ] {
            assert_eq!(ask(public_router(lab.state.clone()), "GET", path).await.status(), 404, "{path}");
        }
    }

    #[tokio::test]
    async fn the_page_is_small_where_the_browser_unpacks() {
        let lab = Lab::new();
        let mut sum = 0;
        // Charts are loaded when the first one is drawn.
        for name in Web::iter().filter(|name| content_type(name) != "text/plain; charset=utf-8") {
            let path = if name == "index.html" { "/".to_owned() } else { format!("/{name}") };
            let router = public_router(lab.state.clone());
            let answer = ask_with(router, &path, "accept-encoding", "br, gzip;q=0.8").await;
            assert_eq!(
                (answer.status(), &answer.headers()["content-encoding"]),
                (StatusCode::OK, &"gzip".parse().expect("a value"))
            );
            sum += axum::body::to_bytes(answer.into_body(), usize::MAX).await.expect("a body").len();
        }
        assert!(sum < 100_000, "{sum} bytes");
        let answer = ask_with(public_router(lab.state.clone()), "/", "accept-encoding", "gzip;q=0").await;
        assert_eq!(answer.headers().get("content-encoding"), None);
    }

    #[test]
    fn every_module_is_asked_for_at_once() {
        let text = |name: &str| String::from_utf8_lossy(&Web::get(name).expect("a page").data).into_owned();
        let (page, panel) = (text("index.html"), text("panel.html"));
        for name in Web::iter().filter(|name| name.ends_with(".js") && name != "vendor/uplot.js") {
            // The page with one panel has a module of its own.
            let asking = if name == "js/panel.js" { &panel } else { &page };
            assert!(asking.contains(&format!("\"/{name}\"")), "nobody asks for `{name}`");
        }
    }

    #[test]
    fn the_page_asks_nobody_else_and_has_nothing_inline() {
        for name in Web::iter().filter(|name| !name.starts_with("vendor/")) {
            let file = Web::get(&name).expect("it was just named");
            let text = String::from_utf8_lossy(&file.data).replace("http://www.w3.org/2000/svg", "");
            for forbidden in ["http://", "https://", "innerHTML", "style=\"", "onclick", "eval("] {
                assert!(!text.contains(forbidden), "`{name}` contains `{forbidden}`");
            }
        }
    }
}

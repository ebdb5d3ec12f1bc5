//! Files of the page, from `web/`, embedded.

use axum::{
    extract::Path,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
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

/// File that the page needs.
pub(super) async fn get(Path(name): Path<String>, headers: HeaderMap) -> Response {
    file(&name, &headers)
}

fn file(name: &str, headers: &HeaderMap) -> Response {
    let Some(file) = Web::get(name) else {
        let text = format!("there is no `/{}`", name.escape_default());
        return ApiError::new(StatusCode::NOT_FOUND, text).into_response();
    };
    let tag = format!("\"{}\"", &hex(&file.metadata.sha256_hash())[..32]);
    // Kept by the browser, asked for again each time: a new labd shows its new page at once.
    let caching = [(header::ETAG, tag.clone()), (header::CACHE_CONTROL, "no-cache".to_owned())];
    let known = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(',').map(str::trim).any(|t| t == "*" || t.trim_start_matches("W/") == tag));
    if known {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    (caching, [(header::CONTENT_TYPE, content_type(name))], file.data).into_response()
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => "application/octet-stream",
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
            ("/app.js", "text/javascript; charset=utf-8"),
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
        for path in ["/Cargo.toml", "/..%2fCargo.toml", "/%2e%2e/Cargo.toml", "/web/index.html", "/favicon.ico"] {
            assert_eq!(ask(public_router(lab.state.clone()), "GET", path).await.status(), 404, "{path}");
        }
    }

    #[test]
    fn the_page_asks_nobody_else_and_has_nothing_inline() {
        for name in Web::iter() {
            let file = Web::get(&name).expect("it was just named");
            let text = String::from_utf8_lossy(&file.data).replace("http://www.w3.org/2000/svg", "");
            for forbidden in ["http://", "https://", "innerHTML", "style=\"", "onclick", "eval("] {
                assert!(!text.contains(forbidden), "`{name}` contains `{forbidden}`");
            }
        }
    }
}

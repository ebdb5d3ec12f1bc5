//! MinIO's console: the door logs in, and keeps the session.

use std::{borrow::Cow, net::SocketAddr, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header},
};
use serde_json::json;
use tokio::sync::Mutex;
use url::form_urlencoded;

use super::{
    guard::Own,
    proxy::{self, Patience},
};
use crate::{minio::Keys, secret::Secret};

/// Base of the page: the console writes it into its HTML when it is asked so, in place of a setting that would switch off
/// its own check of WebSockets' origins.
const BASE: &str = "cp=y&cpb=/minio/";

/// Longest wait for a login: others wait behind it.
const LOGIN: Duration = Duration::from_secs(10);

/// Query to ask the console with. `sts*` would log in as somebody else; the base is the door's to choose.
pub(super) fn query<'a>(method: &Method, path: &str, query: Option<&'a str>) -> Option<Cow<'a, str>> {
    let is_kept = |pair: &&str| {
        let name = form_urlencoded::parse(pair.as_bytes()).next().map(|(name, _)| name.to_ascii_lowercase());
        !name.is_some_and(|name| name.starts_with("sts") || name == "cp" || name == "cpb")
    };
    let mut pairs: Vec<&str> = query.unwrap_or_default().split('&').filter(is_kept).collect();
    // Every other path is a file, which ignores a query, or the page.
    let is_page =
        matches!(*method, Method::GET | Method::HEAD) && !path.starts_with("/api/") && !path.starts_with("/ws/");
    if is_page {
        pairs.retain(|pair| !pair.is_empty());
        pairs.push(BASE);
    }
    (query.is_some() || is_page).then(|| Cow::Owned(pairs.join("&")))
}

/// Whether an answer may say that the session has ended. The console says either; what the jobs' user may not do it refuses in the
/// same way, so its session is asked for then.
pub(super) fn is_over(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Session with the console, one for everybody who comes through the door.
pub(super) struct Console {
    keys: Keys,
    /// Held while somebody logs in: one login is enough for all that wait.
    token: Mutex<Option<Secret>>,
}

impl Console {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys, token: Mutex::new(None) }
    }

    /// Token of a session that was good when it was last used.
    pub(super) async fn token(&self, address: SocketAddr, patience: Patience) -> Result<Secret, Own> {
        self.renewed(None, address, patience).await
    }

    /// Token of a session that is good now, for a request that cannot be sent twice.
    pub(super) async fn sure_token(&self, address: SocketAddr, patience: Patience) -> Result<Secret, Own> {
        let token = self.token(address, patience).await?;
        let question = Request::get("/api/v1/session").header(header::HOST, address.to_string());
        let question = question.header(header::COOKIE, cookie(&token)?).body(Body::empty()).map_err(|_| unusable())?;
        match proxy::send(address, question, patience.at_most(LOGIN)).await {
            Ok(answer) if is_over(answer.status()) => self.renewed(Some(&token), address, patience).await,
            // What else is wrong, the request itself will hear.
            _ => Ok(token),
        }
    }

    /// Token of another session than `stale`.
    pub(super) async fn renewed(
        &self,
        stale: Option<&Secret>,
        address: SocketAddr,
        patience: Patience,
    ) -> Result<Secret, Own> {
        let mut token = self.token.lock().await;
        if let Some(token) = &*token
            && Some(token) != stale
        {
            return Ok(token.clone());
        }
        *token = None;
        let fresh = self.log_in(address, patience).await?;
        Ok(token.insert(fresh).clone())
    }

    async fn log_in(&self, address: SocketAddr, patience: Patience) -> Result<Secret, Own> {
        let keys = json!({ "accessKey": self.keys.access.expose(), "secretKey": self.keys.secret.expose() });
        let request = Request::post("/api/v1/login")
            .header(header::HOST, address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(keys.to_string()))
            .map_err(|_| unusable())?;
        let answer = proxy::send(address, request, patience.at_most(LOGIN)).await;
        let answer = answer.map_err(|fault| fault.told("MinIO's console"))?;
        token_of(answer.headers()).filter(|_| answer.status().is_success()).ok_or_else(|| {
            let text = format!("MinIO's console refuses labd's own login ({})", answer.status());
            Own::line(StatusCode::BAD_GATEWAY, text)
        })
    }
}

/// Header that shows the session.
pub(super) fn cookie(token: &Secret) -> Result<HeaderValue, Own> {
    super::sensitive(&format!("token={}", token.expose())).ok_or_else(unusable)
}

fn unusable() -> Own {
    Own::line(StatusCode::BAD_GATEWAY, "MinIO's console gave a session that cannot be used")
}

fn token_of(headers: &HeaderMap) -> Option<Secret> {
    let mut cookies = headers.get_all(header::SET_COOKIE).iter().filter_map(|v| v.to_str().ok());
    let value = cookies.find_map(|v| v.split(';').next()?.trim().strip_prefix("token="))?;
    (!value.is_empty()).then(|| Secret::new(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_its_base_and_nobody_elses_login() {
        let table = [
            ("GET", "/", None, Some(BASE)),
            ("GET", "/login", Some("sts=a&sts_a=b&STS_s=c&%73ts=d"), Some(BASE)),
            ("GET", "/browser/b", Some("x=1&cp=y&cpb=//evil/&y=%26"), Some("x=1&y=%26&cp=y&cpb=/minio/")),
            ("GET", "/api/v1/session", None, None),
            ("GET", "/api/v1/buckets/b/objects", Some("prefix=a%2Fb&cpb=x"), Some("prefix=a%2Fb")),
            ("POST", "/api/v1/login", Some("sts=a&b"), Some("b")),
            ("GET", "/ws/watch/b", Some("a="), Some("a=")),
            ("HEAD", "/x", Some(""), Some(BASE)),
        ];
        for (method, path, given, expected) in table {
            let method: Method = method.parse().expect("a method");
            assert_eq!(query(&method, path, given).as_deref(), expected, "{method} {path} {given:?}");
        }
    }

    #[test]
    fn the_token_is_the_cookie_of_that_name() {
        let mut headers = HeaderMap::new();
        headers.append(header::SET_COOKIE, HeaderValue::from_static("idp-refresh-token=no; Path=/"));
        assert_eq!(token_of(&headers), None);
        headers.append(header::SET_COOKIE, HeaderValue::from_static("token=; Path=/"));
        assert_eq!(token_of(&headers), None);
        headers.clear();
        headers.append(header::SET_COOKIE, HeaderValue::from_static("token=ab==; Path=/; HttpOnly"));
        assert_eq!(token_of(&headers), Some(Secret::new("ab==")));
        assert!(!format!("{:?}", cookie(&Secret::new("ab==")).expect("a value")).contains("ab"));
    }
}

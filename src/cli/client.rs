//! Client of the daemon: HTTP over its Unix socket.

use std::{io, path::Path, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use super::{
    args::{DEFAULT_SOCKET, Global},
    exit::{Exit, Failure},
};

/// Longest wait for something from the daemon.
const ANSWER: Duration = Duration::from_secs(30);

/// Client of the daemon.
#[derive(Debug, Clone)]
pub(super) struct Client<'a> {
    global: &'a Global,
}

impl<'a> Client<'a> {
    pub(super) const fn new(global: &'a Global) -> Self {
        Self { global }
    }

    /// Whether somebody answers.
    pub(super) async fn answers(&self) -> Result<bool, Failure> {
        match self.send(Method::GET, "/healthz").await {
            Ok(_) => Ok(true),
            Err(f) if f.exit == Exit::NotRunning => Ok(false),
            Err(f) => Err(f),
        }
    }

    pub(super) async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let bytes = self.bytes(Method::GET, path).await?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Failure::new(Exit::Failure, format!("the daemon is of another version, restart it (its answer: {e})"))
        })
    }

    /// Sends a command; returns the daemon's one line.
    pub(super) async fn command(&self, path: &str) -> Result<String, Failure> {
        let bytes = self.bytes(Method::POST, path).await?;
        let answer: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        Ok(answer["message"].as_str().unwrap_or("done").to_owned())
    }

    pub(super) async fn bytes(&self, method: Method, path: &str) -> Result<Bytes, Failure> {
        self.whole(method, path, Bytes::new()).await
    }

    async fn whole(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Failure> {
        let work = async {
            let answer = self.send_with(method, path, body).await?;
            let bytes = answer.into_body().collect().await.map_err(|_| broken_off())?;
            Ok(bytes.to_bytes())
        };
        tokio::time::timeout(ANSWER, work).await.map_err(|_| {
            Failure::new(Exit::Timeout, format!("the daemon did not answer within {} s", ANSWER.as_secs()))
        })?
    }

    /// Sends a request with a body of JSON, unless that is null; returns the answer.
    pub(super) async fn send_json(&self, method: Method, path: &str, body: &Value) -> Result<Value, Failure> {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let bytes = self.whole(method, path, body).await?;
        Ok(serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// Sends a request whose answer may go on forever.
    pub(super) async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>, Failure> {
        self.send_with(method, path, Bytes::new()).await
    }

    async fn send_with(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let stream =
            UnixStream::connect(&self.global.socket).await.map_err(|e| unreachable(&self.global.socket, &e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| broken_off())?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "labd")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| Failure::new(Exit::Usage, e.to_string()))?;
        let answer = sender.send_request(request).await.map_err(|_| broken_off())?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = answer.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let line = body["error"].as_str().map_or_else(|| format!("the daemon answers with {status}"), str::to_owned);
        let exit = match status {
            StatusCode::NOT_FOUND => Exit::NoService,
            StatusCode::UNPROCESSABLE_ENTITY => Exit::Config,
            _ => Exit::Failure,
        };
        Err(Failure::new(exit, line))
    }
}

fn broken_off() -> Failure {
    Failure::new(Exit::NotRunning, "the daemon ended while it was asked; `labd up` starts it")
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::PermissionDenied {
        Failure::new(Exit::NoPermission, format!("you may not use {}; run it with sudo", socket.display()))
    } else {
        let fix = if installed(socket) { "sudo systemctl start labd" } else { "labd up" };
        Failure::new(
            Exit::NotRunning,
            format!("not running (nobody answers at {}); start it with `{fix}`", socket.display()),
        )
    }
}

/// Whether systemd is who starts the daemon on this socket.
pub(super) fn installed(socket: &Path) -> bool {
    socket == Path::new(DEFAULT_SOCKET)
        && Path::new("/run/systemd/system").is_dir()
        && ["/etc/systemd/system/labd.service", "/usr/lib/systemd/system/labd.service"]
            .iter()
            .any(|p| Path::new(p).exists())
}

/// Server-sent events from an answer's body.
pub(super) struct Events {
    body: Incoming,
    parser: Parser,
}

impl Events {
    pub(super) fn new(answer: Response<Incoming>) -> Self {
        Self { body: answer.into_body(), parser: Parser::default() }
    }

    /// Next event as (name, data); `None` at the end.
    pub(super) async fn next(&mut self) -> Option<(String, String)> {
        loop {
            if let Some(event) = self.parser.next() {
                return Some(event);
            }
            let frame = self.body.frame().await?.ok()?;
            if let Some(data) = frame.data_ref() {
                self.parser.feed(data);
            }
        }
    }
}

/// Parser that takes pieces of a stream apart. Pure.
#[derive(Default)]
struct Parser(Vec<u8>);

impl Parser {
    fn feed(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    fn next(&mut self) -> Option<(String, String)> {
        loop {
            let end = self.0.windows(2).position(|w| w == b"\n\n")?;
            let block: Vec<u8> = self.0.drain(..end + 2).collect();
            let (mut name, mut data) = (String::new(), Vec::new());
            for line in String::from_utf8_lossy(&block).lines() {
                match line.split_once(':') {
                    Some(("event", value)) => value.trim_start().clone_into(&mut name),
                    Some(("data", value)) => data.push(value.strip_prefix(' ').unwrap_or(value).to_owned()),
                    _ => {}
                }
            }
            // A comment alone is a sign of life.
            if !name.is_empty() || !data.is_empty() {
                return Some((name, data.join("\n")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_from_pieces() {
        let mut parser = Parser::default();
        parser.feed(b": hello\n\nevent: snap");
        assert_eq!(parser.next(), None);
        parser.feed(b"shot\nid: 7\ndata: {\"a\":\ndata: 1}\n\n");
        assert_eq!(parser.next(), Some(("snapshot".into(), "{\"a\":\n1}".into())));
        assert_eq!(parser.next(), None);
    }

    #[test]
    fn nobody_there_says_how_to_start_it() {
        let gone = io::Error::from(io::ErrorKind::NotFound);
        let failure = unreachable(Path::new("/tmp/x.sock"), &gone);
        assert_eq!(failure.exit, Exit::NotRunning);
        assert_eq!(failure.line, "not running (nobody answers at /tmp/x.sock); start it with `labd up`");
        let refused = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(unreachable(Path::new("/tmp/x.sock"), &refused).exit, Exit::NoPermission);
    }
}

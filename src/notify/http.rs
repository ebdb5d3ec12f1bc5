//! HTTP to a target: one connection for one request, over TLS where the address says so, through a proxy where `labd.toml`
//! names one. No error names an address.

use std::{io, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::Full;
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, RootCertStore, pki_types::ServerName},
};
use url::Url;

use super::{send::Refused, shape::Post};
use crate::config::notify::{bare, is_this_machine};

/// Largest answer of a proxy before the connection through it.
const PROXY_SAYS: usize = 8 << 10;

/// Connection, over TLS or not.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Sends a request. `roots` makes what is trusted, and is called where TLS is needed.
pub(super) async fn send(
    post: Post,
    proxy: Option<&str>,
    roots: impl Future<Output = Result<RootCertStore, Refused>>,
) -> Result<(), Refused> {
    let url = &post.url;
    let host = url.host_str().ok_or_else(|| Refused::new("its address names no host"))?.to_owned();
    let tls = url.scheme() == "https";
    let at_port = url.port_or_known_default().unwrap_or(if tls { 443 } else { 80 });
    let authority = match url.port() {
        Some(other) => format!("{host}:{other}"),
        None => host.clone(),
    };
    let proxy = proxy.filter(|_| !is_this_machine(&host));
    let mut target = url[url::Position::BeforePath..url::Position::AfterQuery].to_owned();
    let mut by_proxy = None;
    let stream = match proxy {
        None => connect(bare(&host), at_port).await?,
        Some(proxy) => {
            let proxy = Url::parse(proxy).ok().filter(|p| p.scheme() == "http" && p.has_host());
            let proxy =
                proxy.ok_or_else(|| Refused::new("the proxy in `images.build` must be an `http://` address"))?;
            let at = bare(proxy.host_str().unwrap_or_default());
            let stream = connect(at, proxy.port_or_known_default().unwrap_or(3128)).await;
            let mut stream = stream.map_err(|e| Refused::new(format!("of the proxy: {}", e.why)))?;
            let login = login_of(&proxy);
            if tls {
                tunnel(&mut stream, &format!("{host}:{at_port}"), login.as_deref()).await?;
            } else {
                target = format!("http://{authority}{target}");
                by_proxy = login;
            }
            stream
        }
    };
    let stream: Box<dyn Stream> =
        if tls { Box::new(secure(stream, bare(&host).to_owned(), roots.await?).await?) } else { Box::new(stream) };
    let mut request = Request::builder()
        .method(post.method.clone())
        .uri(target)
        .header(header::HOST, authority)
        .header(header::USER_AGENT, concat!("labd/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close");
    if let Some(login) = by_proxy {
        request = request.header(header::PROXY_AUTHORIZATION, login);
    }
    if let Some(login) = login_of(url) {
        request = request.header(header::AUTHORIZATION, login);
    }
    for (name, value) in post.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(post.body)).map_err(|_| Refused::new("its address is no valid one"))?;
    let broken = |_| Refused::new("the connection broke off");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let answer = async { sender.send_request(request).await.map_err(broken) };
    tokio::pin!(answer);
    // Driven here, and not by a task of its own: what is given up is closed.
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let after = answer.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
    Err(Refused { why: refusal(status), after: after.map(Duration::from_secs) })
}

/// Refusal in one line, with what would be right.
fn refusal(status: StatusCode) -> String {
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ": are its address and its token still right?",
        StatusCode::NOT_FOUND | StatusCode::GONE => ": is its address still right?",
        StatusCode::TOO_MANY_REQUESTS => ": too much is sent to it",
        _ if status.is_redirection() => ": redirections are not followed, name the address that it leads to",
        _ => "",
    };
    format!("it answers {}{hint}", status.as_u16())
}

/// Login that an address carries, as a header has it.
fn login_of(url: &Url) -> Option<String> {
    let decoded = |text: &str| {
        // As a form would have it, but for `+`, which stands for itself here.
        let text = format!("x={}", text.replace('+', "%2B"));
        url::form_urlencoded::parse(text.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
    };
    let (user, password) = (decoded(url.username()), decoded(url.password().unwrap_or_default()));
    (!user.is_empty() || !password.is_empty())
        .then(|| format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, Refused> {
    TcpStream::connect((host, port)).await.map_err(|e| Refused::new(unreachable(&e)))
}

/// Reason why nobody is reached, without saying where.
pub(super) fn unreachable(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "the connection is refused",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "its host is not reachable",
        io::ErrorKind::TimedOut => "its host does not answer",
        _ if error.to_string().contains("lookup address") => "its host name cannot be resolved",
        _ => "it cannot be connected to",
    }
}

/// Asks a proxy for a connection to a host.
async fn tunnel(stream: &mut TcpStream, to: &str, login: Option<&str>) -> Result<(), Refused> {
    let login = login.map(|login| format!("Proxy-Authorization: {login}\r\n")).unwrap_or_default();
    let ask = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{login}\r\n");
    let broken = |_| Refused::new("the proxy broke off");
    stream.write_all(ask.as_bytes()).await.map_err(broken)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // Byte by byte: what comes behind the head is the target's.
        head.push(stream.read_u8().await.map_err(broken)?);
        if head.len() > PROXY_SAYS {
            return Err(Refused::new("the proxy does not speak HTTP"));
        }
    }
    let head = String::from_utf8_lossy(&head);
    match head.split_whitespace().nth(1).and_then(|status| status.parse::<u16>().ok()) {
        Some(200..=299) => Ok(()),
        Some(status) => Err(Refused::new(format!("the proxy answers {status}"))),
        None => Err(Refused::new("the proxy does not speak HTTP")),
    }
}

async fn secure(
    stream: TcpStream,
    host: String,
    roots: RootCertStore,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Refused> {
    let name = ServerName::try_from(host)
        .map_err(|_| Refused::new("its host has no name that a certificate could be for: use one in its address"))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| Refused::new("TLS cannot be set up"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let secured = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    secured.map_err(|e| Refused::new(untrusted(&e)))
}

/// Reason why there is no TLS, without saying with whom.
pub(super) fn untrusted(error: &io::Error) -> &'static str {
    use rustls::{CertificateError as C, Error as E};
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<E>());
    match inner {
        Some(E::InvalidCertificate(C::UnknownIssuer)) => {
            "its certificate is by nobody whom this machine trusts: name the CA's certificate in `ca_file`"
        }
        Some(E::InvalidCertificate(C::Expired | C::ExpiredContext { .. })) => {
            "its certificate has expired: renew it, if this machine's clock is right"
        }
        Some(E::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. })) => {
            "its certificate is not valid yet: is this machine's clock right?"
        }
        Some(E::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. })) => {
            "its certificate is for another name: use that one in its address"
        }
        Some(E::InvalidCertificate(_)) => "its certificate is not valid",
        Some(_) => "it does not speak TLS as labd does (1.2 or 1.3)",
        None => "the connection broke off while TLS was set up",
    }
}

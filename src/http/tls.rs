//! TLS of the page's listeners: how a connection begins, and what a request is told of it.
//!
//! A browser that speaks plain HTTP to a port with TLS is led to `https://`, and told nothing else. There is no HSTS: a host has
//! one for all its ports, and those of the lab's services speak no TLS.

use std::{
    borrow::Cow,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Router,
    extract::{FromRequestParts, Request},
    http::{Extensions, HeaderValue, Method, StatusCode, header, request::Parts, uri::Scheme},
    middleware,
    response::{IntoResponse as _, Response},
};
use futures_util::FutureExt as _;
use hyper_util::service::TowerToHyperService;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{ApiError, host, serve::Greeted};
use crate::tls::{Served, Speaks};

/// First byte of a client that speaks TLS: a record with a handshake. No method of HTTP begins with it.
const HANDSHAKE: u8 = 0x16;

/// Whether a request came over labd's own TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OverTls(pub(super) bool);

impl OverTls {
    /// Whether this request did.
    pub(super) fn of<B>(request: &axum::http::Request<B>) -> Self {
        Self::told(request.extensions())
    }

    fn told(extensions: &Extensions) -> Self {
        extensions.get().copied().unwrap_or(Self(false))
    }

    /// Name of a cookie. Over TLS it is one that browsers take from a page with TLS alone, and from the very host: whoever listens
    /// without TLS on another port cannot put one of their own in its place. With a name of its own, no old one is in the way
    /// when TLS is switched off again.
    pub(super) fn cookie(self, name: &str) -> Cow<'_, str> {
        if self.0 { format!("__Host-{name}").into() } else { name.into() }
    }

    /// Scheme by which it was asked for, unless a proxy stands before this.
    pub(super) fn scheme(self) -> Scheme {
        if self.0 { Scheme::HTTPS } else { Scheme::HTTP }
    }
}

impl<S: Sync> FromRequestParts<S> for OverTls {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::told(&parts.extensions))
    }
}

/// Listener's way to whoever it is that connects.
#[derive(Clone)]
pub struct Secured {
    served: watch::Receiver<Arc<Served>>,
    router: TowerToHyperService<Router>,
    to_https: TowerToHyperService<Router>,
    scraped: Option<Scraped>,
}

/// Prometheus, where it reaches labd by the page's own listener: it is answered on the lab's network, without TLS.
#[derive(Clone)]
pub struct Scraped {
    /// The host's address in the lab's network.
    pub address: IpAddr,
    /// Prometheus' address there.
    pub peer: IpAddr,
    /// What it is answered by.
    pub router: Router,
}

impl Secured {
    /// Answers by `router`, over what the present certificate allows; by `to_https` who speaks no TLS where that is asked for.
    pub fn new(
        served: watch::Receiver<Arc<Served>>,
        router: Router,
        to_https: Router,
        scraped: Option<Scraped>,
    ) -> Self {
        let (router, to_https) = (TowerToHyperService::new(router), TowerToHyperService::new(to_https));
        Self { served, router, to_https, scraped }
    }

    pub(super) async fn greet(self, stream: TcpStream, peer: SocketAddr) -> Option<Greeted<Stream>> {
        let plainly = |stream, service, ends| {
            Some(Greeted { stream: Stream::Plain(stream), service, over: OverTls(false), ends })
        };
        if let Some(Scraped { address, peer: known, router }) = self.scraped
            && peer.ip().to_canonical() == known
            && stream.local_addr().is_ok_and(|local| local.ip().to_canonical() == address)
        {
            return plainly(stream, TowerToHyperService::new(router), None);
        }
        let speaks = self.served.borrow().speaks.clone();
        let config = match speaks {
            Speaks::Plain => return plainly(stream, self.router, Some(secret_at_last(self.served).boxed())),
            Speaks::Nothing => return None,
            Speaks::Tls(config) => config,
        };
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(1) if first[0] == HANDSHAKE => {}
            Ok(1) => return plainly(stream, self.to_https, None),
            _ => return None,
        }
        // Apart, so that connections without TLS are no larger for it.
        let stream = Box::pin(TlsAcceptor::from(config).accept(stream)).await.ok()?;
        Some(Greeted { stream: Stream::Tls(Box::new(stream)), service: self.router, over: OverTls(true), ends: None })
    }
}

/// Moment at which TLS is switched on: whoever reads along on an open connection goes on reading until it ends.
async fn secret_at_last(mut served: watch::Receiver<Arc<Served>>) {
    if served.wait_for(|served| !matches!(served.speaks, Speaks::Plain)).await.is_err() {
        // labd ends, which ends connections in its own way.
        std::future::pending::<()>().await;
    }
}

/// Router for whoever speaks plain HTTP to a port with TLS, under a name of the page or of its second origin.
pub fn to_https_router(host_names: Arc<[String]>) -> Router {
    Router::new()
        .fallback(to_https)
        .layer(middleware::map_response(super::headers))
        .layer(middleware::from_fn_with_state(host_names, host::check_second))
}

/// The same address with TLS. Only for now: TLS may be switched off again, and browsers forget no lasting redirect.
async fn to_https(request: Request) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    // The one that was looked at.
    let named = request.headers().get(header::HOST).filter(|_| request.uri().authority().is_none());
    let host = named.and_then(|host| host.to_str().ok());
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let to = host.and_then(|host| HeaderValue::from_str(&format!("https://{host}{path}")).ok());
    match to {
        Some(to) if reads && !request.headers().contains_key(header::UPGRADE) => {
            let told = [(header::LOCATION, to), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
            (StatusCode::TEMPORARY_REDIRECT, told, "this port speaks TLS: use https://\n").into_response()
        }
        _ => ApiError::new(StatusCode::BAD_REQUEST, "this port speaks TLS: use https://").into_response(),
    }
}

/// Stream of the page: with or without TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Calls the same function of whichever stream it is.
macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Plain($inner) => $call,
            Stream::Tls($inner) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, inner => Pin::new(inner).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => Pin::new(inner).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, inner => Pin::new(inner).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(inner) => inner.is_write_vectored(),
            Self::Tls(inner) => inner.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::{
        extract::ws::WebSocketUpgrade,
        routing::{any, get},
    };
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpSocket},
    };
    use tokio_rustls::{
        TlsConnector, client,
        rustls::{
            ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
            crypto::ring,
            pki_types::ServerName,
            version::{TLS12, TLS13},
        },
    };
    use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

    use super::*;
    use crate::{
        accounts::{Role, Way},
        config::tls::Certificate,
        door::{Door, SignIns, Upstreams},
        http::{host::SECOND, public_router, second_router, serve_secured, testing::Lab},
        time::Timestamp,
        tls::{make, names, server},
    };

    fn certificate() -> Certificate {
        let text = make(&names([127, 0, 0, 1].into(), &[]), Timestamp::now()).expect("made");
        let certificate = Certificate::parse(text.as_bytes(), text.as_bytes()).expect("right");
        assert!(certificate.covers(SECOND), "a certificate of labd's own is for the second origin as well");
        certificate
    }

    fn speaking(certificate: &Certificate) -> Arc<Served> {
        let speaks = Speaks::Tls(Arc::new(server(certificate).expect("it fits")));
        Arc::new(Served { speaks, ..Served::default() })
    }

    struct Page {
        lab: Lab,
        certificate: Certificate,
        served: watch::Sender<Arc<Served>>,
        address: SocketAddr,
    }

    /// The page, over TLS.
    async fn page(lab: Lab) -> Page {
        let certificate = certificate();
        let (served, watched) = watch::channel(speaking(&certificate));
        let secured = Secured::new(watched, public_router(lab.state.clone()), to_https_router(Arc::new([])), None);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(serve_secured(listener, secured, lab.state.shutdown.clone()));
        Page { lab, certificate, served, address }
    }

    impl Page {
        async fn plainly(&self) -> TcpStream {
            TcpStream::connect(self.address).await.expect("it listens")
        }

        /// Connection that trusts this certificate alone.
        async fn trusting(
            &self,
            certificate: &Certificate,
            versions: &[&'static SupportedProtocolVersion],
            speaks: &[&str],
        ) -> io::Result<client::TlsStream<TcpStream>> {
            let mut roots = RootCertStore::empty();
            roots.add(certificate.certified.cert[0].clone()).expect("a certificate");
            let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_protocol_versions(versions)
                .expect("versions")
                .with_root_certificates(roots)
                .with_no_client_auth();
            config.alpn_protocols = speaks.iter().map(|word| word.as_bytes().to_vec()).collect();
            let name = ServerName::try_from("localhost").expect("a name");
            TlsConnector::from(Arc::new(config)).connect(name, self.plainly().await).await
        }

        async fn secretly(&self) -> client::TlsStream<TcpStream> {
            self.trusting(&self.certificate, &[&TLS12, &TLS13], &[]).await.expect("they agree")
        }

        /// Answer to a request over TLS.
        async fn asked(&self, method: &str, path: &str, lines: &[(&str, &str)], body: &str) -> String {
            let lines: Vec<String> = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let lines = lines.concat();
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost:8600\r\nConnection: close\r\nContent-Length: {}\r\n{lines}\r\n{body}",
                body.len()
            );
            said(self.secretly().await, &request).await
        }
    }

    async fn said(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = Vec::new();
        // How the connection ends is not asked for.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: localhost:8600\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn the_page_is_there_over_tls_1_2_and_1_3_and_speaks_http_1() {
        let page = page(Lab::new()).await;
        for (version, number) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
            let stream = page.trusting(&page.certificate, &[version], &["h2", "http/1.1"]).await.expect("they agree");
            let session = stream.get_ref().1;
            assert_eq!((session.protocol_version(), session.alpn_protocol()), (Some(number), Some(&b"http/1.1"[..])));
            let answer = said(stream, HEALTH).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok\n"), "{answer}");
            assert!(!answer.to_lowercase().contains("strict-transport-security"), "{answer}");
        }
        assert!(page.trusting(&page.certificate, &[&TLS13], &["h2"]).await.is_err(), "nothing else is spoken");
        assert!(page.trusting(&certificate(), &[&TLS13], &[]).await.is_err(), "who does not trust it leaves");
        assert!(page.asked("GET", "/healthz", &[], "").await.starts_with("HTTP/1.1 200"), "and is no harm");
    }

    #[tokio::test]
    async fn plain_http_is_led_to_https_under_the_pages_names() {
        let page = page(Lab::new()).await;
        for (line, host, status, says) in [
            ("GET /?a=b", "localhost:8600", 307, "location: https://localhost:8600/?a=b\r\n"),
            ("HEAD /x", "192.0.2.7:8600", 307, "location: https://192.0.2.7:8600/x\r\n"),
            ("GET /enter", "jupyter.localhost:8600", 307, "location: https://jupyter.localhost:8600/enter\r\n"),
            ("POST /api/v1/login", "localhost:8600", 400, "this port speaks TLS: use https://"),
            ("GET /", "evil.example", 403, "evil.example"),
            ("GET http://localhost/", "evil.example", 400, "use https://"),
        ] {
            let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let answer = said(page.plainly().await, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(says), "{request}{answer}");
            assert!(!answer.contains("location: https://evil"), "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_get_through_a_handshake_in_time_is_dropped() {
        let page = page(Lab::new()).await;
        for begun in [&b""[..], &[HANDSHAKE], &[HANDSHAKE, 3, 1, 2, 0, 1, 0]] {
            let mut stream = page.plainly().await;
            stream.write_all(begun).await.expect("it reads");
            // Without a time of its own: this clock jumps to the nearest one, which must be the server's.
            assert!(stream.read(&mut [0; 64]).await.is_ok_and(|length| length == 0), "{begun:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_handshake_takes_nothing_down() {
        let page = page(Lab::new()).await;
        for _ in 0..50 {
            let answer = said(page.plainly().await, "\u{16}\u{3}\u{1}\0\u{5}hello, this is no handshake").await;
            assert!(!answer.starts_with("HTTP"), "{answer}");
            drop(page.plainly().await);
        }
        assert!(page.asked("GET", "/healthz", &[], "").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_shown_to_whoever_comes_then_and_none_at_all_to_nobody() {
        let page = page(Lab::new()).await;
        let mut old = page.secretly().await;
        let new = certificate();
        page.served.send_replace(speaking(&new));
        assert!(page.trusting(&page.certificate, &[&TLS13], &[]).await.is_err());
        let stream = page.trusting(&new, &[&TLS13], &[]).await.expect("the new one");
        assert!(said(stream, HEALTH).await.starts_with("HTTP/1.1 200"));
        old.write_all(HEALTH.as_bytes()).await.expect("who is there stays");
        let mut begins = [0; 12];
        old.read_exact(&mut begins).await.expect("an answer");
        assert_eq!(&begins, b"HTTP/1.1 200");
        page.served.send_replace(Arc::new(Served { speaks: Speaks::Nothing, ..Served::default() }));
        assert_eq!(said(page.plainly().await, HEALTH).await, "");
        page.served.send_replace(Arc::default());
        assert!(said(page.plainly().await, HEALTH).await.starts_with("HTTP/1.1 200"), "switched off");
    }

    #[tokio::test]
    async fn who_came_without_tls_is_told_nothing_more_once_it_is_switched_on() {
        let page = page(Lab::new()).await;
        for asked_for in
            [speaking(&page.certificate), Arc::new(Served { speaks: Speaks::Nothing, ..Served::default() })]
        {
            page.served.send_replace(Arc::default());
            let (mut streaming, mut silent) = (page.plainly().await, page.plainly().await);
            for (stream, path) in [(&mut streaming, "api/v1/stream"), (&mut silent, "healthz")] {
                let request = format!("GET /{path} HTTP/1.1\r\nHost: localhost:8600\r\n\r\n");
                stream.write_all(request.as_bytes()).await.expect("it reads");
                stream.read_exact(&mut [0; 12]).await.expect("it begins");
            }
            page.served.send_replace(asked_for);
            for stream in [&mut streaming, &mut silent] {
                // Who says nothing is dropped later than that in any case.
                let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut Vec::new())).await;
                end.expect("in time").ok();
            }
        }
    }

    /// Value of the cookie in an answer, with its name, and the whole line.
    fn cookie_of(answer: &str) -> (String, &str) {
        let line = answer.lines().find(|line| line.starts_with("set-cookie: ")).unwrap_or_else(|| panic!("{answer}"));
        let (pair, _) = line["set-cookie: ".len()..].split_once(';').expect("attributes");
        (pair.to_owned(), line)
    }

    #[tokio::test]
    async fn a_login_over_tls_has_a_cookie_for_tls_alone_and_a_page_without_is_another_origin() {
        const JSON: (&str, &str) = ("Content-Type", "application/json");
        let page = page(Lab::new().closed()).await;
        let token = || {
            let person = crate::accounts::Person { name: "anna".into(), role: Role::Admin };
            format!("{{\"token\": \"{}\"}}", page.lab.state.accounts.link(person).expose())
        };
        let plain = [("Origin", "http://localhost:8600"), JSON];
        let answer = page.asked("POST", "/api/v1/login/link", &plain, &token()).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        let own = [("Origin", "https://localhost:8600"), JSON];
        let answer = page.asked("POST", "/api/v1/login/link", &own, &token()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let (pair, line) = cookie_of(&answer);
        assert!(pair.starts_with("__Host-labd-test-lab=") && line.ends_with("; Secure"), "{line}");
        assert!(line.contains("; Path=/; HttpOnly; SameSite=Strict;"), "{line}");

        let looks = |cookie: String| {
            let page = &page;
            async move { page.asked("GET", "/api/v1/snapshot", &[("Cookie", &cookie)], "").await }
        };
        assert!(looks(pair.clone()).await.starts_with("HTTP/1.1 200"));
        let clear = page.lab.log_in(Role::Admin).await.0;
        assert!(looks(format!("__Host-{clear}")).await.starts_with("HTTP/1.1 401"), "others may have read that one");
        let without_prefix = pair.replace("__Host-", "");
        assert!(looks(without_prefix.clone()).await.starts_with("HTTP/1.1 401"), "anybody on the host could set that");
        assert!(looks(format!("{without_prefix}x; {pair}")).await.starts_with("HTTP/1.1 200"), "nor is it in the way");

        // JupyterLab's origin, from there.
        let csrf = answer.split("\"csrf\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("told");
        let asks = [own[0], ("Cookie", &pair), ("X-Labd-Csrf", csrf)];
        let answer = page.asked("POST", "/api/v1/jupyter/ticket", &asks, "").await;
        assert!(answer.contains("\"url\":\"https://jupyter.localhost:8600/enter\""), "{answer}");
        let answer = page.asked("POST", "/api/v1/logout", &own[..1], "").await;
        assert!(cookie_of(&answer).1.contains("__Host-labd-test-lab=;"), "{answer}");
    }

    #[tokio::test]
    async fn a_websocket_goes_through_tls() {
        let echo = any(|upgrade: WebSocketUpgrade| async move {
            upgrade.on_upgrade(|mut socket| async move {
                while let Some(Ok(message)) = socket.recv().await {
                    let _ = socket.send(message).await;
                }
            })
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let jupyter = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/jupyter/ws", echo)).await });
        let mut lab = Lab::new();
        let (_tell, upstreams) = watch::channel(Arc::new(Upstreams { jupyter: Some(jupyter), ..Upstreams::default() }));
        lab.state.door = Door::new(upstreams, SignIns::none());
        let admin = lab.log_in_on(Role::Admin, true).await;
        let ticket = lab.state.accounts.ticket(admin.0.split_once('=').expect("a pair").1).expect("goes on");
        let way = Way { from: [127, 0, 0, 1].into(), over_tls: true };
        let visit = lab.state.accounts.enter(&ticket, way).expect("good once");
        let visit = format!("__Host-{}={}", lab.state.second.cookie, visit.expose());
        let page = page(lab).await;
        let open = async |origin: &str| {
            let mut request = format!("wss://{SECOND}:8600/jupyter/ws").into_client_request().expect("an address");
            request.headers_mut().insert("origin", origin.parse().expect("a value"));
            request.headers_mut().insert("cookie", visit.parse().expect("a value"));
            tokio_tungstenite::client_async(request, page.secretly().await).await
        };
        assert!(open("http://jupyter.localhost:8600").await.is_err(), "another origin");
        let (mut socket, _) = open("https://jupyter.localhost:8600").await.expect("opens");
        let long = "x".repeat(300_000);
        socket.send(Message::text(long.clone())).await.expect("it reads");
        assert_eq!(socket.next().await.expect("an answer").expect("whole"), Message::text(long));
    }

    #[tokio::test]
    async fn prometheus_is_answered_without_tls_on_the_labs_network_alone() {
        let lab = Lab::new();
        let scraped = Scraped {
            address: [127, 0, 0, 5].into(),
            peer: [127, 0, 0, 6].into(),
            router: Router::new().route("/healthz", get(|| async { "scraped\n" })),
        };
        let (_served, watched) = watch::channel(speaking(&certificate()));
        let router = second_router(lab.state.clone());
        let secured = Secured::new(watched, router, to_https_router(Arc::new([])), Some(scraped));
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("binds");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(serve_secured(listener, secured, lab.state.shutdown.clone()));
        for (from, to, is_scraped) in [(6, 5, true), (7, 5, false), (6, 1, false)] {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind(([127, 0, 0, from], 0).into()).expect("bound");
            let answer = said(socket.connect(([127, 0, 0, to], port).into()).await.expect("it listens"), HEALTH).await;
            assert_eq!(answer.ends_with("scraped\n"), is_scraped, "{from} {to}: {answer}");
            assert!(is_scraped || answer.starts_with("HTTP/1.1 307"), "{answer}");
        }
    }
}

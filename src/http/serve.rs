//! Listeners. Binding and serving are two steps, so that what is in the way is said before anything else begins.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read as _, Seek as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    serve::{Listener, ListenerExt as _},
};
use futures_util::future::{BoxFuture, MaybeDone, maybe_done};
use hyper::{Request, body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::{
    net::sockopt::set_tcp_user_timeout,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Sleep,
};

use super::{
    login::Address,
    stopped,
    tls::{OverTls, Secured, Stream},
    who::Peer,
};
use crate::files;

/// Longest time that an answer in progress may take once the daemon ends.
const GRACE: Duration = Duration::from_secs(2);
/// Silence after which a client is not waited for, at first or between two requests. Clients with longer-lived
/// connections connect again: other servers close theirs after 5 s.
const SILENCE: Duration = Duration::from_secs(10);
/// Time after which a client that reads nothing of what is said to it is dropped: a page that sleeps comes back by itself.
/// Chosen, not measured.
const STALLED: Duration = Duration::from_secs(30);
/// Largest number of connections of one listener.
const CONNECTIONS: u64 = 8_192;

/// Raises this process's soft limit of open files to its hard one, and returns what it is then. Shells give 1,024, which a
/// thousand idle clients use up. Programs that labd starts inherit it; containers have the engine's.
pub fn raise_open_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let now = if raised.is_ok() { maximum } else { current };
    now.unwrap_or(u64::MAX)
}

/// Number of connections that one listener takes: five listeners together leave half of the descriptors to the engine,
/// the databases and the clients of the head.
fn most_connections() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from((files / 10).clamp(16, CONNECTIONS)).unwrap_or(usize::MAX)
}

/// Reason why labd cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another labd that serves this lab.
    #[error("labd is already running{}: `labd status` shows it", pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    AlreadyRunning {
        /// Its process id, when it can be told.
        pid: Option<u32>,
    },
    /// Path of the socket that cannot be used.
    #[error("cannot listen on `{}`: {reason}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Reason, and what would help.
        reason: String,
    },
    /// Address that cannot be used.
    #[error("cannot listen on {addr}: {reason}")]
    Address {
        /// The address.
        addr: SocketAddr,
        /// Reason, and what would help.
        reason: String,
    },
}

/// The listening Unix socket. While it lives, no second labd can have the same path.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    _lock: File,
}

/// Listens on `path`: makes its directory (0755), removes a socket that nobody answers on, sets mode 0660.
pub async fn bind_unix(path: &Path) -> Result<UnixSocket, ServeError> {
    let broken = |reason: String| ServeError::Socket { path: path.to_owned(), reason };
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(|e| {
            broken(format!("cannot create `{}`: {e}; run labd as root, or choose another place", parent.display()))
        })?;
    }
    // Whoever asks "does somebody answer?" and then removes the socket must not race another that does the same.
    let lock = lock(&path.with_added_extension("lock"), path)?;
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(broken("something that is not a socket is there; move it away".into()));
        }
        Ok(_) => {
            if let Ok(other) = UnixStream::connect(path).await {
                let pid = other.peer_cred().ok().and_then(|c| c.pid()).and_then(|p| u32::try_from(p).ok());
                return Err(ServeError::AlreadyRunning { pid });
            }
            fs::remove_file(path).map_err(|e| broken(format!("cannot remove the stale socket: {e}")))?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(|e| broken(e.to_string()))?;
    fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(|e| broken(e.to_string()))?;
    Ok(UnixSocket { listener, path: path.to_owned(), _lock: lock })
}

fn lock(path: &Path, socket: &Path) -> Result<File, ServeError> {
    let broken = |e: io::Error| ServeError::Socket {
        path: socket.to_owned(),
        reason: format!("cannot use `{}`: {e}", path.display()),
    };
    // Only labd's: whoever can open it can hold the lock, and no labd would start.
    let mut file = files::open_private(path).map_err(broken)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(ServeError::AlreadyRunning { pid: pid.trim().parse().ok() });
        }
        Err(fs::TryLockError::Error(e)) => return Err(broken(e)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(broken)?;
    writeln!(file, "{}", std::process::id()).map_err(broken)?;
    Ok(file)
}

/// Serves until `shutdown` turns true, then removes the socket.
pub async fn serve_unix(socket: UnixSocket, router: Router, shutdown: watch::Receiver<bool>) {
    let UnixSocket { listener, path, _lock } = socket;
    let listener = WithUser(listener);
    serve(listener, Plainly::new(router), shutdown, most_connections()).await;
    let _ = fs::remove_file(&path);
}

/// Listens on `addr`; `setting` is where a person changes it, such as `lab.page`.
pub async fn bind_tcp(addr: SocketAddr, setting: &str) -> Result<TcpListener, ServeError> {
    TcpListener::bind(addr).await.map_err(|e| {
        let reason = match e.kind() {
            io::ErrorKind::AddrInUse => {
                format!("port {} is taken by another program; set `{setting}` in labd.toml to a free one", addr.port())
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("this machine has no address {}; set `{setting}` in labd.toml", addr.ip())
            }
            io::ErrorKind::PermissionDenied => {
                format!("ports below 1024 need root; set `{setting}` in labd.toml to a higher one")
            }
            _ => format!("{e}; set `{setting}` in labd.toml"),
        };
        ServeError::Address { addr, reason }
    })
}

/// Serves until `shutdown` turns true.
pub async fn serve_tcp(listener: TcpListener, router: Router, shutdown: watch::Receiver<bool>) {
    serve(prompt(listener), Plainly::new(router), shutdown, most_connections()).await;
}

/// Serves over TLS, where the configuration asks for that, until `shutdown` turns true.
pub async fn serve_secured(listener: TcpListener, secured: Secured, shutdown: watch::Receiver<bool>) {
    serve(prompt(listener), secured, shutdown, most_connections()).await;
}

/// Listener whose connections wait for nobody: answers are small, and people wait for them.
fn prompt(listener: TcpListener) -> impl Listener<Io = TcpStream, Addr = SocketAddr> {
    listener.tap_io(|stream| {
        drop(stream.set_nodelay(true));
        // The kernel holds megabytes for a client before a write has to wait: it counts from the first that is not taken.
        let _ = set_tcp_user_timeout(stream, u32::try_from(STALLED.as_millis()).unwrap_or(u32::MAX));
    })
}

/// Serves `known` peers alone until `shutdown` turns true; a connection of anybody else is closed unheard.
pub async fn serve_tcp_to(known: Vec<IpAddr>, listener: TcpListener, router: Router, shutdown: watch::Receiver<bool>) {
    serve(KnownPeers { known, listener }, Plainly::new(router), shutdown, most_connections()).await;
}

/// Beginning of a connection: what HTTP is spoken on, and who answers.
pub(super) trait Greets<S, O>: Clone + Send + 'static {
    /// Stream that HTTP is spoken on.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The greeted connection; none for one that comes to nothing.
    fn greet(self, stream: S, other_end: &O) -> impl Future<Output = Option<Greeted<Self::Stream>>> + Send;
}

/// Connection on which HTTP can begin.
pub(super) struct Greeted<S> {
    pub(super) stream: S,
    pub(super) service: TowerToHyperService<Router>,
    pub(super) over: OverTls,
    /// Moment from which on nothing may be said on it any more.
    pub(super) ends: Option<BoxFuture<'static, ()>>,
}

/// Greeting of those who begin with HTTP at once.
#[derive(Clone)]
struct Plainly(TowerToHyperService<Router>);

impl Plainly {
    fn new(router: Router) -> Self {
        Self(TowerToHyperService::new(router))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static, O: Sync> Greets<S, O> for Plainly {
    type Stream = S;

    async fn greet(self, stream: S, _: &O) -> Option<Greeted<S>> {
        Some(Greeted { stream, service: self.0, over: OverTls(false), ends: None })
    }
}

impl Greets<TcpStream, SocketAddr> for Secured {
    type Stream = Stream;

    async fn greet(self, stream: TcpStream, other_end: &SocketAddr) -> Option<Greeted<Stream>> {
        // A handshake is a few steps: whoever takes longer says nothing.
        tokio::time::timeout(SILENCE, Secured::greet(self, stream, *other_end)).await.ok()?
    }
}

/// Other end of a connection, of which the requests on it are told.
trait OtherEnd: Clone + Send + Sync + 'static {
    fn tell(&self, request: &mut Request<Incoming>);
}

impl OtherEnd for SocketAddr {
    fn tell(&self, request: &mut Request<Incoming>) {
        request.extensions_mut().insert(Address(self.ip()));
    }
}

impl OtherEnd for Option<Peer> {
    fn tell(&self, request: &mut Request<Incoming>) {
        if let Some(peer) = self {
            request.extensions_mut().insert(*peer);
        }
    }
}

/// Listener on a Unix socket that says whose process is at the other end.
struct WithUser(UnixListener);

impl Listener for WithUser {
    type Io = UnixStream;
    type Addr = Option<Peer>;

    async fn accept(&mut self) -> (UnixStream, Option<Peer>) {
        let (stream, _) = Listener::accept(&mut self.0).await;
        let peer = stream.peer_cred().ok().map(|user| Peer(user.uid()));
        (stream, peer)
    }

    fn local_addr(&self) -> io::Result<Option<Peer>> {
        Ok(None)
    }
}

/// Service that tells its requests of the other end.
#[derive(Clone)]
struct Telling<O> {
    other_end: O,
    over: OverTls,
    inner: TowerToHyperService<Router>,
}

impl<O: OtherEnd> Service<Request<Incoming>> for Telling<O> {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.other_end.tell(&mut request);
        if self.over.0 {
            request.extensions_mut().insert(self.over);
        }
        self.inner.call(request)
    }
}

/// Listener that hears some addresses only.
struct KnownPeers {
    known: Vec<IpAddr>,
    listener: TcpListener,
}

impl Listener for KnownPeers {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let (stream, peer) = Listener::accept(&mut self.listener).await;
            if self.known.contains(&peer.ip()) {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Connection whose other end must read: what is said to it may wait for [`STALLED`], not longer.
struct Impatient<S> {
    stream: S,
    stalled: Option<Pin<Box<Sleep>>>,
    /// End of the connection, also once it is a WebSocket.
    ends: Option<MaybeDone<BoxFuture<'static, ()>>>,
    /// Place that it takes, also once it is a WebSocket, of which the server knows nothing any more.
    #[expect(dead_code, reason = "held, not read")]
    place: Option<OwnedSemaphorePermit>,
}

impl<S> Impatient<S> {
    fn new(stream: S, place: Option<OwnedSemaphorePermit>, ends: Option<BoxFuture<'static, ()>>) -> Self {
        Self { stream, stalled: None, ends: ends.map(maybe_done), place }
    }

    /// Refusal of every step once the connection has ended.
    fn goes_on(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let is_over = self.ends.as_mut().is_some_and(|ends| Pin::new(ends).poll(cx).is_ready());
        if is_over { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Impatient<S> {
    /// Result of a step of writing, or the end of patience.
    fn patient<T>(&mut self, cx: &mut Context<'_>, step: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if step.is_ready() {
            self.stalled = None;
            return step;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(STALLED)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.goes_on(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.goes_on(cx)?;
        let step = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.patient(cx, step)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let step = Pin::new(&mut self.stream).poll_flush(cx);
        self.patient(cx, step)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let step = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.patient(cx, step)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.goes_on(cx)?;
        let step = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.patient(cx, step)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Takes connections, at most `most` at once, until `shutdown` turns true; those that are then being answered
/// have a moment. A client that does not read its answer must not keep the daemon from ending.
async fn serve<L: Listener<Addr: OtherEnd>>(
    mut listener: L,
    greeting: impl Greets<L::Io, L::Addr>,
    shutdown: watch::Receiver<bool>,
    most: usize,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(SILENCE);
    let places = std::sync::Arc::new(Semaphore::new(most));
    let end = stopped(shutdown.clone());
    tokio::pin!(end);
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let ((stream, other_end), place) = tokio::select! {
            next = next => next,
            () = &mut end => break,
        };
        let (http, greeting, end) = (http.clone(), greeting.clone(), stopped(shutdown.clone()));
        tokio::spawn(async move {
            let mut end = std::pin::pin!(end);
            // How a client leaves, and what it does not understand of a greeting, is its own affair.
            let greeted = tokio::select! {
                greeted = greeting.greet(stream, &other_end) => greeted,
                () = &mut end => None,
            };
            let Some(Greeted { stream, service, over, ends }) = greeted else { return };
            let service = Telling { other_end, over, inner: service };
            let stream = TokioIo::new(Impatient::new(stream, place, ends));
            let mut connection = std::pin::pin!(http.serve_connection(stream, service).with_upgrades());
            tokio::select! {
                _ = &mut connection => {}
                () = end => {
                    connection.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(GRACE, connection).await;
                }
            }
        });
    }
    let all = places.acquire_many(u32::try_from(most).unwrap_or(u32::MAX));
    let _ = tokio::time::timeout(GRACE, all).await;
}

#[cfg(test)]
mod tests {
    use axum::{
        extract::ws::WebSocketUpgrade,
        routing::{any, get},
    };
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::http::{admin_router, public_router, testing::Lab};

    async fn request(path: &Path, text: &str) -> UnixStream {
        let mut stream = UnixStream::connect(path).await.expect("it listens");
        stream.write_all(text.as_bytes()).await.expect("it reads");
        stream
    }

    #[tokio::test]
    async fn the_socket_serves_and_goes_away_with_streams_open() {
        let lab = Lab::new();
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run/labd/labd.sock");
        let socket = bind_unix(&path).await.expect("binds");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o660);
        assert_eq!(fs::metadata(path.parent().expect("one")).expect("there").permissions().mode() & 0o777, 0o755);
        let server = tokio::spawn(serve_unix(socket, admin_router(lab.state.clone()), lab.state.shutdown.clone()));

        let mut stream = request(&path, "GET /healthz HTTP/1.1\r\nHost: labd\r\nConnection: close\r\n\r\n").await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok\n"), "{answer}");

        let mut streams = Vec::new();
        for what in ["stream", "events/stream"] {
            let mut open = request(&path, &format!("GET /api/v1/{what} HTTP/1.1\r\nHost: labd\r\n\r\n")).await;
            let mut start = [0; 15];
            open.read_exact(&mut start).await.expect("it begins");
            streams.push(open);
        }
        let begun = std::time::Instant::now();
        lab.shutdown.send_replace(true);
        server.await.expect("no panic");
        assert!(begun.elapsed() < GRACE, "streams end by themselves");
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_second_labd_is_told_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("labd.sock");
        let _first = bind_unix(&path).await.expect("binds");
        let error = bind_unix(&path).await.expect_err("refused").to_string();
        assert_eq!(error, format!("labd is already running (pid {}): `labd status` shows it", std::process::id()));
        assert!(path.exists(), "the first one's socket is left alone");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("labd.sock");
        drop(UnixListener::bind(&path).expect("binds"));
        assert!(path.exists());
        drop(bind_unix(&path).await.expect("replaces it"));

        fs::remove_file(&path).expect("removable");
        fs::write(&path, "precious").expect("writable");
        let error = bind_unix(&path).await.expect_err("refused").to_string();
        assert!(error.contains("not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("readable"), "precious");

        // Somebody who answers without holding the lock is left alone, too.
        let other = dir.path().join("other.sock");
        let _listener = UnixListener::bind(&other).expect("binds");
        assert!(matches!(bind_unix(&other).await, Err(ServeError::AlreadyRunning { pid: Some(_) })));
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_setting() {
        let first = bind_tcp("127.0.0.1:0".parse().expect("an address"), "lab.page").await.expect("binds");
        let addr = first.local_addr().expect("bound");
        let error = bind_tcp(addr, "lab.page").await.expect_err("taken").to_string();
        assert_eq!(
            error,
            format!(
                "cannot listen on {addr}: port {} is taken by another program; set `lab.page` in labd.toml to a free one",
                addr.port()
            )
        );
        let error = bind_tcp("192.0.2.1:80".parse().expect("an address"), "lab.page").await.expect_err("not ours");
        assert!(error.to_string().contains("no address 192.0.2.1"), "{error}");
    }

    #[tokio::test]
    async fn clients_that_say_nothing_are_sent_away_and_one_that_asks_is_answered() {
        let lab = Lab::new();
        assert!(raise_open_files() >= 1_024 && most_connections() >= 16);
        let listener = bind_tcp("127.0.0.1:0".parse().expect("an address"), "lab.page").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        let greeting = Plainly::new(public_router(lab.state.clone()));
        tokio::spawn(serve(prompt(listener), greeting, lab.state.shutdown.clone(), 20));
        let mut idle = Vec::new();
        for _ in 0..20 {
            idle.push(tokio::net::TcpStream::connect(addr).await.expect("it listens"));
        }
        let mut client = tokio::net::TcpStream::connect(addr).await.expect("it listens");
        client.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("it reads");
        let mut answer = [0; 15];
        let asked = tokio::time::timeout(SILENCE * 3, client.read_exact(&mut answer)).await;
        asked.expect("in time").expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }

    #[tokio::test]
    async fn only_known_peers_are_heard() {
        let lab = Lab::new();
        let listener = bind_tcp("127.0.0.1:0".parse().expect("an address"), "lab.page").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        let known = vec!["127.0.0.2".parse().expect("an address")];
        tokio::spawn(serve_tcp_to(known, listener, public_router(lab.state.clone()), lab.state.shutdown.clone()));
        let answer = async |from: &str| {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket.bind(format!("{from}:0").parse().expect("an address")).expect("bound");
            let mut client = socket.connect(addr).await.expect("it listens");
            let _ = client.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer).await;
            String::from_utf8_lossy(&answer).into_owned()
        };
        assert_eq!(answer("127.0.0.3").await, "");
        assert!(answer("127.0.0.2").await.starts_with("HTTP/1.1 "));
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_cannot_hold_the_daemon() {
        let lab = Lab::new();
        let listener = bind_tcp("127.0.0.1:0".parse().expect("an address"), "lab.page").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        let server = tokio::spawn(serve_tcp(listener, public_router(lab.state.clone()), lab.state.shutdown.clone()));
        // Half a request, forever.
        let mut client = tokio::net::TcpStream::connect(addr).await.expect("it listens");
        client.write_all(b"GET / HTTP/1.1\r\nHost: ").await.expect("it reads");
        tokio::time::sleep(Duration::from_millis(50)).await;
        lab.shutdown.send_replace(true);
        tokio::time::timeout(GRACE * 3, server).await.expect("it ends").expect("no panic");
    }

    #[tokio::test]
    async fn a_websocket_takes_a_place_until_it_ends() {
        let opened = any(|upgrade: WebSocketUpgrade| async move {
            upgrade.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
        });
        let router = Router::new().route("/ws", opened).route("/", get(|| async { "here" }));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let lab = Lab::new();
        tokio::spawn(serve(listener, Plainly::new(router), lab.state.shutdown.clone(), 1));
        let socket = TcpStream::connect(address).await.expect("it listens");
        let (socket, _) = tokio_tungstenite::client_async(format!("ws://{address}/ws"), socket).await.expect("opens");
        let mut waits = TcpStream::connect(address).await.expect("it listens");
        waits.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        let early =
            tokio::time::timeout(std::time::Duration::from_millis(300), waits.read_to_string(&mut answer)).await;
        assert!(early.is_err(), "there is one place: {answer}");
        drop(socket);
        waits.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.ends_with("here"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_dropped() {
        let (ours, theirs) = tokio::io::duplex(64);
        let mut connection = Impatient::new(ours, None, None);
        connection.write_all(&[b'x'; 64]).await.expect("there is room");
        let more = tokio::time::timeout(STALLED * 2, connection.write_all(b"more")).await;
        let error = more.expect("given up").expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
        // One that reads slowly is waited for.
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut connection = Impatient::new(ours, None, None);
        let reads = tokio::spawn(async move {
            let mut sum = 0;
            while sum < 640 {
                tokio::time::sleep(STALLED / 2).await;
                sum += theirs.read(&mut [0; 64]).await.expect("it writes");
            }
        });
        connection.write_all(&[b'x'; 640]).await.expect("somebody reads");
        reads.await.expect("no panic");
    }
}

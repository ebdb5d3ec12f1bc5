//! Tests of the door over small services on loopback, which write down what they hear.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Bytes, to_bytes},
    extract::{
        FromRequest as _,
        ws::{Message, WebSocketUpgrade},
    },
    http::{HeaderMap, Method, Uri},
};
use futures_util::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite;
use tower::ServiceExt as _;

use super::*;

/// Headers of a request or an answer.
pub(super) fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_static(name), value.parse().expect("a value"));
    }
    map
}

const HOST: &str = "lab:8600";
const ORIGIN: &str = "http://lab:8600";
const SECRETS: [&str; 5] = ["ray-hunter2", "grafana-hunter2", "minio-hunter2", "jupyter-hunter2", "session-hunter2"];

/// Request that reached a service.
#[derive(Debug, Clone)]
struct Heard {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Heard {
    fn get(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|v| v.to_str().expect("text")).collect()
    }

    fn line(&self) -> String {
        format!("{} {}", self.method, self.uri)
    }
}

type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Service on loopback.
struct Fake {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Fake {
    /// One that writes down whole requests, and answers with what `answer` makes of them.
    async fn new(answer: impl Fn(Heard) -> Response + Clone + Send + Sync + 'static) -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let list = heard.clone();
        let address = serve(Router::new().fallback(any(move |request: Request| {
            let (answer, list) = (answer.clone(), list.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
                let heard = Heard { method: parts.method, uri: parts.uri, headers: parts.headers, body };
                list.lock().expect("unpoisoned").push(heard.clone());
                answer(heard)
            }
        })))
        .await;
        Self { address, heard }
    }

    /// One that says `ok`.
    async fn plain() -> Self {
        Self::new(|_| "ok".into_response()).await
    }

    /// One with requests of its own.
    async fn raw(answer: impl Fn(Request) -> Answering + Clone + Send + Sync + 'static) -> Self {
        let address = serve(Router::new().fallback(any(move |request: Request| answer(request)))).await;
        Self { address, heard: Arc::default() }
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("unpoisoned").clone()
    }

    fn last(&self) -> Heard {
        self.heard().last().cloned().expect("it was asked")
    }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Door in front of services, and the session of whoever asks.
struct Rig {
    door: Door,
    admin: bool,
    ended: watch::Sender<bool>,
    upstreams: watch::Sender<Arc<Upstreams>>,
}

fn sign_ins() -> SignIns {
    SignIns {
        ray_token: Secret::new(SECRETS[0]),
        grafana_user: "admin".to_owned(),
        grafana_password: Secret::new(SECRETS[1]),
        minio: Keys { access: Secret::new("root"), secret: Secret::new(SECRETS[2]) },
        jupyter: Secret::new(SECRETS[3]),
    }
}

impl Rig {
    fn new(upstreams: Upstreams) -> Self {
        let (upstreams, rx) = watch::channel(Arc::new(upstreams));
        let door = Door::new(rx, sign_ins());
        Self { door, admin: true, ended: watch::channel(false).0, upstreams }
    }

    /// In front of one service, which stands for all of them.
    fn before(fake: &Fake) -> Self {
        let at = Some(fake.address);
        Self::new(Upstreams { ray: at, prometheus: at, minio_console: at, grafana: at, jupyter: at })
    }

    fn router(&self, origin: Origin) -> Router {
        let admission = Admission { admin: self.admin, scheme: Scheme::HTTP, ended: self.ended.subscribe() };
        paths(&self.door, origin).layer(Extension(admission))
    }

    /// Both origins on a listener of their own.
    async fn listen(&self) -> SocketAddr {
        serve(self.router(Origin::Main).merge(self.router(Origin::Second))).await
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let origin = if path.starts_with("/jupyter") { Origin::Second } else { Origin::Main };
        let mut request = Request::builder().method(method).uri(path).header("host", HOST);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.router(origin).oneshot(request.body(Body::empty()).expect("a request")).await.expect("answers")
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> Response {
        let request = Request::post(path).header("host", HOST).header("origin", ORIGIN).body(body.into());
        self.router(Origin::Main).oneshot(request.expect("a request")).await.expect("answers")
    }
}

async fn text(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), usize::MAX).await.expect("whole");
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// Waits for what must come, and not for ever.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("in time")
}

/// Everything that a listener answers to these bytes before it ends the connection.
async fn raw(address: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(bytes.as_bytes()).await.expect("it reads");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn ray_is_asked_without_its_prefix_and_with_its_token_in_both_headers() {
    let fake = Fake::plain().await;
    let rig = Rig::before(&fake);
    let smuggled = [
        ("authorization", "Bearer mine"),
        ("x-ray-authorization", "Bearer mine"),
        ("cookie", "ray-authentication-token=mine; labd=session"),
        ("connection", "cookie, authorization, x-ray-authorization"),
        ("user-agent", "Mozilla/5.0"),
        ("sec-fetch-site", "same-origin"),
    ];
    let answer = rig.ask("GET", "/ray/api/jobs/a%20b?limit=1&x=%2F", &smuggled).await;
    assert_eq!(text(answer).await, (200, "ok".to_owned()));
    let heard = fake.last();
    assert_eq!(heard.line(), "GET /api/jobs/a%20b?limit=1&x=%2F");
    assert_eq!(heard.get("authorization"), ["Bearer ray-hunter2"]);
    assert_eq!(heard.get("x-ray-authorization"), ["Bearer ray-hunter2"]);
    assert_eq!(heard.get("host"), [HOST]);
    assert_eq!(heard.get("user-agent"), ["Mozilla/5.0 (labd)"]);
    assert_eq!(heard.get("sec-fetch-site"), ["same-origin"]);
    assert!(heard.get("cookie").is_empty() && heard.get("connection").is_empty());
}

#[tokio::test]
async fn rays_login_is_the_doors_affair() {
    let fake = Fake::plain().await;
    let rig = Rig::before(&fake);
    let (status, mode) = text(rig.ask("GET", "/ray/api/authentication_mode", &[]).await).await;
    assert_eq!((status, mode.as_str()), (200, r#"{"authentication_mode":"disabled"}"#));
    assert_eq!(text(rig.post("/ray/api/authenticate", "").await).await.0, 403);
    assert_eq!(text(rig.post("/ray/api/%61uthenticate", "").await).await.0, 403);
    assert!(fake.heard().is_empty());
}

#[tokio::test]
async fn grafana_and_jupyter_keep_their_prefix_and_prometheus_has_no_secret() {
    let fake = Fake::plain().await;
    let rig = Rig::before(&fake);
    let client = [("x-webauth-user", "root"), ("x-labd-door", "guess"), ("cookie", "grafana_session=x; _xsrf=2|y")];
    rig.ask("GET", "/grafana/d-solo/rayDefaultDashboard/?panelId=41&from=1.5", &client).await;
    let heard = fake.last();
    assert_eq!(heard.line(), "GET /grafana/d-solo/rayDefaultDashboard/?panelId=41&from=1.5");
    assert_eq!(heard.get("authorization"), ["Basic YWRtaW46Z3JhZmFuYS1odW50ZXIy"]);
    assert!(["cookie", "x-webauth-user", "x-labd-door"].iter().all(|name| heard.get(name).is_empty()));

    rig.ask("GET", "/jupyter/lab/tree/x", &client).await;
    let heard = fake.last();
    assert_eq!(heard.line(), "GET /jupyter/lab/tree/x");
    assert_eq!(heard.get("x-labd-door"), ["jupyter-hunter2"]);
    assert_eq!(heard.get("cookie"), ["_xsrf=2|y"]);
    assert!(heard.get("authorization").is_empty());
    assert_eq!(heard.get("host"), [HOST]);

    rig.ask("GET", "/prometheus/graph", &client).await;
    let heard = fake.last();
    assert_eq!(heard.line(), "GET /prometheus/graph");
    let all = format!("{:?}", heard.headers);
    assert!(!all.contains("hunter2") && heard.get("cookie").is_empty(), "{all}");
    assert_eq!(text(rig.ask("GET", "/prometheus/debug/pprof/heap", &[]).await).await.0, 403);
    assert_eq!(fake.heard().len(), 3);
}

#[tokio::test]
async fn answers_do_not_reach_beyond_their_prefix() {
    let fake = Fake::new(|heard| {
        let theirs = heard.headers["host"].to_str().expect("text").to_owned();
        let headers = [
            ("location", format!("http://{theirs}/login?next=/")),
            ("set-cookie", "_xsrf=z; Path=/".to_owned()),
            ("x-frame-options", "DENY".to_owned()),
            ("access-control-allow-origin", "*".to_owned()),
            ("content-security-policy", "img-src *; frame-ancestors 'none'".to_owned()),
        ];
        (StatusCode::FOUND, headers.map(|(name, v)| (HeaderName::from_static(name), v)), "moved").into_response()
    })
    .await;
    let rig = Rig::before(&fake);
    for (path, to, cookies) in [
        ("/ray/x", "/ray/login?next=/", 0),
        ("/grafana/x", "/grafana/login?next=/", 0),
        ("/jupyter/x", "/jupyter/login?next=/", 1),
    ] {
        let answer = rig.ask("GET", path, &[]).await;
        let headers = answer.headers();
        assert_eq!((answer.status().as_u16(), &headers["location"]), (302, &HeaderValue::from_static(to)));
        let set: Vec<_> = headers.get_all("set-cookie").iter().collect();
        assert_eq!(set.len(), cookies, "{path}");
        assert!(set.iter().all(|v| *v == "_xsrf=z; Path=/jupyter/"));
        let policies: Vec<_> = headers.get_all("content-security-policy").iter().collect();
        assert_eq!(policies, ["img-src *", "frame-ancestors 'self'"]);
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert!(!headers.contains_key("x-frame-options") && !headers.contains_key("access-control-allow-origin"));
    }
}

#[tokio::test]
async fn paths_of_one_service_do_not_lead_to_another() {
    let fake = Fake::plain().await;
    let address = Rig::before(&fake).listen().await;
    for (path, status) in [
        ("/ray/../minio/", 400),
        ("/ray/%2e%2e/minio/", 400),
        ("/ray/..%2fminio/", 400),
        ("/ray/..\\minio/", 400),
        ("/ray/%5c../minio/", 400),
        ("/ray//minio/", 400),
        ("/grafana/../jupyter/", 400),
        ("//minio/", 404),
        ("/./minio/", 404),
        ("/%6dinio/", 404),
        ("/minio", 307),
        ("/other/", 404),
        ("http://lab:8600/ray/", 400),
    ] {
        let answer = raw(address, &format!("GET {path} HTTP/1.1\r\nHost: lab:8600\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
    }
    assert!(fake.heard().is_empty());
}

#[tokio::test]
async fn each_origin_has_its_own_services() {
    let fake = Fake::plain().await;
    let rig = Rig::before(&fake);
    for (path, origin) in [
        ("/ray/", Origin::Main),
        ("/grafana/", Origin::Main),
        ("/minio/x", Origin::Main),
        ("/prometheus/", Origin::Main),
        ("/jupyter/", Origin::Second),
    ] {
        for at in [Origin::Main, Origin::Second] {
            let request = Request::get(path).header("host", HOST).body(Body::empty()).expect("a request");
            let status = rig.router(at).oneshot(request).await.expect("answers").status();
            // The console is no console: its login fails.
            let there = if path == "/minio/x" { StatusCode::BAD_GATEWAY } else { StatusCode::OK };
            assert_eq!(status, if at == origin { there } else { StatusCode::NOT_FOUND }, "{path} at {at:?}");
        }
    }
}

#[tokio::test]
async fn nobody_passes_without_an_admission_and_viewers_only_read() {
    let fake = Fake::plain().await;
    let mut rig = Rig::before(&fake);
    let request = Request::get("/ray/").header("host", HOST).body(Body::empty()).expect("a request");
    let bare: Router = paths(&rig.door, Origin::Main);
    assert_eq!(bare.oneshot(request).await.expect("answers").status(), StatusCode::UNAUTHORIZED);
    rig.admin = false;
    assert_eq!(rig.post("/ray/api/jobs/", "{}").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(rig.ask("GET", "/minio/", &[]).await.status(), StatusCode::FORBIDDEN);
    let (status, line) = text(rig.ask("GET", "/jupyter/", &[]).await).await;
    assert_eq!((status, line.as_str()), (403, "JupyterLab is for admins only\n"));
    assert!(fake.heard().is_empty());
    assert_eq!(rig.ask("GET", "/ray/", &[]).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_foreign_or_missing_origin_changes_nothing() {
    let fake = Fake::plain().await;
    let rig = Rig::before(&fake);
    for path in ["/ray/api/jobs/", "/minio/api/v1/buckets", "/grafana/api/x", "/jupyter/api/terminals"] {
        for headers in [
            vec![],
            vec![("origin", "http://lab:8601")],
            vec![("origin", "null")],
            vec![("origin", ORIGIN), ("sec-fetch-site", "same-site")],
            vec![("origin", ORIGIN), ("origin", "http://evil")],
        ] {
            let (status, line) = text(rig.ask("POST", path, &headers).await).await;
            assert!(status == 403 && line.lines().count() == 1, "{path} {headers:?}: {line}");
        }
    }
    assert!(fake.heard().is_empty());
    assert_eq!(rig.ask("POST", "/grafana/api/x", &[("origin", ORIGIN)]).await.status(), StatusCode::OK);
    assert_eq!(fake.last().get("origin"), [ORIGIN]);
}

#[tokio::test]
async fn requests_of_two_hosts_or_two_lengths_are_refused() {
    let fake = Fake::plain().await;
    let address = Rig::before(&fake).listen().await;
    let two_hosts = "GET /ray/ HTTP/1.1\r\nHost: lab:8600\r\nHost: evil\r\nConnection: close\r\n\r\n";
    assert!(raw(address, two_hosts).await.starts_with("HTTP/1.1 400 "));
    assert!(raw(address, "GET /ray/ HTTP/1.1\r\nConnection: close\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    assert!(fake.heard().is_empty());

    // The second request would be the service's if it counted by length and the door by pieces, or the other way round.
    for length in ["4", "60"] {
        let two_lengths = format!(
            "POST /ray/x HTTP/1.1\r\nHost: lab:8600\r\nOrigin: {ORIGIN}\r\nContent-Length: {length}\r\n\
             Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
        );
        let answer = raw(address, &two_lengths).await;
        let heard = fake.heard();
        assert!(heard.iter().all(|h| h.line() == "POST /x" && h.body.is_empty()), "{heard:?}");
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{answer}");
    }
}

#[tokio::test]
async fn a_service_that_is_away_is_named() {
    let rig = Rig::new(Upstreams::default());
    for (path, name) in [
        ("/ray/", "Ray's dashboard"),
        ("/prometheus/", "Prometheus"),
        ("/minio/", "MinIO's console"),
        ("/grafana/", "Grafana"),
        ("/jupyter/", "JupyterLab"),
    ] {
        let answer = rig.ask("GET", path, &[]).await;
        assert!(answer.headers().contains_key("retry-after"));
        let (status, line) = text(answer).await;
        assert_eq!((status, line.lines().count()), (503, 1));
        assert!(line.starts_with(&format!("{name} is not ready")), "{line}");
    }
    // An address that nobody listens on, and one on which somebody does again.
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("bound");
    rig.upstreams.send_replace(Arc::new(Upstreams { grafana: Some(gone), ..Upstreams::default() }));
    assert_eq!(rig.ask("GET", "/grafana/", &[]).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let fake = Fake::plain().await;
    rig.upstreams.send_replace(Arc::new(Upstreams { grafana: Some(fake.address), ..Upstreams::default() }));
    assert_eq!(rig.ask("GET", "/grafana/", &[]).await.status(), StatusCode::OK);
}

/// Service that reads a request's head, answers with these bytes, and hangs up.
async fn rude(bytes: &'static [u8]) -> Fake {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a head"));
            }
            let _ = stream.write_all(bytes).await;
        }
    });
    Fake { address, heard: Arc::default() }
}

#[tokio::test]
async fn a_service_that_hangs_up_is_told_from_one_that_has_answered() {
    let fake = rude(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    let rig = Rig::before(&fake);
    let answer = rig.ask("GET", "/ray/", &[]).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.into_body().collect().await.is_err(), "half an answer is no whole one");
    let answer = raw(rig.listen().await, "GET /ray/ HTTP/1.1\r\nHost: lab\r\n\r\n").await;
    assert!(answer.contains("content-length: 10") && answer.ends_with("half"), "{answer}");

    for bytes in [
        &b""[..],
        b"HTTP/1.1 2",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ] {
        let fake = rude(bytes).await;
        let (status, line) = text(Rig::before(&fake).ask("GET", "/ray/", &[]).await).await;
        assert_eq!((status, line.as_str()), (502, "Ray's dashboard ended the connection without an answer\n"));
    }
}

#[tokio::test]
async fn waits_end() {
    let fake = Fake::raw(|request| {
        Box::pin(async move {
            if request.uri().path() == "/grafana/silent" {
                std::future::pending::<()>().await;
            }
            let whole = to_bytes(request.into_body(), usize::MAX).await;
            whole.map_or(StatusCode::BAD_REQUEST, |_| StatusCode::OK).into_response()
        })
    })
    .await;
    let mut rig = Rig::before(&fake);
    let short = Duration::from_millis(50);
    rig.door.patience = Patience { body: short, ..Patience::default() };
    let stuck = stream::iter([Ok::<_, std::io::Error>("some")]).chain(stream::pending());
    assert_eq!(soon(rig.post("/grafana/x", Body::from_stream(stuck))).await.status(), StatusCode::REQUEST_TIMEOUT);
    let cut = stream::iter([Ok("some"), Err(std::io::Error::other("gone"))]);
    assert_eq!(soon(rig.post("/grafana/x", Body::from_stream(cut))).await.status(), StatusCode::BAD_REQUEST);
    rig.door.patience = Patience { answer: short, ..Patience::default() };
    let (status, line) = text(soon(rig.post("/grafana/silent", "all of it")).await).await;
    assert_eq!((status, line.as_str()), (504, "Grafana does not answer\n"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_waited_for_from_the_last_piece_of_a_request_on() {
    let moved = proxy::Moved::default();
    let begun = tokio::time::Instant::now();
    let (fault, every) = (Arc::default(), Duration::from_secs(3));
    let slow = stream::unfold(0, move |n| async move {
        tokio::time::sleep(every).await;
        (n < 4).then_some((Ok::<_, std::io::Error>("piece"), n + 1))
    });
    let body = proxy::timed(Body::from_stream(slow), every * 2, moved.clone(), fault);
    let (whole, ()) = tokio::join!(to_bytes(body, usize::MAX), moved.silent(every + Duration::from_secs(1)));
    assert_eq!(whole.expect("all of it").len(), 20);
    assert_eq!(begun.elapsed(), every * 4 + every + Duration::from_secs(1));
}

#[tokio::test]
async fn an_upload_is_not_buffered() {
    const PIECES: usize = 50;
    const PIECE: usize = 1 << 20;
    let (arrived, mut arrivals) = watch::channel(0);
    let arrived = Arc::new(arrived);
    let fake = Fake::raw(move |request| {
        let arrived = arrived.clone();
        Box::pin(async move {
            let length = request.headers()["content-length"].to_str().expect("text").to_owned();
            let mut body = request.into_body().into_data_stream();
            while let Some(piece) = body.next().await {
                let piece = piece.expect("whole").len();
                arrived.send_modify(|sum| *sum += piece);
            }
            format!("{length} and {}", *arrived.borrow()).into_response()
        })
    })
    .await;
    let address = Rig::before(&fake).listen().await;
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let head = format!(
        "POST /grafana/api/packages HTTP/1.1\r\nHost: lab:8600\r\nOrigin: {ORIGIN}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        PIECES * PIECE
    );
    stream.write_all(head.as_bytes()).await.expect("it reads");
    let piece = vec![7; PIECE];
    for sent in 1..=PIECES {
        soon(stream.write_all(&piece)).await.expect("it reads");
        // The service has each piece before the next one is there to be sent.
        soon(arrivals.wait_for(|sum| *sum == sent * PIECE)).await.expect("it arrives");
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.ends_with(&format!("{0} and {0}", PIECES * PIECE)), "{answer}");
}

#[tokio::test]
async fn answers_stream_as_they_come() {
    let (more, next) = tokio::sync::mpsc::unbounded_channel::<&str>();
    let next = Arc::new(Mutex::new(Some(next)));
    let fake = Fake::raw(move |_| {
        let next = next.lock().expect("unpoisoned").take().expect("asked once");
        let pieces =
            stream::unfold(next, |mut next| async { Some((Ok::<_, std::io::Error>(next.recv().await?), next)) });
        Box::pin(async { Body::from_stream(pieces).into_response() })
    })
    .await;
    let answer = Rig::before(&fake).ask("GET", "/ray/logs", &[]).await;
    let mut body = answer.into_body().into_data_stream();
    for piece in ["one", "two"] {
        more.send(piece).expect("it reads");
        assert_eq!(soon(body.next()).await.expect("more").expect("whole"), piece);
    }
    drop(more);
    assert!(body.next().await.is_none());
}

/// Path that MinIO's console refuses to the user of the jobs' keys.
const FORBIDDEN: &str = "/api/v1/admin/info";

/// MinIO's console: one session at a time, which `restart` ends.
struct FakeConsole {
    fake: Fake,
    logins: Arc<AtomicUsize>,
    valid: Arc<AtomicUsize>,
    refuses: Arc<AtomicBool>,
}

impl FakeConsole {
    async fn new(over: StatusCode) -> Self {
        let (logins, valid) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let refuses = Arc::new(AtomicBool::new(false));
        let (l, v, r) = (logins.clone(), valid.clone(), refuses.clone());
        let fake = Fake::new(move |heard| {
            if heard.line() == "POST /api/v1/login" {
                let right = serde_json::json!({ "accessKey": "root", "secretKey": SECRETS[2] });
                let given: serde_json::Value = serde_json::from_slice(&heard.body).expect("JSON");
                assert_eq!(given, right);
                if r.load(Ordering::SeqCst) {
                    return StatusCode::UNAUTHORIZED.into_response();
                }
                let session = l.fetch_add(1, Ordering::SeqCst) + 1;
                v.store(session, Ordering::SeqCst);
                let cookie = format!("token=session-hunter2-{session}; Path=/; HttpOnly");
                return (StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response();
            }
            let right = format!("token=session-hunter2-{}", v.load(Ordering::SeqCst));
            if heard.get("cookie") != [right.as_str()] {
                return (over, "no session").into_response();
            }
            if heard.uri.path() == FORBIDDEN {
                return (over, "not for this user").into_response();
            }
            ([(header::SET_COOKIE, "token=another; Path=/")], "objects").into_response()
        })
        .await;
        Self { fake, logins, valid, refuses }
    }

    fn restart(&self) {
        self.valid.store(usize::MAX, Ordering::SeqCst);
    }

    fn logins(&self) -> usize {
        self.logins.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn the_door_logs_in_to_minio_and_again_when_the_session_ends() {
    for over in [StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED] {
        let console = FakeConsole::new(over).await;
        let rig = Rig::before(&console.fake);
        for path in ["/minio/", "/minio/api/v1/buckets"] {
            let answer = rig.ask("GET", path, &[("cookie", "token=mine")]).await;
            assert!(!answer.headers().contains_key("set-cookie"));
            assert_eq!(text(answer).await, (200, "objects".to_owned()));
        }
        assert_eq!(console.logins(), 1);
        let lines: Vec<_> = console.fake.heard().iter().map(Heard::line).collect();
        assert_eq!(lines, ["POST /api/v1/login", "GET /?cp=y&cpb=/minio/", "GET /api/v1/buckets"]);

        console.restart();
        assert_eq!(text(rig.ask("GET", "/minio/api/v1/x", &[]).await).await.0, 200);
        assert_eq!(console.logins(), 2);
        console.restart();
        assert_eq!(text(rig.ask("DELETE", "/minio/api/v1/x", &[("origin", ORIGIN)]).await).await.0, 200);
        assert_eq!(console.logins(), 3);
        // What has a body is sent once, in a session that is good.
        console.restart();
        assert_eq!(text(rig.post("/minio/api/v1/buckets/b/objects/upload", "data").await).await.0, 200);
        assert_eq!(console.logins(), 4);
        let uploads: Vec<_> = console.fake.heard().into_iter().filter(|h| h.uri.path().ends_with("/upload")).collect();
        assert_eq!(uploads.len(), 1);
        assert_eq!(uploads[0].body, "data");
        // Logging out is nobody's to do for all.
        assert_eq!(text(rig.post("/minio/api/v1/logout", "").await).await.0, 200);
        assert!(console.fake.heard().iter().all(|h| !h.uri.path().contains("logout")));
    }
}

#[tokio::test]
async fn one_login_is_enough_for_all_who_wait_and_a_refused_one_is_not_repeated_for_ever() {
    let console = FakeConsole::new(StatusCode::FORBIDDEN).await;
    let rig = Rig::before(&console.fake);
    let answers = futures_util::future::join_all((0..8).map(|_| rig.ask("GET", "/minio/api/v1/x", &[]))).await;
    assert!(answers.iter().all(|answer| answer.status() == StatusCode::OK));
    assert_eq!(console.logins(), 1);
    console.restart();
    console.refuses.store(true, Ordering::SeqCst);
    let before = console.fake.heard().len();
    let (status, line) = text(rig.ask("GET", "/minio/api/v1/x", &[]).await).await;
    assert_eq!((status, line.as_str()), (502, "MinIO's console refuses labd's own login (401 Unauthorized)\n"));
    assert_eq!(console.fake.heard().len(), before + 3);
}

#[tokio::test]
async fn what_minio_forbids_in_a_good_session_is_asked_once_and_keeps_the_session() {
    for over in [StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED] {
        let console = FakeConsole::new(over).await;
        let rig = Rig::before(&console.fake);
        let answer = rig.ask("GET", &format!("/minio{FORBIDDEN}"), &[]).await;
        assert_eq!(text(answer).await, (over.as_u16(), "not for this user".to_owned()));
        assert_eq!(console.fake.heard().iter().filter(|heard| heard.uri.path() == FORBIDDEN).count(), 1);
        assert_eq!(text(rig.ask("GET", "/minio/api/v1/x", &[]).await).await.0, 200);
        assert_eq!(console.logins(), 1);
    }
}

/// Service that echoes what a WebSocket says, says first with which headers it was opened, and tells when it has gone.
async fn echo() -> (Fake, watch::Receiver<bool>) {
    let (gone_tx, gone) = watch::channel(false);
    let gone_tx = Arc::new(gone_tx);
    let fake = Fake::raw(move |request| {
        let gone = gone_tx.clone();
        Box::pin(async move {
            if request.uri().path() == "/api/v1/login" {
                return (StatusCode::NO_CONTENT, [(header::SET_COOKIE, "token=session-hunter2")]).into_response();
            }
            let opened = ["origin", "cookie", "x-labd-door", "authorization"].map(|name| {
                let all = request.headers().get_all(name).iter().filter_map(|v| v.to_str().ok());
                format!("{name}={}", all.collect::<Vec<_>>().join(","))
            });
            let opened = format!("{} {}", request.uri(), opened.join(" "));
            let upgrade = WebSocketUpgrade::from_request(request, &()).await.expect("a WebSocket");
            upgrade.on_upgrade(move |mut socket| async move {
                let _ = socket.send(Message::Text(opened.into())).await;
                while let Some(Ok(message)) = socket.recv().await {
                    let _ = socket.send(message).await;
                }
                gone.send_replace(true);
            })
        })
    })
    .await;
    (fake, gone)
}

type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

async fn open(address: SocketAddr, path: &str, origin: Option<&str>) -> Result<Socket, u16> {
    let mut request = tungstenite::client::IntoClientRequest::into_client_request(format!("ws://lab:8600{path}"))
        .expect("an address");
    request.headers_mut().insert("cookie", HeaderValue::from_static("labd=session; _xsrf=2|y"));
    request.headers_mut().insert("authorization", HeaderValue::from_static("Bearer mine"));
    if let Some(origin) = origin {
        request.headers_mut().insert("origin", origin.parse().expect("a value"));
    }
    let stream = TcpStream::connect(address).await.expect("it listens");
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(other) => panic!("{other}"),
    }
}

async fn next(socket: &mut Socket) -> String {
    socket.next().await.expect("a message").expect("whole").into_text().expect("text").to_string()
}

#[tokio::test]
async fn websockets_pass_with_the_doors_own_secrets() {
    let (fake, _) = echo().await;
    let rig = Rig::before(&fake);
    let address = rig.listen().await;
    for (path, opened) in [
        ("/ray/ws?x=1", format!("/ws?x=1 origin={ORIGIN} cookie= x-labd-door= authorization=Bearer ray-hunter2")),
        ("/grafana/api/live/ws", {
            format!(
                "/grafana/api/live/ws origin={ORIGIN} cookie= x-labd-door= authorization=Basic YWRtaW46Z3JhZmFuYS1odW50ZXIy"
            )
        }),
        (
            "/minio/ws/watch/b",
            format!("/ws/watch/b origin={ORIGIN} cookie=token=session-hunter2 x-labd-door= authorization="),
        ),
        ("/jupyter/terminals/websocket/1", {
            format!(
                "/jupyter/terminals/websocket/1 origin={ORIGIN} cookie=_xsrf=2|y x-labd-door=jupyter-hunter2 authorization="
            )
        }),
    ] {
        let mut socket = open(address, path, Some(ORIGIN)).await.expect("opens");
        assert_eq!(next(&mut socket).await, opened);
        for word in ["one".to_owned(), "x".repeat(200_000)] {
            futures_util::SinkExt::send(&mut socket, tungstenite::Message::Text(word.clone().into()))
                .await
                .expect("sent");
            assert_eq!(next(&mut socket).await, word);
        }
        assert_eq!(open(address, path, None).await.err(), Some(403));
        assert_eq!(open(address, path, Some("http://lab:8601")).await.err(), Some(403));
    }
}

#[tokio::test]
async fn a_websocket_ends_with_the_session_on_both_sides() {
    let (fake, mut gone) = echo().await;
    let rig = Rig::before(&fake);
    let address = rig.listen().await;
    let mut socket = open(address, "/jupyter/ws", Some(ORIGIN)).await.expect("opens");
    next(&mut socket).await;
    assert!(!*gone.borrow());
    rig.ended.send_replace(true);
    assert!(!matches!(soon(socket.next()).await, Some(Ok(_))), "the client is told nothing more");
    soon(gone.wait_for(|gone| *gone)).await.expect("the service sees it end");
}

#[tokio::test]
async fn a_websocket_ends_with_its_client_and_a_refused_one_is_an_answer() {
    let (fake, mut gone) = echo().await;
    let rig = Rig::before(&fake);
    let address = rig.listen().await;
    let mut socket = open(address, "/jupyter/ws", Some(ORIGIN)).await.expect("opens");
    next(&mut socket).await;
    drop(socket);
    soon(gone.wait_for(|gone| *gone)).await.expect("the service sees it end");

    let fake = Fake::new(|_| (StatusCode::NOT_FOUND, "no such kernel").into_response()).await;
    let rig = Rig::before(&fake);
    assert_eq!(open(rig.listen().await, "/jupyter/ws", Some(ORIGIN)).await.err(), Some(404));
}

#[tokio::test]
async fn no_secret_is_shown() {
    let shown = format!("{:?}", sign_ins());
    assert!(SECRETS.iter().all(|secret| !shown.contains(secret)), "{shown}");
    let rig = Rig::new(Upstreams::default());
    for kind in ALL.iter().map(|up| up.kind) {
        let shown = format!("{:?}", rig.door.sign_in(kind).expect("usable"));
        assert!(!shown.contains("hunter2") && !shown.contains("YWRtaW4"), "{shown}");
    }
    // Every answer that the door gives itself.
    let (dead, console) = (rude(b"").await, FakeConsole::new(StatusCode::FORBIDDEN).await);
    console.refuses.store(true, Ordering::SeqCst);
    for fake in [&dead, &console.fake] {
        let rig = Rig::before(fake);
        for path in ["/ray/", "/grafana/", "/minio/", "/jupyter/", "/prometheus/"] {
            let answer = rig.ask("GET", path, &[]).await;
            let shown = format!("{:?}", answer.headers());
            assert!(!(shown + &text(answer).await.1).contains("hunter2"), "{path}");
        }
    }
}

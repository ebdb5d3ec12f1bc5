//! Second origin: JupyterLab, and the way in. What people write there runs in the visitor's browser with all rights of its
//! origin, so it has one of its own, which serves nothing of labd's: `jupyter.localhost` on the page's port, and a port of its
//! own under every other name.
//!
//! The page asks for a ticket (`POST /api/v1/jupyter/ticket`), and opens `URL#ticket=TICKET` with what it is told. The page there
//! shows the ticket once, and its browser gets a cookie that is good on this origin alone, for as long as the session goes on. The
//! page's own cookie is worth nothing here, nor is this one there, wherever a browser sends them: ports share cookies.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{DefaultBodyLimit, Request, State as From, rejection::JsonRejection},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, uri::Scheme},
    middleware::{self, Next},
    response::{IntoResponse as _, Redirect, Response},
    routing::get,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

use super::{
    ApiError, Shared, State, api, contained, error, host, hurry,
    login::{Address, way, with_cookie},
    tls::OverTls,
    who::{self, Entered, Who, cookie, log_in_first, own_scheme},
};
use crate::{accounts::SESSION_LIFETIME, door, secret::Secret, supervise::DoorView};

/// Path of the way in.
pub(super) const ENTER: &str = "/enter";
/// Refusal of whoever has no visit, or one whose session is over.
pub(super) const NOT_IN: &str = "the session is over, or never came here: open JupyterLab from labd's page";
/// Where JupyterLab begins.
const LAB: &str = "/jupyter/lab";

/// Second origin, as the page leads to it.
#[derive(Clone)]
pub struct Second {
    /// Name of the cookie of a visit, which no lab's page has for its own.
    pub cookie: Arc<str>,
    /// Listener on a port of its own.
    pub listener: watch::Receiver<DoorView>,
}

/// Router of the second origin.
pub fn second_router(state: State) -> Router {
    let host_names = Arc::clone(&state.host_names);
    let paths = door::paths(&state.door, door::Origin::Second);
    let state = Shared(Arc::new(state));
    let visitors = middleware::from_fn_with_state(state.clone(), who::second_visitors);
    let lab = paths.route_layer(visitors);
    let here = Router::new()
        .route(ENTER, get(page).post(enter))
        .layer(DefaultBodyLimit::max(api::SMALL))
        .layer(middleware::from_fn(hurry))
        .route("/enter.js", get(script))
        .route("/", get(|| async { Redirect::to(LAB) }))
        .fallback(error::nothing_here)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(middleware::map_response(headers));
    here.merge(lab)
        .layer(middleware::from_fn(no_workers))
        .layer(middleware::from_fn(contained))
        .with_state(state)
        .layer(middleware::from_fn_with_state(host_names, host::check_second))
}

/// Refuses service workers: one at the root would sit between the browser and everything here.
async fn no_workers(request: Request, next: Next) -> Response {
    if request.headers().contains_key("service-worker") {
        return ApiError::new(
            StatusCode::FORBIDDEN,
            "service workers would outlive the login: pages work without one here",
        )
        .into_response();
    }
    next.run(request).await
}

/// The page's headers, and stricter ones: nothing but its own script, which asks nobody else.
async fn headers(response: Response) -> Response {
    const STRICTER: [(HeaderName, &str); 3] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::CACHE_CONTROL, "no-store"),
        // Whatever comes to be shown here has no hold on the page that opened it.
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    let mut response = super::headers(response).await;
    for (name, value) in STRICTER {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// `GET /enter`: the page that shows the ticket.
async fn page() -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], include_str!("enter.html")).into_response()
}

async fn script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("enter.js")).into_response()
}

/// Body of `POST /enter`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shown {
    ticket: String,
}

/// `POST /enter`: the cookie of a visit, for a ticket.
async fn enter(
    From(state): From<State>,
    from: Option<Extension<Address>>,
    over: OverTls,
    headers: HeaderMap,
    body: Result<Json<Shown>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Some(scheme) = own_scheme(over, &headers) else {
        let text = "its `Origin` is another's, or missing: open JupyterLab from labd's page";
        return Err(ApiError::new(StatusCode::FORBIDDEN, text));
    };
    let bad = |_| ApiError::new(StatusCode::BAD_REQUEST, "the body must be {\"ticket\": ...}");
    let Json(Shown { ticket }) = body.map_err(bad)?;
    let name = over.cookie(&state.second.cookie);
    cookie(&headers, &name)?;
    let value = state.accounts.enter(&Secret::new(ticket), way(from, over))?;
    let answer = Json(json!({ "message": "welcome" })).into_response();
    Ok(with_cookie(answer, &name, value.expose(), SESSION_LIFETIME, scheme == Scheme::HTTPS))
}

/// Ticket to the second origin.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Ticket")]
pub(super) struct TicketView {
    /// Address to open, with `#ticket=` and the ticket behind it.
    url: String,
    /// The ticket, which is good once.
    ticket: String,
}

/// `POST /api/v1/jupyter/ticket`, on the page's origin: a ticket of the session that asks, and where to show it.
pub(super) async fn ticket(
    From(state): From<State>,
    Extension(who): Extension<Who>,
    entered: Option<Extension<Entered>>,
    over: OverTls,
    headers: HeaderMap,
) -> Result<Json<TicketView>, ApiError> {
    let (Some(Extension(entered)), Some(scheme)) = (entered, own_scheme(over, &headers)) else {
        return Err(log_in_first());
    };
    let named = headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let listener = state.second.listener.borrow().clone();
    let origin = host::second_origin(&scheme, named, listener.port).ok_or_else(|| {
        let why = listener
            .trouble
            .unwrap_or_else(|| "JupyterLab is switched off: `services.jupyter.enabled = true` in labd.toml".to_owned());
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why)
    })?;
    let ticket = state.accounts.ticket(&entered.cookie).ok_or_else(log_in_first)?;
    state.asked(&who, Some("jupyter"), "open");
    Ok(Json(TicketView { url: format!("{origin}{ENTER}"), ticket: ticket.expose().to_owned() }))
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, SocketAddr},
        time::Duration,
    };

    use axum::{
        body::{Body, to_bytes},
        extract::ws::WebSocketUpgrade,
        http::Request as Asked,
        routing::any,
    };
    use bytes::Bytes;
    use futures_util::{StreamExt as _, stream};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest as _};
    use tower::ServiceExt as _;

    use super::*;
    use crate::{
        accounts::Role,
        door::{Door, SignIns, Upstreams},
        http::{
            admin_router, public_router,
            testing::{Lab, status_and_text},
        },
    };

    const HERE: &str = "jupyter.localhost:8600";
    const OWN: (&str, &str) = ("origin", "http://jupyter.localhost:8600");
    const PAGES: (&str, &str) = ("origin", "http://localhost:8600");

    async fn sent(
        router: Router,
        method: &str,
        host: &str,
        path: &str,
        lines: &[(&'static str, &str)],
        body: String,
    ) -> Response {
        let mut request = Asked::builder().method(method).uri(path).header("host", host);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        router.oneshot(request.body(Body::from(body)).expect("a request")).await.expect("routers do not fail")
    }

    async fn got(lab: &Lab, host: &str, path: &str, lines: &[(&'static str, &str)]) -> u16 {
        sent(public_router(lab.state.clone()), "GET", host, path, lines, String::new()).await.status().as_u16()
    }

    /// Asks for a ticket as the page does.
    async fn asked(lab: &Lab, host: &str, (cookie, csrf): &(String, String)) -> (u16, serde_json::Value) {
        let origin = format!("http://{host}");
        let lines = [("origin", origin.as_str()), ("cookie", cookie.as_str()), ("x-labd-csrf", csrf.as_str())];
        let router = public_router(lab.state.clone());
        let answer = sent(router, "POST", host, "/api/v1/jupyter/ticket", &lines, String::new()).await;
        let (status, text) = status_and_text(answer).await;
        (status.as_u16(), serde_json::from_str(&text).expect("JSON"))
    }

    async fn shown(lab: &Lab, ticket: &str, lines: &[(&'static str, &str)]) -> Response {
        let lines = [&[("content-type", "application/json")], lines].concat();
        let body = json!({ "ticket": ticket }).to_string();
        sent(public_router(lab.state.clone()), "POST", HERE, ENTER, &lines, body).await
    }

    /// Cookie of a visit of this session.
    async fn entered(lab: &Lab, session: &(String, String)) -> String {
        let (status, told) = asked(lab, "localhost:8600", session).await;
        assert_eq!((status, &told["url"]), (200, &json!("http://jupyter.localhost:8600/enter")));
        let answer = shown(lab, told["ticket"].as_str().expect("one"), &[OWN]).await;
        assert_eq!(answer.status(), 200);
        let set = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
        assert!(set.ends_with("; Path=/; HttpOnly; SameSite=Strict; Max-Age=604800"), "{set}");
        set.split(';').next().expect("a pair").to_owned()
    }

    /// Status of whoever was let through to JupyterLab, which is not there.
    const THROUGH: u16 = 503;

    #[tokio::test]
    async fn each_origin_answers_its_own_and_nothing_of_the_other() {
        let lab = Lab::new();
        let of_labd =
            ["/api/v1/snapshot", "/api/v1/me", "/metrics", "/healthz", "/app.js", "/ray/", "/minio/", "/grafana/"];
        for host in ["jupyter.localhost:8600", "JUPYTER.localhost", "jupyter.localhost.:8600", "jupyter.localhost:9"] {
            for path in of_labd {
                assert_eq!(got(&lab, host, path, &[]).await, 404, "{host} {path}");
            }
            for (path, status) in
                [("/", 303), ("/enter", 200), ("/enter.js", 200), ("/jupyter/lab", 401), ("/jupyter", 401)]
            {
                assert_eq!(got(&lab, host, path, &[]).await, status, "{host} {path}");
            }
        }
        for host in ["localhost:8600", "labd.localhost:8600", "127.0.0.1:8600", "192.0.2.7"] {
            for path in ["/jupyter", "/jupyter/", "/jupyter/lab", "/jupyter/api/kernels", "/enter", "/enter.js"] {
                assert_eq!(got(&lab, host, path, &[]).await, 404, "{host} {path}");
            }
            assert_eq!(got(&lab, host, "/", &[]).await, 200, "{host}");
        }
        for host in ["x.jupyter.localhost:8600", "a.b.jupyter.localhost", "jupyter.localhost.evil.example", "jupyter"] {
            for path in ["/", "/api/v1/snapshot", "/enter", "/jupyter/lab"] {
                assert_eq!(got(&lab, host, path, &[]).await, 403, "{host} {path}");
            }
        }
        // Wherever it is named, none of it is the page's.
        assert_eq!(got(&lab, "localhost:8600", "http://jupyter.localhost:8600/api/v1/snapshot", &[]).await, 404);
        assert_eq!(got(&lab, "jupyter.localhost:8600", "http://localhost:8600/api/v1/snapshot", &[]).await, 404);
        assert_eq!(got(&lab, "localhost:8600", "/api/v1/snapshot", &[("host", HERE)]).await, 404);
    }

    #[tokio::test]
    async fn its_own_port_knows_the_pages_names_and_no_others() {
        let lab = Lab::new();
        for (host, status) in [
            ("localhost:8601", 200),
            ("192.0.2.7:8601", 200),
            ("[::1]:8601", 200),
            ("jupyter.localhost:8601", 200),
            ("x.jupyter.localhost:8601", 403),
            ("evil.example:8601", 403),
        ] {
            let answer = sent(second_router(lab.state.clone()), "GET", host, ENTER, &[], String::new()).await;
            assert_eq!(answer.status(), status, "{host}");
        }
        let router = second_router(lab.state.clone());
        let answer = sent(router, "GET", "192.0.2.7:8601", "/api/v1/snapshot", &[], String::new()).await;
        assert_eq!(answer.status(), 404);
    }

    #[tokio::test]
    async fn the_way_in_is_shown_to_nobody_and_embedded_by_nobody() {
        let lab = Lab::new();
        for path in [ENTER, "/enter.js"] {
            let answer = sent(public_router(lab.state.clone()), "GET", HERE, path, &[], String::new()).await;
            let policy = answer.headers()["content-security-policy"].to_str().expect("text");
            assert!(
                policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
                "{policy}"
            );
            assert_eq!(answer.headers()["referrer-policy"], "no-referrer");
            assert_eq!(answer.headers()["cache-control"], "no-store");
            assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
            assert_eq!(answer.headers()["cross-origin-opener-policy"], "same-origin");
            assert_eq!(got(&lab, HERE, path, &[("service-worker", "script")]).await, 403);
        }
        assert!(!include_str!("enter.html").contains("<script>"));
        let router = public_router(lab.state.clone());
        let answer = sent(router, "GET", HERE, "/jupyter/lab", &[("accept", "text/html")], String::new()).await;
        assert_eq!((answer.status().as_u16(), &answer.headers()["location"]), (303, &HeaderValue::from_static(ENTER)));
    }

    #[tokio::test]
    async fn a_ticket_is_an_admins_and_the_pages() {
        let lab = Lab::new();
        let (admin, viewer) = (lab.log_in(Role::Admin).await, lab.log_in(Role::Viewer).await);
        let (status, told) = asked(&lab, "localhost:8600", &viewer).await;
        assert!(status == 403 && told["error"].as_str().expect("a line").contains("may look"), "{told}");
        assert_eq!(asked(&lab, "localhost:8600", &(String::new(), String::new())).await.0, 401);
        assert_eq!(asked(&lab, "localhost:8600", &(admin.0.clone(), "0".repeat(64))).await.0, 403);
        let lines = [("cookie", admin.0.as_str()), ("x-labd-csrf", admin.1.as_str()), OWN];
        for (host, lines) in [("localhost:8600", &lines[..]), ("localhost:8600", &lines[..2])] {
            let router = public_router(lab.state.clone());
            let answer = sent(router, "POST", host, "/api/v1/jupyter/ticket", lines, String::new()).await;
            assert_eq!(answer.status(), 403);
        }
        let router = admin_router(lab.state.clone());
        let answer = sent(router, "POST", "labd", "/api/v1/jupyter/ticket", &[], String::new()).await;
        assert_eq!(answer.status(), 404, "nobody's session is on the socket");

        for (host, url) in [
            ("localhost:9000", "http://jupyter.localhost:9000/enter"),
            ("labd.localhost", "http://jupyter.localhost/enter"),
            ("127.0.0.1:8600", "http://127.0.0.1:8601/enter"),
            ("192.0.2.7:8600", "http://192.0.2.7:8601/enter"),
            ("[::1]:8600", "http://[::1]:8601/enter"),
        ] {
            let (status, told) = asked(&lab, host, &admin).await;
            assert_eq!((status, &told["url"]), (200, &json!(url)), "{host}");
            assert!(!url.contains(told["ticket"].as_str().expect("one")));
        }
    }

    #[tokio::test]
    async fn without_a_port_of_its_own_it_is_there_for_localhost_alone_and_says_why() {
        let mut lab = Lab::new();
        let trouble = DoorView { port: None, trouble: Some("port 8601 is taken; set `http.jupyter_port`".into()) };
        lab.state.second.listener = watch::channel(trouble).1;
        let admin = lab.log_in(Role::Admin).await;
        assert_eq!(asked(&lab, "localhost:8600", &admin).await.0, 200);
        let (status, told) = asked(&lab, "192.0.2.7:8600", &admin).await;
        assert!(status == 503 && told["error"].as_str().expect("a line").contains("jupyter_port"), "{told}");
    }

    #[tokio::test]
    async fn a_ticket_is_good_once_and_from_this_origin_alone() {
        let lab = Lab::new();
        let admin = lab.log_in(Role::Admin).await;
        let ticket = asked(&lab, "localhost:8600", &admin).await.1["ticket"].as_str().expect("one").to_owned();
        let foreign = [
            &[][..],
            &[PAGES],
            &[("origin", "null")],
            &[OWN, ("sec-fetch-site", "cross-site")],
            &[OWN, ("sec-fetch-site", "same-site")],
        ];
        for lines in foreign {
            assert_eq!(shown(&lab, &ticket, lines).await.status(), 403, "{lines:?}");
        }
        assert_eq!(shown(&lab, &"0".repeat(64), &[OWN]).await.status(), 401);
        let form = [OWN, ("content-type", "application/x-www-form-urlencoded")];
        let answer =
            sent(public_router(lab.state.clone()), "POST", HERE, ENTER, &form, format!("ticket={ticket}")).await;
        assert_eq!(answer.status(), 400);
        let name = &lab.state.second.cookie;
        let planted = format!("{name}=planted; {name}=mine");
        let answer = shown(&lab, &ticket, &[OWN, ("cookie", &planted)]).await;
        assert_eq!(answer.status(), 400, "which of the two it would have is not said");
        assert_eq!(shown(&lab, &ticket, &[OWN]).await.status(), 200);
        let (status, text) = status_and_text(shown(&lab, &ticket, &[OWN]).await).await;
        assert!(status == 401 && text.contains("from labd's page again") && !text.contains(&ticket), "{text}");
        // Neither is a page's link one, nor the other way round.
        let link = lab.state.accounts.link(crate::accounts::Person { name: "a".into(), role: Role::Admin });
        assert_eq!(shown(&lab, link.expose(), &[OWN]).await.status(), 401);
        let ticket = lab.state.accounts.ticket(admin.0.split_once('=').expect("a pair").1).expect("goes on");
        assert!(lab.state.accounts.log_in_by_link(&ticket, IpAddr::from([127, 0, 0, 1]).into()).await.is_err());
    }

    #[tokio::test]
    async fn a_cookie_that_came_over_tls_goes_back_over_nothing_else() {
        let lab = Lab::new();
        let admin = lab.log_in(Role::Admin).await;
        let ticket = asked(&lab, "localhost:8600", &admin).await.1["ticket"].as_str().expect("one").to_owned();
        let answer = shown(&lab, &ticket, &[("origin", "https://jupyter.localhost:8600")]).await;
        assert!(answer.headers()["set-cookie"].to_str().expect("text").ends_with("; Max-Age=604800; Secure"));
    }

    #[tokio::test]
    async fn guessing_tickets_is_slowed_down() {
        let lab = Lab::new();
        let from: IpAddr = [192, 0, 2, 9].into();
        let guesses: Vec<_> = (0..30).map(|_| lab.state.accounts.enter(&Secret::new("guess"), from.into())).collect();
        let too_many = |guess: &Result<Secret, _>| matches!(guess, Err(crate::accounts::LoginError::TooMany { .. }));
        assert!(!too_many(&guesses[0]) && too_many(&guesses[29]));
        let admin = lab.log_in(Role::Admin).await;
        let ticket = lab.state.accounts.ticket(admin.0.split_once('=').expect("a pair").1).expect("goes on");
        assert!(lab.state.accounts.enter(&ticket, from.into()).is_ok(), "who has one is let in");
    }

    #[tokio::test]
    async fn a_cookie_of_one_origin_is_worth_nothing_on_the_other() {
        let lab = Lab::new().closed();
        let admin = lab.log_in(Role::Admin).await;
        let visit = entered(&lab, &admin).await;
        assert_eq!(got(&lab, HERE, "/jupyter/lab", &[("cookie", &visit)]).await, THROUGH);
        assert_eq!(got(&lab, "localhost:8600", "/api/v1/snapshot", &[("cookie", &admin.0)]).await, 200);
        let value = |pair: &str| pair.split_once('=').expect("a pair").1.to_owned();
        let (page, second) = (&lab.state.cookie, &lab.state.second.cookie);
        assert!(!second.starts_with("labd-"), "no lab's page has it for its own");
        for cookie in [admin.0.clone(), format!("{second}={}", value(&admin.0)), format!("{page}={}", value(&visit))] {
            assert_eq!(got(&lab, HERE, "/jupyter/lab", &[("cookie", &cookie)]).await, 401, "{cookie}");
        }
        for cookie in [visit.clone(), format!("{page}={}", value(&visit)), format!("{second}={}", value(&admin.0))] {
            assert_eq!(got(&lab, "localhost:8600", "/api/v1/snapshot", &[("cookie", &cookie)]).await, 401, "{cookie}");
        }
        assert_eq!(got(&lab, HERE, "/jupyter/lab", &[("cookie", &format!("{visit}; {visit}"))]).await, 400);
        let twice = format!("{0}; {0}", admin.0);
        assert_eq!(got(&lab, "localhost:8600", "/api/v1/snapshot", &[("cookie", &twice)]).await, 400);
        // Ports share cookies: that of the other may come along.
        assert_eq!(got(&lab, HERE, "/jupyter/lab", &[("cookie", &format!("{}; {visit}", admin.0))]).await, THROUGH);
    }

    #[tokio::test]
    async fn paths_lead_nowhere_else() {
        let lab = Lab::new();
        let visit = entered(&lab, &lab.log_in(Role::Admin).await).await;
        for (path, status) in [
            ("/jupyter/../enter", 400),
            ("/jupyter/%2e%2e/enter", 400),
            ("/jupyter//api", 400),
            ("/jupyter/..%2fapi", 400),
            ("/jupyter/%5c..", 400),
            ("/%6aupyter/lab", 404),
            ("//jupyter/lab", 404),
            ("/jupyterx", 404),
            ("/jupyter", 307),
            ("/jupyter/files/a%2Fb", THROUGH),
        ] {
            assert_eq!(got(&lab, HERE, path, &[("cookie", &visit)]).await, status, "{path}");
        }
        for lines in [&[("cookie", visit.as_str())][..], &[("cookie", visit.as_str()), PAGES]] {
            let router = public_router(lab.state.clone());
            let answer = sent(router, "POST", HERE, "/jupyter/api/kernels", lines, String::new()).await;
            assert_eq!(answer.status(), 403, "what acts comes from a page of this origin");
        }
    }

    #[tokio::test]
    async fn a_visit_ends_with_its_session_and_is_an_admins() {
        let lab = Lab::new();
        let (first, second) = (lab.log_in(Role::Admin).await, lab.log_in(Role::Admin).await);
        let visits = (entered(&lab, &first).await, entered(&lab, &second).await);
        let ticket = asked(&lab, "localhost:8600", &first).await.1["ticket"].as_str().expect("one").to_owned();
        let lines = [PAGES, ("cookie", first.0.as_str())];
        let router = public_router(lab.state.clone());
        let answer = sent(router, "POST", "localhost:8600", "/api/v1/logout", &lines, String::new()).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(got(&lab, HERE, "/jupyter/lab", &[("cookie", &visits.0)]).await, 401);
        assert_eq!(shown(&lab, &ticket, &[OWN]).await.status(), 401, "nor does its ticket begin one");
        assert!(lab.state.accounts.ticket(first.0.split_once('=').expect("a pair").1).is_none(), "nor has it another");
        assert_eq!(got(&lab, HERE, "/jupyter/lab", &[("cookie", &visits.1)]).await, THROUGH);
        lab.state.accounts.end_all("a admin").await.expect("written");
        assert_eq!(got(&lab, HERE, "/jupyter/lab", &[("cookie", &visits.1)]).await, 401);

        let viewer = lab.log_in(Role::Viewer).await;
        let ticket = lab.state.accounts.ticket(viewer.0.split_once('=').expect("a pair").1).expect("goes on");
        let visit = lab.state.accounts.enter(&ticket, IpAddr::from([127, 0, 0, 1]).into()).expect("good once");
        let visit = format!("{}={}", lab.state.second.cookie, visit.expose());
        assert_eq!(got(&lab, HERE, "/jupyter/lab", &[("cookie", &visit)]).await, 403);
    }

    async fn listening(router: Router) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    #[tokio::test]
    async fn a_kernels_websocket_and_a_stream_end_with_the_session() {
        let kernel = any(|upgrade: WebSocketUpgrade| async move {
            upgrade.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
        });
        let stream = any(|| async { Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()) });
        let jupyter = listening(Router::new().route("/jupyter/ws", kernel).route("/jupyter/stream", stream)).await;
        let mut lab = Lab::new();
        let (_tell, upstreams) = watch::channel(Arc::new(Upstreams { jupyter: Some(jupyter), ..Upstreams::default() }));
        lab.state.door = Door::new(upstreams, SignIns::none());
        let admin = lab.log_in(Role::Admin).await;
        let visit = entered(&lab, &admin).await;
        let lines = [("cookie", visit.as_str())];
        let answer =
            sent(public_router(lab.state.clone()), "GET", HERE, "/jupyter/stream", &lines, String::new()).await;
        assert_eq!(answer.status(), 200);
        let page = listening(public_router(lab.state.clone())).await;
        let open = async |cookie: &str| {
            let mut request = format!("ws://{HERE}/jupyter/ws").into_client_request().expect("an address");
            request.headers_mut().insert("origin", OWN.1.parse().expect("a value"));
            request.headers_mut().insert("cookie", cookie.parse().expect("a value"));
            tokio_tungstenite::client_async(request, TcpStream::connect(page).await.expect("it listens")).await
        };
        let refused = open(&admin.0).await.expect_err("the page's cookie opens nothing here");
        assert!(matches!(refused, tungstenite::Error::Http(answer) if answer.status() == 401));
        let (mut socket, _) = open(&visit).await.expect("opens");
        tokio::time::pause();
        lab.state.accounts.log_out(admin.0.split_once('=').expect("a pair").1).await.expect("written");
        let end = tokio::time::timeout(Duration::from_hours(1), socket.next()).await.expect("it ends");
        assert!(!matches!(end, Some(Ok(_))), "and not with a word of the kernel's");
        let rest = tokio::time::timeout(Duration::from_hours(1), to_bytes(answer.into_body(), 1)).await;
        assert!(rest.expect("a stream ends, too").is_ok_and(|rest| rest.is_empty()));
    }
}

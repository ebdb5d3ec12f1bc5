//! `GET /api/v1/dashboards/{uid}`: labd's dashboard or one of Ray's own for Grafana, as far as charts need it. And `/grafana/` where no
//! Grafana answers: the panels that Ray's dashboard embeds, drawn by labd from what Prometheus has.
//!
//! Ray's dashboard asks a Grafana two things: whether it is there, and pages with one panel (`/d-solo/`) or all (`/d/`) of
//! a dashboard. Its images cannot be had everywhere, and it lets only admins in, since the door is its administrator.

use axum::{
    Extension, Json,
    extract::{Request, State as From},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Redirect, Response},
};

use futures_util::future::BoxFuture;

use super::{
    ApiError, State, assets,
    extract::Path,
    headers,
    turn::{Turn, worked_out},
};
use crate::{
    door::{Admission, Kind},
    ray::dashboards::{ALL, Dashboard, HEALTHY, LARGEST},
    services::{
        grafana,
        ray_head::{DASHBOARDS, DEF as HEAD},
    },
};

/// Id of labd's own dashboard.
const LABD: &str = "labd";
/// Policy for pages that another page of this origin may show within itself.
const EMBEDDED: HeaderValue =
    HeaderValue::from_static("default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'");

/// Source of files that services write.
pub trait FileSource: Send + Sync + 'static {
    /// Content of a file in a service's container. An `Err` is one line for a person; more than `largest` bytes are one.
    fn file(&self, service: &str, path: &str, largest: usize) -> BoxFuture<'static, Result<Vec<u8>, String>>;
}

/// One dashboard.
pub(super) async fn get(
    From(state): From<State>,
    Path(uid): Path<String>,
    turn: Turn,
) -> Result<Json<Dashboard>, ApiError> {
    let file = if uid == LABD {
        grafana::LABD.into()
    } else {
        let Some(source) = ALL.iter().find(|source| source.uid == uid) else {
            let known: Vec<&str> = ALL.iter().map(|source| source.uid).chain([LABD]).collect();
            let text = format!("no dashboard `{}`; there are: {}", uid.escape_default(), known.join(", "));
            return Err(ApiError::new(StatusCode::NOT_FOUND, text));
        };
        let path = format!("{DASHBOARDS}/{}", source.file);
        state.files.file(HEAD.name(), &path, LARGEST).await.map_err(unread)?
    };
    // The largest has half a megabyte.
    worked_out(turn, move || Dashboard::parse(&file)).await?.map(Json).map_err(unread)
}

fn unread(text: String) -> ApiError {
    ApiError::new(StatusCode::BAD_GATEWAY, text)
}

/// Answers for Grafana where it is not there, or not for whoever asks; below the check that somebody logged in.
pub(super) async fn instead_of_grafana(
    From(state): From<State>,
    Extension(admission): Extension<Admission>,
    request: Request,
    next: Next,
) -> Response {
    let Some(path) = request.uri().path().strip_prefix("/grafana/") else {
        return next.run(request).await;
    };
    if admission.admin && state.door.is_there(Kind::Grafana) {
        return next.run(request).await;
    }
    let mut answer = headers(ours(path, &request)).await;
    // A browser takes over what it hears with "not modified", too.
    if answer.status().is_success() || answer.status() == StatusCode::NOT_MODIFIED {
        answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, EMBEDDED);
    }
    answer
}

fn ours(path: &str, request: &Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = "labd draws Ray's panels here, and takes nothing";
        return ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text).into_response();
    }
    match path.split('/').next() {
        Some("d-solo" | "d") => assets::panel(request.headers()),
        Some("api") if path == "api/health" => ([(header::CONTENT_TYPE, "application/json")], HEALTHY).into_response(),
        // Where Ray's links to Grafana lead.
        Some("" | "dashboards") => Redirect::temporary("/#/metrics").into_response(),
        _ => {
            let text = "labd draws Ray's panels here, since no Grafana answers you; there is nothing else";
            ApiError::new(StatusCode::NOT_FOUND, text).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::{body::Body, http::Request as Asked};
    use futures_util::FutureExt as _;
    use tokio::sync::watch;
    use tower::ServiceExt as _;

    use super::*;
    use crate::{
        accounts::Role,
        door::{Door, SignIns, Upstreams},
        http::{
            admin_router, public_router,
            testing::{Lab, ask, status_and_text},
        },
    };

    struct Head;

    impl FileSource for Head {
        fn file(&self, service: &str, path: &str, _: usize) -> BoxFuture<'static, Result<Vec<u8>, String>> {
            let told = match (service, path) {
                ("ray-head", "/dashboards/default_grafana_dashboard.json") => {
                    Ok(include_bytes!("../../tests/data/ray-2.60-default-dashboard.json").to_vec())
                }
                ("ray-head", "/dashboards/data_grafana_dashboard.json") => Ok(b"{}".to_vec()),
                _ => Err(format!("{service} has not written {path} yet; try again in a moment")),
            };
            std::future::ready(told).boxed()
        }
    }

    fn lab() -> Lab {
        let mut lab = Lab::new().closed();
        lab.state.files = Arc::new(Head);
        lab
    }

    #[tokio::test]
    async fn a_dashboard_is_told_as_the_head_wrote_it_and_what_is_none_in_one_line() {
        let lab = lab();
        for (uid, status, part) in [
            ("rayDefaultDashboard", 200, r#"{"id":41,"title":"Cluster Utilization","about":"Aggregated"#),
            ("labd", 200, r#"{"title":"labd","variables""#),
            ("rayDataDashboard", 502, "written in another way"),
            ("rayTrainDashboard", 502, "ray-head has not written /dashboards/train_grafana_dashboard.json yet"),
            ("x%0Ay", 404, r"no dashboard `x\\ny`; there are: rayDefaultDashboard, rayTrainDashboard"),
        ] {
            let path = format!("/api/v1/dashboards/{uid}");
            let (got, text) = status_and_text(ask(admin_router(lab.state.clone()), "GET", &path).await).await;
            assert!(got == status && text.contains(part), "{uid}: {got} {text}");
        }
    }

    async fn answer(lab: &Lab, method: &str, path: &str, cookie: &str) -> (u16, Option<String>, String) {
        let request =
            Asked::builder().method(method).uri(path).header("host", "localhost:8600").header("cookie", cookie);
        let request = request.header("origin", "http://localhost:8600").body(Body::empty()).expect("a request");
        let answer = public_router(lab.state.clone()).oneshot(request).await.expect("routers do not fail");
        let policy = answer.headers().get("content-security-policy").map(|v| v.to_str().expect("text").to_owned());
        let (status, text) = status_and_text(answer).await;
        (status.as_u16(), policy, text)
    }

    #[tokio::test]
    async fn a_panel_that_the_browser_knows_may_be_embedded_as_before() {
        let lab = lab();
        let viewer = lab.log_in(Role::Viewer).await.0;
        let ask = async |tag: &str| {
            let request =
                Asked::builder().uri("/grafana/d-solo/rayDefaultDashboard/x").header("host", "localhost:8600");
            let request = request.header("cookie", &viewer).header("if-none-match", tag);
            let request = request.body(Body::empty()).expect("a request");
            public_router(lab.state.clone()).oneshot(request).await.expect("routers do not fail")
        };
        let first = ask("\"x\"").await;
        let again = ask(first.headers()["etag"].to_str().expect("text")).await;
        assert_eq!((first.status().as_u16(), again.status().as_u16()), (200, 304));
        assert_eq!(again.headers()["content-security-policy"], EMBEDDED);
    }

    #[tokio::test]
    async fn what_ray_embeds_of_grafana_is_labds_where_no_grafana_answers() {
        let mut lab = lab();
        let panel = "/grafana/d-solo/rayDefaultDashboard/x?panelId=41&theme=dark";
        assert_eq!(answer(&lab, "GET", panel, "").await.0, 401);
        let (admin, viewer) = (lab.log_in(Role::Admin).await.0, lab.log_in(Role::Viewer).await.0);
        for cookie in [&admin, &viewer] {
            let (status, policy, text) = answer(&lab, "GET", panel, cookie).await;
            assert!(status == 200 && text.contains("/js/panel.js"), "{status} {text}");
            assert!(policy.is_some_and(|policy| policy.contains("frame-ancestors 'self'")));
            assert_eq!(answer(&lab, "GET", "/grafana/api/health", cookie).await.2, HEALTHY);
            assert_eq!(answer(&lab, "GET", "/grafana/d/rayTrainDashboard/", cookie).await.0, 200);
            assert_eq!(answer(&lab, "GET", "/grafana/", cookie).await.0, 307);
            for (method, path, status) in [
                ("GET", "/grafana/api/admin/settings", 404),
                ("GET", "/grafana/d-soloist/x", 404),
                ("POST", panel, 405),
            ] {
                let (got, policy, _) = answer(&lab, method, path, cookie).await;
                assert_eq!(got, status, "{method} {path}");
                assert!(policy.is_some_and(|policy| policy.contains("frame-ancestors 'none'")));
            }
        }
        // A Grafana that is there answers its administrator, which the door is; there it is nobody who answers.
        let gone = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
        let upstreams = Upstreams { grafana: Some(gone), ..Upstreams::default() };
        lab.state.door = Door::new(watch::channel(Arc::new(upstreams)).1, SignIns::none());
        assert_eq!(answer(&lab, "GET", panel, &admin).await.0, 503);
        assert_eq!(answer(&lab, "GET", panel, &viewer).await.0, 200);
    }

    #[test]
    fn labds_dashboard_asks_for_what_labd_tells() {
        let told = include_str!("../../tests/data/golden/metrics.txt");
        let names: std::collections::BTreeSet<&str> =
            told.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split(['{', ' ']).next()).collect();
        let dashboard = Dashboard::parse(grafana::LABD.as_bytes()).expect("a dashboard");
        let mut ids = std::collections::BTreeSet::new();
        for panel in dashboard.rows.iter().flat_map(|row| &row.panels) {
            assert!(ids.insert(panel.id) && !panel.queries.is_empty(), "{}", panel.title);
            for query in &panel.queries {
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let asked = query.expr.split(|c| !is_name(c)).filter(|word| word.starts_with("labd_"));
                assert!(asked.clone().count() > 0, "{}", query.expr);
                // The golden lab has no run that was looked at.
                let is_told = |name: &str| names.contains(name) || name.starts_with("labd_run_checkpoint");
                assert!(asked.clone().all(is_told), "{}", query.expr);
            }
        }
    }
}

//! Listeners of labd beside its socket: the page, its second origin, the scrapes, the front door on the host and for the
//! relay. Each is tried again for as long as its address is taken or not there.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum::{extract::Request, middleware::map_request};
use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    config::Config,
    engine::{EngineError, docker::DockerEngine},
    http::{self, FileSource, LogSource, Secured},
    services,
    supervise::{DoorView, Scrapes},
    time::Timestamp,
};

/// Time between two tries to listen where it was not possible: on the lab's network, which exists once its first
/// container does, and at a taken port.
const LISTEN_RETRY: Duration = Duration::from_secs(2);

/// Waits until a listener should be tried again. Returns whether the daemon ends before that.
async fn ends_before_retry(stopped: &watch::Receiver<bool>) -> bool {
    let mut stop = stopped.clone();
    tokio::time::timeout(LISTEN_RETRY, stop.wait_for(|stop| *stop)).await.is_ok()
}

/// Router for Prometheus, which tells when it was asked last.
pub(super) fn scrapes(state: http::State, tell: watch::Sender<Scrapes>) -> axum::Router {
    let asked = move |request: Request| {
        tell.send_modify(|scrapes| scrapes.last = Some(Timestamp::now()));
        std::future::ready(request)
    };
    http::scrape_router(state).layer(map_request(asked))
}

/// Serves metrics where Prometheus reaches labd: on the host's address in the lab's network. Only `known` peers are
/// heard.
pub(super) async fn serve_scrapes(
    addr: SocketAddr,
    known: Vec<IpAddr>,
    state: http::State,
    tell: watch::Sender<Scrapes>,
    stopped: watch::Receiver<bool>,
) {
    let router = scrapes(state, tell);
    loop {
        // Not there before the network is, and gone with it: both are ordinary.
        if let Ok(listener) = http::bind_tcp(addr, "lab.page").await {
            http::serve_tcp_to(known.clone(), listener, router.clone(), stopped.clone()).await;
        }
        if ends_before_retry(&stopped).await {
            return;
        }
    }
}

/// Serves the status page. A taken port is reported and tried again: everything else of the lab works without it.
pub(super) async fn serve_page(
    addr: SocketAddr,
    secured: Secured,
    trouble: watch::Sender<Option<String>>,
    stopped: watch::Receiver<bool>,
) {
    loop {
        match http::bind_tcp(addr, "lab.page").await {
            Ok(listener) => {
                trouble.send_replace(None);
                http::serve_secured(listener, secured.clone(), stopped.clone()).await;
            }
            Err(error) => {
                if trouble.send_replace(Some(error.to_string())).is_none() {
                    tracing::error!("{error}");
                }
            }
        }
        if ends_before_retry(&stopped).await {
            return;
        }
    }
}

/// Serves the front door on the host, where the dashboard's port is published; moves when a reload says so. A taken
/// port is reported and tried again: everything else of the lab works without it.
pub(super) async fn serve_door(
    mut configs: watch::Receiver<Arc<Config>>,
    router: axum::Router,
    view: watch::Sender<DoorView>,
    stopped: watch::Receiver<bool>,
) {
    let serve = |listener| http::serve_tcp(listener, router.clone(), stopped.clone());
    serve_where_wanted(&mut configs, |config| Some(door_address(config)), "ports.dashboard", serve, view, &stopped)
        .await;
}

/// Serves the page's second origin on a port of its own while JupyterLab is switched on; moves when a reload says so. Under the
/// page's port it is there in any case.
pub(super) async fn serve_second(
    mut configs: watch::Receiver<Arc<Config>>,
    secured: Secured,
    view: watch::Sender<DoorView>,
    stopped: watch::Receiver<bool>,
) {
    let serve = |listener| http::serve_secured(listener, secured.clone(), stopped.clone());
    serve_where_wanted(&mut configs, second_address, "http.jupyter_port", serve, view, &stopped).await;
}

fn second_address(config: &Config) -> Option<SocketAddr> {
    let is_on = services::jupyter::DEF.is_enabled(config);
    is_on.then(|| SocketAddr::new(config.lab.page.ip(), config.http.jupyter_port))
}

/// Serves at an address that follows from the configuration, and nowhere while there is none.
async fn serve_where_wanted<F: Future<Output = ()>>(
    configs: &mut watch::Receiver<Arc<Config>>,
    address: fn(&Config) -> Option<SocketAddr>,
    setting: &str,
    serve: impl Fn(TcpListener) -> F,
    view: watch::Sender<DoorView>,
    stopped: &watch::Receiver<bool>,
) {
    loop {
        let wanted = address(&configs.borrow_and_update());
        let Some(at) = wanted else {
            view.send_replace(DoorView::default());
            tokio::select! {
                () = moved(configs, address, wanted) => continue,
                () = ended(stopped) => return,
            }
        };
        match http::bind_tcp(at, setting).await {
            Ok(listener) => {
                view.send_replace(DoorView { port: listener.local_addr().ok().map(|a| a.port()), trouble: None });
                tokio::select! {
                    () = serve(listener) => {}
                    () = moved(configs, address, wanted) => continue,
                }
            }
            Err(e) => {
                view.send_replace(DoorView { port: None, trouble: Some(e.to_string()) });
            }
        }
        if ends_before_retry(stopped).await {
            return;
        }
    }
}

async fn ended(stopped: &watch::Receiver<bool>) {
    let _ = stopped.clone().wait_for(|stop| *stop).await;
}

fn door_address(config: &Config) -> SocketAddr {
    SocketAddr::new(config.network.publish, config.ports.dashboard)
}

/// Waits until a listener is wanted elsewhere.
async fn moved(
    configs: &mut watch::Receiver<Arc<Config>>,
    address: fn(&Config) -> Option<SocketAddr>,
    from: Option<SocketAddr>,
) {
    // Without a sender nothing moves any more; the daemon ends then.
    if configs.wait_for(|config| address(config) != from).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Serves the front door for the relay in the lab's network.
pub(super) async fn serve_relay(path: PathBuf, router: axum::Router, stopped: watch::Receiver<bool>) {
    loop {
        match http::bind_unix(&path).await {
            Ok(socket) => http::serve_unix(socket, router.clone(), stopped.clone()).await,
            Err(error) => tracing::warn!(%error, "containers cannot reach the front door"),
        }
        if ends_before_retry(&stopped).await {
            return;
        }
    }
}

/// Output of containers, for `labd logs` and the page, and files in them.
pub(super) struct EngineSource(pub(super) DockerEngine);

impl LogSource for EngineSource {
    fn logs(&self, service: &str, tail: usize, follow: bool) -> BoxStream<'static, Result<Bytes, String>> {
        let service = service.to_owned();
        let logs = self.0.logs(&service, Some(tail), follow).map(move |piece| {
            piece.map_err(|e| match e {
                EngineError::NotFound(_) => format!("{service} has no container now"),
                e => e.to_string(),
            })
        });
        stream::iter([]).chain(logs).boxed()
    }
}

impl FileSource for EngineSource {
    fn file(&self, service: &str, path: &str, largest: usize) -> BoxFuture<'static, Result<Vec<u8>, String>> {
        let (engine, service, path) = (self.0.clone(), service.to_owned(), path.to_owned());
        async move {
            engine.file(&service, &path, largest).await.map_err(|e| match e {
                EngineError::NotFound(_) => format!("{service} has not written {path} yet; try again in a moment"),
                e => e.to_string(),
            })
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Way in without TLS, to nothing.
    fn plain() -> Secured {
        Secured::new(watch::channel(Arc::default()).1, axum::Router::new(), axum::Router::new(), None)
    }

    #[tokio::test]
    async fn a_taken_page_port_is_said_and_taken_once_it_is_free() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = taken.local_addr().expect("bound");
        let (tell, mut trouble) = watch::channel(None);
        let (_stop, stopped) = watch::channel(false);
        tokio::spawn(serve_page(addr, plain(), tell, stopped));
        let said = trouble.wait_for(Option::is_some).await.expect("it goes on").clone().expect("said");
        assert!(said.contains("is taken by another program; set `lab.page` in labd.toml"), "{said}");
        drop(taken);
        tokio::time::timeout(LISTEN_RETRY * 2, trouble.wait_for(Option::is_none))
            .await
            .expect("in time")
            .expect("served");
        assert!(tokio::net::TcpStream::connect(addr).await.is_ok());
    }

    #[tokio::test]
    async fn the_second_origin_has_a_port_while_jupyterlab_is_on_and_moves_with_the_setting() {
        let config = |port: u16, is_on: bool| {
            let text = format!(
                "[lab]\npage = \"127.0.0.1:1\"\n[http]\njupyter_port = {port}\n[services.jupyter]\nenabled = {is_on}\n"
            );
            Arc::new(Config::parse(std::path::Path::new("labd.toml"), &text).expect("right"))
        };
        let free = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [first, second] = free.each_ref().map(|listener| listener.local_addr().expect("bound").port());
        drop(free);
        let (tell, configs) = watch::channel(config(first, false));
        let (view, mut views) = watch::channel(DoorView { port: Some(1), trouble: None });
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(serve_second(configs, plain(), view, stopped));
        let is_open = async |port| tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        for (port, is_on) in [(first, false), (first, true), (second, true), (second, false)] {
            tell.send_replace(config(port, is_on));
            let expected = DoorView { port: is_on.then_some(port), trouble: None };
            let told = tokio::time::timeout(Duration::from_secs(10), views.wait_for(|view| *view == expected)).await;
            told.expect("in time").expect("it goes on");
            assert_eq!(
                (is_open(first).await, is_open(second).await),
                (is_on && port == first, is_on && port == second)
            );
        }
        stop.send_replace(true);
        serving.await.expect("it ends, though it has nowhere to serve");
    }
}

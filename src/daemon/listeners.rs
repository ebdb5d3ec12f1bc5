//! Listeners of labd beside its socket: the page, the scrapes, the front door on the host and for the relay. Each is
//! tried again for as long as its address is taken or not there.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum::{extract::Request, middleware::map_request};
use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::sync::watch;

use crate::{
    config::Config,
    engine::{EngineError, docker::DockerEngine},
    http::{self, LogSource},
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

/// Serves metrics where Prometheus reaches labd: on the host's address in the lab's network. Only `known` peers are
/// heard.
pub(super) async fn serve_scrapes(
    addr: SocketAddr,
    known: Vec<IpAddr>,
    state: http::State,
    tell: watch::Sender<Scrapes>,
    stopped: watch::Receiver<bool>,
) {
    let asked = move |request: Request| {
        tell.send_modify(|scrapes| scrapes.last = Some(Timestamp::now()));
        std::future::ready(request)
    };
    let router = http::scrape_router(state).layer(map_request(asked));
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
    router: axum::Router,
    trouble: watch::Sender<Option<String>>,
    stopped: watch::Receiver<bool>,
) {
    loop {
        match http::bind_tcp(addr, "lab.page").await {
            Ok(listener) => {
                trouble.send_replace(None);
                http::serve_tcp(listener, router.clone(), stopped.clone()).await;
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
    loop {
        let wanted = door_address(&configs.borrow_and_update());
        match http::bind_tcp(wanted, "ports.dashboard").await {
            Ok(listener) => {
                view.send_replace(DoorView { port: listener.local_addr().ok().map(|a| a.port()), trouble: None });
                tokio::select! {
                    () = http::serve_tcp(listener, router.clone(), stopped.clone()) => {}
                    () = moved(&mut configs, wanted) => continue,
                }
            }
            Err(e) => {
                view.send_replace(DoorView { port: None, trouble: Some(e.to_string()) });
            }
        }
        if ends_before_retry(&stopped).await {
            return;
        }
    }
}

fn door_address(config: &Config) -> SocketAddr {
    SocketAddr::new(config.network.publish, config.ports.dashboard)
}

/// Waits until the front door is wanted elsewhere.
async fn moved(configs: &mut watch::Receiver<Arc<Config>>, from: SocketAddr) {
    // Without a sender nothing moves any more; the daemon ends then.
    if configs.wait_for(|config| door_address(config) != from).await.is_err() {
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

/// Output of containers, for `labd logs` and the page.
pub(super) struct EngineLogs(pub(super) DockerEngine);

impl LogSource for EngineLogs {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_page_port_is_said_and_taken_once_it_is_free() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = taken.local_addr().expect("bound");
        let (tell, mut trouble) = watch::channel(None);
        let (_stop, stopped) = watch::channel(false);
        tokio::spawn(serve_page(addr, axum::Router::new(), tell, stopped));
        let said = trouble.wait_for(Option::is_some).await.expect("it goes on").clone().expect("said");
        assert!(said.contains("is taken by another program; set `lab.page` in labd.toml"), "{said}");
        drop(taken);
        tokio::time::timeout(LISTEN_RETRY * 2, trouble.wait_for(Option::is_none))
            .await
            .expect("in time")
            .expect("served");
        assert!(tokio::net::TcpStream::connect(addr).await.is_ok());
    }
}

//! Proxy that passes a request on, as it is.

use std::{io, net::SocketAddr, time::Duration};

use axum::{
    body::{Body, BodyDataStream, Bytes, HttpBody as _},
    extract::Request,
    http::{StatusCode, Uri, header},
    response::Response,
};
use futures_util::{StreamExt as _, stream};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use tokio::sync::oneshot;

use crate::{
    door::{Moved, drop_hop, tunnel},
    jobs::packages::Incoming,
};

/// Sends the request to `to` and returns its answer, both streamed; an upgraded connection (a WebSocket) is joined to the
/// other one. `patience` counts from the last piece of the request, however long that takes to come. The error is one line:
/// nobody answered.
pub(super) async fn pass(
    client: &Client<HttpConnector, Body>,
    to: SocketAddr,
    mut request: Request,
    patience: Duration,
) -> Result<Response, String> {
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let uri: Uri = format!("http://{to}{path}").parse().map_err(|_| "the address cannot be passed on".to_owned())?;
    let upgrade = request.headers().get(header::UPGRADE).cloned();
    let ours = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let moved = Moved::default();
    let body = watched(body, moved.clone());
    parts.uri = uri;
    parts.version = axum::http::Version::HTTP_11;
    drop_hop(&mut parts.headers, |_| false);
    if let Some(protocol) = &upgrade {
        parts.headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol.clone());
    }
    let mut answer = tokio::select! {
        answer = client.request(Request::from_parts(parts, body)) => {
            answer.map_err(|_| "the Ray head is away".to_owned())?
        }
        () = moved.silent(patience) => return Err("the Ray head does not answer".to_owned()),
    };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(ours) = ours
    {
        tunnel(ours, hyper::upgrade::on(&mut answer), std::future::pending());
    } else {
        drop_hop(answer.headers_mut(), |_| false);
    }
    Ok(answer.map(Body::new))
}

/// Body as it is; each piece of it counts as movement.
pub(super) fn watched(body: Body, moved: Moved) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::from_stream(body.into_data_stream().inspect(move |_| moved.touch()))
}

/// Body as it is, while a copy of it is written. The copy is finished once `length` bytes passed, or, when that is not
/// known, at the body's end; the error when it could not be written, which stops nothing.
pub(super) fn tee(
    body: Body,
    length: Option<u64>,
    incoming: Incoming,
) -> (Body, oneshot::Receiver<io::Result<Incoming>>) {
    let (done, copy) = oneshot::channel();
    let tee = Tee { body: body.into_data_stream(), copy: Ok(incoming), done: Some(done), left: length };
    let pieces = stream::unfold(tee, |mut tee| async move {
        let Some(piece) = tee.body.next().await else {
            tee.finish();
            return None;
        };
        if let Ok(bytes) = &piece {
            tee.keep(bytes).await;
        }
        Some((piece, tee))
    });
    (Body::from_stream(pieces), copy)
}

struct Tee {
    body: BodyDataStream,
    copy: io::Result<Incoming>,
    done: Option<oneshot::Sender<io::Result<Incoming>>>,
    left: Option<u64>,
}

impl Tee {
    async fn keep(&mut self, bytes: &Bytes) {
        if let Ok(copy) = &mut self.copy
            && let Err(e) = copy.write(bytes).await
        {
            self.copy = Err(e);
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(bytes.len() as u64);
            // Nobody asks a body of known length for its end.
            if *left == 0 {
                self.finish();
            }
        }
    }

    fn finish(&mut self) {
        if let Some(done) = self.done.take() {
            // Whoever waits may have gone.
            let gone = Err(io::ErrorKind::UnexpectedEof.into());
            let _ = done.send(std::mem::replace(&mut self.copy, gone));
        }
    }
}

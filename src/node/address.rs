//! The address shown in links: what `labd.toml` says, else the cloud's metadata service, else the default route's.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Longest wait for a cloud's metadata service, which answers in a few milliseconds; everywhere else nobody does.
const METADATA_TIMEOUT: Duration = Duration::from_millis(300);
/// Link-local address on which EC2 and OpenStack (and so Chameleon) answer.
const METADATA: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);

/// Finds the address. Takes at most a little more than 300 ms.
pub async fn find(configured: Option<&str>) -> String {
    if let Some(address) = configured {
        return address.to_owned();
    }
    if let Some(public) = public_ipv4(METADATA, METADATA_TIMEOUT).await {
        return public.to_string();
    }
    default_route().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)).to_string()
}

async fn public_ipv4(service: SocketAddr, timeout: Duration) -> Option<Ipv4Addr> {
    let ask = async {
        let mut stream = TcpStream::connect(service).await.ok()?;
        let request = b"GET /latest/meta-data/public-ipv4 HTTP/1.0\r\nHost: 169.254.169.254\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await.ok()?;
        let text = String::from_utf8(answer).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        // Machines without a public address are answered with 404 or with nothing.
        head.lines().next()?.contains(" 200 ").then(|| body.trim().parse().ok())?
    };
    tokio::time::timeout(timeout, ask).await.ok()?
}

/// Address that packets to the world leave from. Connecting a UDP socket sends nothing; the destination is a
/// documentation address (RFC 5737).
fn default_route() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn service(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let (mut peer, _) = listener.accept().await.expect("a client");
            let mut request = [0; 512];
            let _ = peer.read(&mut request).await;
            let _ = peer.write_all(answer.as_bytes()).await;
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
        });
        addr
    }

    #[tokio::test]
    async fn the_metadata_service_is_asked_and_not_waited_for() {
        let long = Duration::from_secs(5);
        let good = service("HTTP/1.1 200 OK\r\n\r\n192.0.2.7\n").await;
        assert_eq!(public_ipv4(good, long).await, Some(Ipv4Addr::new(192, 0, 2, 7)));
        assert_eq!(public_ipv4(service("HTTP/1.1 404 Not Found\r\n\r\n192.0.2.7").await, long).await, None);
        assert_eq!(public_ipv4(service("HTTP/1.1 200 OK\r\n\r\n<html>").await, long).await, None);
        assert_eq!(public_ipv4(service("").await, Duration::from_millis(50)).await, None, "silent");
        assert_eq!(find(Some("gpu1.lab")).await, "gpu1.lab");
    }
}

//! Mail to a target. No error names an address, and none quotes the server, which may.

use std::time::Duration;

use lettre::{
    address::{Address, Envelope},
    transport::smtp::{
        authentication::{Credentials, DEFAULT_MECHANISMS},
        client::{AsyncSmtpConnection, TlsParameters},
        extension::ClientId,
    },
};

use super::{
    outbox::Message,
    send::Refused,
    shape::{self, Sender},
};
use crate::{
    config::{MailSecurity, Notify},
    secret::Secret,
    time::Timestamp,
};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Sends a mail. `tls` makes what is trusted, and is called where TLS is needed.
pub(super) async fn send(
    target: &Notify,
    password: Option<Secret>,
    sender: &Sender,
    message: &Message,
    tls: impl AsyncFnOnce(String) -> Result<TlsParameters, Refused>,
) -> Result<(), Refused> {
    // All of it was checked when labd.toml was read.
    let address = |text: &str| text.parse::<Address>().map_err(|_| Refused::new("`from` or `to` is no mail address"));
    let from = target.from.as_deref().unwrap_or_default();
    let to = target.to.iter().map(|to| address(to)).collect::<Result<Vec<_>, _>>()?;
    let envelope = Envelope::new(Some(address(from)?), to).map_err(|_| Refused::new("`to` names nobody"))?;
    let (host, port) = target.mail_server().ok_or_else(|| Refused::new("`server` is no mail server"))?;
    let hello = sender.domain().map_or_else(ClientId::default, |domain| ClientId::Domain(domain.to_owned()));
    let tls = match target.security {
        MailSecurity::None => None,
        MailSecurity::Starttls | MailSecurity::Tls => Some(tls(host.clone()).await?),
    };
    let (at_once, later) = if target.security == MailSecurity::Tls { (tls, None) } else { (None, tls) };
    let connected = AsyncSmtpConnection::connect_tokio1((host.as_str(), port), Some(CONNECT), &hello, at_once, None);
    let mut server = connected.await.map_err(|e| reason(&e, "it cannot be connected to"))?;
    if let Some(tls) = later {
        if !server.can_starttls() {
            server.abort().await;
            return Err(Refused::new(
                "it offers no STARTTLS: set `security` to \"tls\", or to \"none\" in a network of its own",
            ));
        }
        server.starttls(tls, &hello).await.map_err(|e| reason(&e, "STARTTLS failed"))?;
    }
    if let (Some(user), Some(password)) = (&target.user, password) {
        let login = Credentials::new(user.clone(), password.expose().to_owned());
        let said = server.auth(DEFAULT_MECHANISMS, &login).await;
        if let Err(e) = said {
            server.abort().await;
            return Err(reason(&e, "it offers no login that labd knows (PLAIN, LOGIN)").during("the login"));
        }
    }
    let mail = shape::mail(from, &target.to, sender, message, Timestamp::now());
    let sent = server.send(&envelope, mail.as_bytes()).await;
    if let Err(e) = sent {
        return Err(reason(&e, "it broke off").during("the mail"));
    }
    // It has the mail, whatever it says to the farewell.
    let _ = server.quit().await;
    Ok(())
}

/// Reason in one line. The server's own words may hold addresses, so its number must do.
fn reason(error: &lettre::transport::smtp::Error, else_: &str) -> Refused {
    if let Some(code) = error.status() {
        return Refused::new(format!("it answers {code}"));
    }
    if error.is_timeout() {
        return Refused::new("it does not answer");
    }
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            let tls =
                io.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<tokio_rustls::rustls::Error>);
            return Refused::new(if tls { super::http::untrusted(io) } else { super::http::unreachable(io) });
        }
        source = inner.source();
    }
    Refused::new(else_)
}

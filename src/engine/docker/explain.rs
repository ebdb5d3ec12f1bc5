//! The engine's errors in words for a person: one line that ends in a fix where one is known. Pure. The
//! texts of Docker 20.10 to 29 are matched by what they have had in common over the years.

use std::{error::Error as StdError, io};

use bollard::errors::Error;

use crate::{engine::EngineError, text};

/// Longest error line, in characters; an engine may quote a whole command.
const LONGEST: usize = 300;

/// Turns a client error into one line, sorted by what supervision can do about it.
pub(crate) fn explain(socket: &str, error: &Error) -> EngineError {
    match error {
        Error::DockerResponseServerError { status_code, message } => {
            let known = known(message);
            let text = known.clone().unwrap_or_else(|| shortened(message));
            match status_code {
                404 => EngineError::NotFound(text),
                409 => EngineError::Conflict(text),
                _ if port_taken(message).is_some() => EngineError::Conflict(text),
                _ => EngineError::Other(text),
            }
        }
        Error::DockerStreamError { error } => EngineError::Other(known(error).unwrap_or_else(|| shortened(error))),
        Error::SocketNotFoundError(_) => EngineError::Unreachable(no_engine(socket)),
        Error::RequestTimeoutError => EngineError::Unreachable(format!(
            "the container engine at {socket} does not answer in time; see `journalctl -u docker`, and restart it with \
             `systemctl restart docker`"
        )),
        other => match io_kind(other) {
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                EngineError::Unreachable(no_engine(socket))
            }
            Some(io::ErrorKind::PermissionDenied) => EngineError::Unreachable(format!(
                "no permission to use the container engine at {socket}; run labd as root or add its user to the group \
                 with `usermod -aG docker USER`"
            )),
            Some(_) => EngineError::Unreachable(dropped(socket)),
            None if matches!(other, Error::HyperLegacyError { .. } | Error::HyperResponseError { .. }) => {
                EngineError::Unreachable(dropped(socket))
            }
            None => EngineError::Other(format!(
                "the container engine's answer is not understood: {}; see `docker version`",
                one_line(&other.to_string())
            )),
        },
    }
}

/// The line for an engine below the minimum.
pub(crate) fn too_old(version: &str, api: &str) -> String {
    format!(
        "the container engine {version} (API {api}) is too old: labd needs API {}.{} (Docker 20.10) or newer; install it \
         with `apt-get install docker.io`",
        super::MIN_API.0,
        super::MIN_API.1
    )
}

fn no_engine(socket: &str) -> String {
    format!(
        "no container engine answers at {socket}; start it with `systemctl start docker` or install it with `apt-get \
         install docker.io`"
    )
}

fn dropped(socket: &str) -> String {
    format!(
        "the container engine at {socket} dropped the connection; see `journalctl -u docker`, and start it with \
         `systemctl start docker`"
    )
}

fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    // Transparent: its source would be that of the error inside.
    if let Error::IOError { err } = error {
        return Some(err.kind());
    }
    let mut at: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(e) = at {
        if let Some(io) = e.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        at = e.source();
    }
    None
}

/// The explanation of an engine's text, when it is one of those that have a known fix.
pub(crate) fn known(text: &str) -> Option<String> {
    if let Some((ip, port)) = port_taken(text) {
        let by = if text.contains("port is already allocated") { "another container" } else { "another program" };
        return Some(format!(
            "port {port} on {ip} is taken by {by}; free it (`ss -ltnp 'sport = :{port}'` shows who has it) or set another \
             one in labd.toml"
        ));
    }
    if is_disk_full(text) {
        return Some(DISK_FULL.to_owned());
    }
    if let Some(path) = after(text, "bind source path does not exist: ") {
        return Some(format!(
            "the directory {path} to be mounted does not exist on this machine; make it with `mkdir -p {path}` or change \
             the mount in labd.toml"
        ));
    }
    if let Some(names) = after(text, "unresolvable CDI devices ") {
        let anew = if names.starts_with("amd.com/") {
            "amd-ctk cdi generate --output=/etc/cdi/amd.json"
        } else {
            "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
        };
        return Some(format!("the engine knows no CDI device {names}; recreate the list with `{anew}`"));
    }
    if let Some(node) = between(text, "error gathering device information while adding custom device \"", "\"") {
        let module = match node {
            node if node.starts_with("/dev/infiniband/") => "ib_uverbs",
            node if node.starts_with("/dev/nvidia") => "nvidia",
            _ => "amdgpu",
        };
        return Some(format!(
            "the device node {node} is not on this machine (any more); load its driver with `modprobe {module}`, and see \
             `dmesg` when that does not help"
        ));
    }
    if text.contains("Requested CPUs are not available") || text.contains("Requested memory nodes are not available") {
        return Some(
            "the engine may not use the CPUs or the memory near this GPU; set `gpus.bind = false` in labd.toml, or give the \
             engine all of the machine (`systemctl show docker -p AllowedCPUs`)"
                .to_owned(),
        );
    }
    if text.contains("could not select device driver \"cdi\"") || text.contains("CDI is not enabled") {
        return Some(
            "the engine does not do CDI devices; set `\"features\": {\"cdi\": true}` in /etc/docker/daemon.json and restart \
             it with `systemctl restart docker`"
                .to_owned(),
        );
    }
    if text.contains("could not select device driver") || text.contains("nvidia-container-cli: not found") {
        return Some(
            "the engine cannot attach NVIDIA GPUs: the container toolkit is missing; install it with `apt-get install \
             nvidia-container-toolkit`, then `nvidia-ctk runtime configure --runtime=docker` and `systemctl restart docker`"
                .to_owned(),
        );
    }
    if let Some(image) = after(text, "No such image: ") {
        return Some(format!("the engine does not have the image {image}; make it with `labd images build`"));
    }
    if let Some(name) = between(text, "The container name \"/", "\"") {
        return Some(format!(
            "the name {name} is taken by a container that labd did not make; rename it with `docker rename {name} \
             {name}-old` or set another lab.name in labd.toml"
        ));
    }
    if text.contains("no configured subnet contains IP address")
        || text.contains("supported only when connecting to networks with user configured subnets")
        || text.contains("No configured subnet or ip-range contain the IP address")
    {
        return Some(
            "the lab's network has another subnet than labd.toml says; remove it with `labd down` and start again with \
             `labd up`"
                .to_owned(),
        );
    }
    if text.contains("Pool overlaps with other one") || text.contains("pool overlaps") {
        return Some(
            "the lab's subnet overlaps another network of the engine; set a free one in labd.toml (`docker network ls` \
             shows them)"
                .to_owned(),
        );
    }
    // Only after the ports: the engine says the same words of a container's address as of a port.
    if text.ends_with("Address already in use") {
        return Some(
            "the container's address is taken on the lab's network; see `docker network inspect`, and remove the \
             container that has it"
                .to_owned(),
        );
    }
    None
}

/// Line about a full disk.
pub(crate) const DISK_FULL: &str = "the container engine's disk is full; see `df -h` and `docker system df`, and make room \
                                    with `docker image prune`";

/// Whether a text speaks of a full disk.
pub(crate) fn is_disk_full(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("no space left on device") || text.contains("disk quota exceeded")
}

/// The host address and port that an engine could not publish on.
fn port_taken(text: &str) -> Option<(String, u16)> {
    if !text.contains("address already in use") && !text.contains("port is already allocated") {
        return None;
    }
    ["listen tcp4 ", "listen tcp6 ", "listen tcp ", "Bind for ", "bind host port for ", "bind host port "]
        .iter()
        .find_map(|marker| address_and_port(text.split_once(marker)?.1))
}

fn address_and_port(text: &str) -> Option<(String, u16)> {
    let token = text.split_whitespace().next()?;
    let (ip, rest) = match token.strip_prefix('[') {
        Some(v6) => {
            let (ip, rest) = v6.split_once(']')?;
            (ip, rest.strip_prefix(':')?)
        }
        None => token.split_once(':')?,
    };
    let digits: &str = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((ip.to_owned(), digits.parse().ok()?))
}

/// Engine's text without the layers it passed through: what runc said is what helps.
pub(crate) fn shortened(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("the engine gave no reason");
    let mut at = line;
    for layer in [
        "failed to create task for container: ",
        "failed to create shim task: ",
        "failed to create shim: ",
        "OCI runtime create failed: ",
        "runc create failed: ",
        "unable to start container process: ",
        "error during container init: ",
        "starting container process caused: ",
        "container init caused: ",
        "running hook caused: ",
    ] {
        if let Some((_, rest)) = at.split_once(layer) {
            at = rest;
        }
    }
    let at = at.trim_end_matches(": unknown").trim_end_matches(": unknown.");
    let at = one_line(at);
    if line.contains("OCI runtime") || line.contains("starting container process") {
        format!("the container cannot be started: {at}; see `labd logs`")
    } else {
        at
    }
}

/// Text as one line of at most 300 characters, without credentials in URLs.
pub(crate) fn one_line(text: &str) -> String {
    text::one_line(&redact(text), LONGEST)
}

/// Hides `user:password@` in URLs: tools print the proxy or the index they use.
pub(crate) fn redact(text: &str) -> String {
    text::with_logins_as("…@", text)
}

fn after(text: &str, marker: &str) -> Option<String> {
    let rest = text.split_once(marker)?.1;
    let end = rest.find(": unknown").unwrap_or(rest.len());
    let value = one_line(rest[..end].lines().next()?);
    (!value.is_empty()).then_some(value)
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    Some(text.split_once(from)?.1.split_once(to)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status_code: u16, message: &str) -> EngineError {
        explain("/s", &Error::DockerResponseServerError { status_code, message: message.to_owned() })
    }

    #[test]
    fn a_taken_port_is_named_in_every_dialect() {
        for (text, want) in [
            (
                "driver failed programming external connectivity on endpoint lab-minio (0f): Error starting userland \
                 proxy: listen tcp4 127.0.0.1:9000: bind: address already in use",
                "port 9000 on 127.0.0.1 is taken by another program",
            ),
            (
                "driver failed programming external connectivity on endpoint x (1): Bind for 0.0.0.0:8265 failed: port \
                 is already allocated",
                "port 8265 on 0.0.0.0 is taken by another container",
            ),
            (
                "failed to set up container networking: driver failed programming external connectivity on endpoint e \
                 (c): failed to bind host port for 127.0.0.1:18265:198.18.253.10:80/tcp: address already in use",
                "port 18265 on 127.0.0.1 is taken by another program",
            ),
            (
                "failed to bind host port 127.0.0.1:18265/tcp: address already in use",
                "port 18265 on 127.0.0.1 is taken by another program",
            ),
            ("listen tcp6 [::1]:80: bind: address already in use", "port 80 on ::1 is taken by another program"),
        ] {
            let EngineError::Conflict(line) = answered(500, text) else { panic!("not a conflict: {text}") };
            assert!(line.starts_with(want), "{line}");
            assert!(line.ends_with("labd.toml"), "{line}");
        }
    }

    #[test]
    fn what_runc_said_is_what_remains() {
        let text = "failed to create shim: OCI runtime create failed: container_linux.go:380: starting container process \
                    caused: exec: \"nosuch\": executable file not found in $PATH: unknown";
        let EngineError::Other(line) = answered(400, text) else { panic!("another kind") };
        assert_eq!(
            line,
            "the container cannot be started: exec: \"nosuch\": executable file not found in $PATH; see `labd logs`"
        );
    }

    #[test]
    fn known_troubles_end_in_a_fix() {
        for (text, part) in [
            ("write /var/lib/docker/tmp/x: no space left on device", "disk is full"),
            (
                "invalid mount config for type \"bind\": bind source path does not exist: /data/set",
                "`mkdir -p /data/set`",
            ),
            (
                "failed to create task: CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-1: \
                 unknown",
                "no CDI device nvidia.com/gpu=GPU-1;",
            ),
            ("could not select device driver \"\" with capabilities: [[gpu]]", "nvidia-container-toolkit"),
            ("could not select device driver \"nvidia\" with capabilities: [[gpu]]", "nvidia-container-toolkit"),
            (
                "CDI device injection failed: unresolvable CDI devices amd.com/gpu=1: unknown",
                "`amd-ctk cdi generate --output=/etc/cdi/amd.json`",
            ),
            (
                "error gathering device information while adding custom device \"/dev/kfd\": no such file or directory",
                "the device node /dev/kfd is not on this machine (any more); load its driver with `modprobe amdgpu`",
            ),
            (
                "error gathering device information while adding custom device \"/dev/nvidia0\": no such file or directory",
                "`modprobe nvidia`",
            ),
            ("Requested CPUs are not available - requested 32-63, available: 0-31", "`gpus.bind = false`"),
            ("could not select device driver \"cdi\" with capabilities: []", "daemon.json"),
            ("Pool overlaps with other one on this address space", "set a free one in labd.toml"),
            ("failed to set up container networking: Address already in use", "address is taken"),
            (
                "user specified IP address is supported only when connecting to networks with user configured subnets",
                "subnet",
            ),
        ] {
            let line = answered(500, text).to_string();
            assert!(line.contains(part), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn kinds_follow_the_status() {
        assert!(
            matches!(answered(404, "No such image: labd/ray:1"), EngineError::NotFound(t) if t.contains("labd/ray:1"))
        );
        assert!(matches!(
            answered(409, "Conflict. The container name \"/lab-minio\" is already in use by container \"ab\". You have to"),
            EngineError::Conflict(t) if t.contains("docker rename lab-minio")
        ));
    }

    #[test]
    fn an_engine_that_is_not_there() {
        let refused = Error::IOError { err: io::Error::from(io::ErrorKind::ConnectionRefused) };
        assert_eq!(
            explain("/var/run/docker.sock", &refused).to_string(),
            "no container engine answers at /var/run/docker.sock; start it with `systemctl start docker` or install it \
             with `apt-get install docker.io`"
        );
        let denied = Error::IOError { err: io::Error::from(io::ErrorKind::PermissionDenied) };
        assert!(explain("/s", &denied).to_string().contains("group"));
        assert!(too_old("19.03.1", "1.40").contains("19.03.1 (API 1.40) is too old"));
    }

    #[test]
    fn credentials_in_urls_are_hidden() {
        assert_eq!(
            redact("via http://me:pw@proxy:3128/x and https://a/b@c"),
            "via http://…@proxy:3128/x and https://a/b@c"
        );
        assert_eq!(redact("http://u:p@h"), "http://…@h");
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(one_line(&"x ".repeat(400)).chars().count(), LONGEST);
    }
}

//! Path under which a service is asked. It is passed on byte by byte, or not at all: what the door and a service could read
//! in two ways is refused.

use super::upstream::Upstream;

/// Reason why a path is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The prefix without its last slash, from which relative addresses lead elsewhere.
    NoSlash,
    /// Another service's path, or nobody's.
    Elsewhere,
    /// A path that two readers may read differently.
    Ambiguous,
}

/// Path to ask `up` for, of the raw path that the client sent.
pub(super) fn target<'a>(raw: &'a str, up: &Upstream) -> Result<&'a str, Refused> {
    if Some(raw) == up.prefix.strip_suffix('/') {
        return Err(Refused::NoSlash);
    }
    if !raw.starts_with(up.prefix) {
        return Err(Refused::Elsewhere);
    }
    let plain = decoded(raw).ok_or(Refused::Ambiguous)?;
    let is_odd = |b: &u8| b.is_ascii_control() || *b == b'\\' || *b == b' ' && raw.contains(' ');
    let is_dots = |segment: &[u8]| segment == b"." || segment == b"..";
    if !raw.is_ascii() || raw.contains("//") || plain.iter().any(is_odd) || plain.split(|b| *b == b'/').any(is_dots) {
        return Err(Refused::Ambiguous);
    }
    Ok(if up.strips { &raw[up.prefix.len() - 1..] } else { raw })
}

/// Path with its percent signs resolved once, as every service does; none when one of them stands for nothing.
fn decoded(raw: &str) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(b) = bytes.next() {
        plain.push(if b == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            u8::try_from(digit()? * 16 + digit()?).ok()?
        } else {
            b
        });
    }
    Some(plain)
}

/// Path as a service may understand it, for comparing: resolved, and without empty segments.
pub(super) fn understood(path: &str) -> String {
    let plain = decoded(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&plain);
    text.split('/').filter(|s| !s.is_empty()).fold(String::new(), |all, segment| all + "/" + segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::upstream::Kind;

    #[test]
    fn paths_are_passed_on_byte_by_byte() {
        let table = [
            (Kind::Ray, "/ray/", "/"),
            (Kind::Ray, "/ray/api/jobs/a%20b", "/api/jobs/a%20b"),
            (Kind::Ray, "/ray/ray/", "/ray/"),
            (Kind::Prometheus, "/prometheus/api/v1/query", "/prometheus/api/v1/query"),
            (Kind::MinioConsole, "/minio/browser/b/a%2Fb%2F", "/browser/b/a%2Fb%2F"),
            (Kind::Grafana, "/grafana/d/x%C3%A9/%25", "/grafana/d/x%C3%A9/%25"),
            (Kind::Jupyter, "/jupyter/files/.config/...", "/jupyter/files/.config/..."),
            (Kind::Jupyter, "/jupyter/a;b=1/%252e%252e/x", "/jupyter/a;b=1/%252e%252e/x"),
        ];
        for (kind, raw, asked) in table {
            assert_eq!(target(raw, kind.upstream()), Ok(asked), "{raw}");
        }
    }

    #[test]
    fn paths_that_can_be_read_in_two_ways_are_refused() {
        for rest in [
            "..",
            "../minio/",
            ".",
            "./x",
            "%2e%2e/minio/",
            "%2E%2e",
            ".%2e/minio/",
            "a/%2e/b",
            "a/..%2fminio",
            "..%2Fminio",
            "/minio/",
            "a//b",
            "a\\b",
            "%5c..",
            "a%5Cb",
            "%00",
            "a%0d%0ab",
            "%7f",
            "\u{7f}",
            "a b",
            "é",
            "%",
            "%2",
            "%zz",
            "%+1",
        ] {
            let raw = format!("/ray/{rest}");
            assert_eq!(target(&raw, Kind::Ray.upstream()), Err(Refused::Ambiguous), "{raw}");
        }
    }

    #[test]
    fn a_prefix_is_one_services_alone() {
        let up = Kind::Ray.upstream();
        assert_eq!(target("/ray", up), Err(Refused::NoSlash));
        for raw in ["", "/", "//ray/", "/rays/", "/Ray/", "/minio/", "/%72ay/", "/../ray/", "ray/", "*"] {
            assert_eq!(target(raw, up), Err(Refused::Elsewhere), "{raw}");
        }
    }

    #[test]
    fn what_a_service_may_understand_is_compared() {
        for (path, plain) in [
            ("/api/authenticate", "/api/authenticate"),
            ("/api/%61uthenticate/", "/api/authenticate"),
            ("/%2Fapi%2fauthenticate", "/api/authenticate"),
            ("/", ""),
        ] {
            assert_eq!(understood(path), plain);
        }
    }
}

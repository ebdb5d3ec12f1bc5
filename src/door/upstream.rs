//! Fixed table of what stands behind the door. Nothing that a client sends adds to it.

use std::net::SocketAddr;

/// Service behind the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ray's dashboard.
    Ray,
    /// Prometheus.
    Prometheus,
    /// MinIO's console.
    MinioConsole,
    /// Grafana.
    Grafana,
    /// JupyterLab.
    Jupyter,
}

/// Origin on which a service is answered. What users write runs on one of its own, where it cannot act for the person
/// who looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Origin of labd's own page.
    Main,
    /// Second origin.
    Second,
}

/// How the door reaches one service.
#[derive(Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Which it is.
    pub kind: Kind,
    /// Name, as a line for a person has it.
    pub name: &'static str,
    /// Path under which it is answered, from slash to slash.
    pub prefix: &'static str,
    /// Whether it is asked without the prefix: true unless it was told its own.
    pub strips: bool,
    /// Whether viewers are refused: it acts, or shows what is not theirs, at the first GET.
    pub admin_only: bool,
    /// Where it is answered.
    pub origin: Origin,
}

/// All of them.
pub const ALL: [Upstream; 5] = [
    Upstream {
        kind: Kind::Ray,
        name: "Ray's dashboard",
        prefix: "/ray/",
        strips: true,
        admin_only: false,
        origin: Origin::Main,
    },
    Upstream {
        kind: Kind::Prometheus,
        name: "Prometheus",
        prefix: "/prometheus/",
        strips: false,
        admin_only: false,
        origin: Origin::Main,
    },
    Upstream {
        kind: Kind::MinioConsole,
        name: "MinIO's console",
        prefix: "/minio/",
        strips: true,
        admin_only: true,
        origin: Origin::Main,
    },
    Upstream {
        kind: Kind::Grafana,
        name: "Grafana",
        prefix: "/grafana/",
        strips: false,
        // The door is its administrator.
        admin_only: true,
        origin: Origin::Main,
    },
    Upstream {
        kind: Kind::Jupyter,
        name: "JupyterLab",
        prefix: "/jupyter/",
        strips: false,
        admin_only: true,
        origin: Origin::Second,
    },
];

impl Kind {
    /// Its row of the table.
    pub fn upstream(self) -> &'static Upstream {
        match self {
            Self::Ray => &ALL[0],
            Self::Prometheus => &ALL[1],
            Self::MinioConsole => &ALL[2],
            Self::Grafana => &ALL[3],
            Self::Jupyter => &ALL[4],
        }
    }
}

/// Addresses of the services that are there now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upstreams {
    /// Ray's dashboard.
    pub ray: Option<SocketAddr>,
    /// Prometheus.
    pub prometheus: Option<SocketAddr>,
    /// MinIO's console.
    pub minio_console: Option<SocketAddr>,
    /// Grafana.
    pub grafana: Option<SocketAddr>,
    /// JupyterLab.
    pub jupyter: Option<SocketAddr>,
}

impl Upstreams {
    /// Address of one.
    pub fn address(&self, kind: Kind) -> Option<SocketAddr> {
        match kind {
            Kind::Ray => self.ray,
            Kind::Prometheus => self.prometheus,
            Kind::MinioConsole => self.minio_console,
            Kind::Grafana => self.grafana,
            Kind::Jupyter => self.jupyter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_row_and_a_prefix_that_is_no_others() {
        for (at, up) in ALL.iter().enumerate() {
            assert_eq!(up.kind.upstream(), up);
            assert!(up.prefix.starts_with('/') && up.prefix.ends_with('/') && up.prefix.len() > 2);
            assert!(ALL[..at].iter().all(|other| !other.prefix.starts_with(up.prefix)));
        }
    }
}

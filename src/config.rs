//! `labd.toml`.

use std::path::PathBuf;

/// How images are built.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BuildSettings {
    /// Extra CA bundle (PEM) that builds and containers trust.
    pub ca_bundle: Option<PathBuf>,
    /// Proxy for plain HTTP.
    pub http_proxy: Option<String>,
    /// Proxy for HTTPS.
    pub https_proxy: Option<String>,
    /// Hosts that bypass the proxy.
    pub no_proxy: Option<String>,
    /// PyPI mirror.
    pub pip_index_url: Option<String>,
    /// Go module proxy.
    pub goproxy: Option<String>,
    /// Debian mirror for the base image and for packages.
    pub debian_mirror: Option<String>,
}

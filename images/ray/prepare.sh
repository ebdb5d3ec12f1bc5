#!/bin/sh
# prepare.sh PACKAGE...: points apt at DEBIAN_MIRROR, installs ca-certificates and the packages, trusts labd-ca.crt.
# The same file lies in images/ray, images/minio and images/prometheus, since a build context is one folder.
set -eu

bundle=/etc/ssl/certs/ca-certificates.crt
ca=/opt/labd/labd-ca.crt

if [ -n "${DEBIAN_MIRROR:-}" ]; then
    rm -f /etc/apt/sources.list.d/debian.sources
    printf 'deb %s trixie main\ndeb %s trixie-updates main\n' "$DEBIAN_MIRROR" "$DEBIAN_MIRROR" >/etc/apt/sources.list
fi
# apt needs the CA before ca-certificates is there, by its own option: a bundle laid at $bundle would be overwritten.
opt=
if [ -s "$ca" ]; then opt="-o Acquire::https::CAInfo=$ca"; fi
apt-get -q $opt update
apt-get -q $opt install -y --no-install-recommends ca-certificates "$@"

# update-ca-certificates takes one certificate per file, and labd-ca.crt may be a whole bundle.
if [ -s "$ca" ]; then
    mkdir -p /usr/local/share/ca-certificates/labd
    awk -v d=/usr/local/share/ca-certificates/labd '
        /-----BEGIN CERTIFICATE-----/ { n++; on = 1; f = sprintf("%s/%04d.crt", d, n) }
        on { print >f }
        /-----END CERTIFICATE-----/ { on = 0; close(f) }' "$ca"
fi
# Always: it builds the bundle anew from Debian's certificates and ours.
update-ca-certificates
[ -s "$bundle" ]
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log

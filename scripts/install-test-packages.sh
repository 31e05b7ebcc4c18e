#!/bin/sh
# Install the Debian packages that tests start as real peers. Does nothing where they are there already.
set -eu

packages="${*:-chromium curl iproute2 nftables softhsm2 strace}"

missing=""
for package in $packages; do
    dpkg-query --show --showformat '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed \
        || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "tests need$missing: run this script as root, or install them by hand" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# The package lists may be old or missing: they are fetched only where the install fails without.
# shellcheck disable=SC2086
apt-get install --yes --quiet=2 --no-install-recommends $missing >/dev/null 2>&1 || {
    apt-get update --quiet=2
    apt-get install --yes --quiet=2 --no-install-recommends $missing >/dev/null
}

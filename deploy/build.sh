#!/usr/bin/env bash
# Builds the four images as sealcomb-<service>:local, with Docker where one runs, else with buildah.
# Without a registry in reach: BASE=debootstrap makes the base image from Debian's packages (needs mmdebstrap, root).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
services=("${@:-gateway keyvault vectorstore ingest}")
read -ra services <<<"${services[*]}"
base=${BASE:-docker.io/library/debian:12-slim}

if docker info >/dev/null 2>&1; then
    for service in "${services[@]}"; do
        docker build --quiet -f deploy/Dockerfile --build-arg BASE="$base" --build-arg SERVICE="$service" \
            -t "sealcomb-$service:local" .
    done
    exit 0
fi

if [ "$base" = debootstrap ]; then
    base=localhost/sealcomb-base:local
    if ! buildah images --quiet "$base" >/dev/null 2>&1; then
        echo "making a base image from Debian's packages (some minutes, once)"
        tar=${SEALCOMB_BASE_TAR:-$(mktemp --suffix .tar)}
        [ -s "$tar" ] || mmdebstrap --quiet --variant=minbase \
            --include=ca-certificates,g++,python3,python3-dev,python3-venv bookworm "$tar"
        container=$(buildah from scratch)
        buildah add --quiet "$container" "$tar" / >/dev/null
        buildah commit --quiet --rm "$container" "$base" >/dev/null
    fi
fi
# The machine's own authorities and package settings count inside the build too.
mounts=(--volume /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro)
[ -f /etc/pip.conf ] && mounts+=(--volume /etc/pip.conf:/etc/pip.conf:ro)
for service in "${services[@]}"; do
    echo "building sealcomb-$service"
    buildah build --quiet --layers --isolation chroot --network host --format docker "${mounts[@]}" \
        -f deploy/Dockerfile --build-arg BASE="$base" --build-arg SERVICE="$service" -t "sealcomb-$service:local" .
done

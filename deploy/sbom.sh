#!/usr/bin/env bash
# Writes build/sbom/<service>.json for each image that build.sh made: deploy/sbom.sh PYTHON, one that has cyclonedx-bom.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:?a Python with cyclonedx-bom}
mkdir -p build/sbom
for service in gateway keyvault vectorstore ingest; do
    image=sealcomb-$service:local
    if docker info >/dev/null 2>&1; then
        root=$(mktemp -d)
        container=$(docker create "$image")
        docker export "$container" | tar -x -C "$root"
        docker rm "$container" >/dev/null
        leave() { rm -rf "$root"; }
    else
        container=$(buildah from "localhost/$image")
        root=$(buildah mount "$container")
        leave() { buildah rm "$container" >/dev/null; }
    fi
    "$python" deploy/sbom.py --root "$root" --service "$service" >"build/sbom/$service.json.new" || { leave; exit 1; }
    mv "build/sbom/$service.json.new" "build/sbom/$service.json"
    leave
    echo "build/sbom/$service.json"
done

"""`sealcomb-kube-keys`: the keys of an installation as Kubernetes Secrets, for `kubectl apply -f -`.

Each service's Secret holds what that service needs and nothing else, so that a pod that is taken
over has no other's keys. The keys folder stays the original: keep it, apart from every backup of
the cluster. Run again, it changes nothing but certificates that end soon.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from pathlib import Path
from typing import Any

from services.common.methods import GATEWAY, KEYVAULT, SERVICES
from services.standalone.pki import CONTEXT_ISSUERS, Installation, InstallationDamaged, ensure_installation

Json = dict[str, Any]


def manifests(installation: Installation, namespace: str, *, certificates: bool, root_key: bool) -> Json:
    """A List of the Secrets and the ConfigMap that deploy/k8s/base mounts.

    certificates: whether each service's certificate is among them; else cert-manager makes them, under the
        authorities that are given instead. root_key: whether keyvault's KMS is the root key file.
    """
    keyvault = {"context.key.pem": installation.context_key_file(KEYVAULT)}
    if root_key:
        keyvault["root.key"] = installation.root_key_file
    gateway = {
        "context.key.pem": installation.context_key_file(GATEWAY),
        "token.pepper": installation.token_pepper_file,
    }
    items = [
        _secret(namespace, "sealcomb-keyvault-keys", keyvault),
        _secret(namespace, "sealcomb-gateway-keys", gateway),
        _trust(installation, namespace),
    ]
    if certificates:
        for service in SERVICES:
            folder = installation.tls_dir(service)
            items.append(_tls(namespace, f"sealcomb-{service}-tls", folder, folder / "ca.pem"))
        edge = installation.edge_tls_dir
        items.append(_tls(namespace, "sealcomb-edge-tls", edge, installation.edge_ca_file))
    else:
        items += [_authority(namespace, path) for path in (installation.ca_file, installation.edge_ca_file)]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _secret(namespace: str, name: str, files: dict[str, Path], kind: str = "Opaque") -> Json:
    data = {key: base64.b64encode(path.read_bytes()).decode() for key, path in files.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": kind,
        "data": data,
    }


def _tls(namespace: str, name: str, folder: Path, authority: Path) -> Json:
    # The keys of cert-manager's Secrets, so that both kinds are mounted alike.
    files = {"tls.crt": folder / "cert.pem", "tls.key": folder / "key.pem", "ca.crt": authority}
    return _secret(namespace, name, files, "kubernetes.io/tls")


def _authority(namespace: str, certificate: Path) -> Json:
    files = {"tls.crt": certificate, "tls.key": certificate.with_name(certificate.stem + ".key.pem")}
    return _secret(namespace, f"sealcomb-{certificate.stem}", files, "kubernetes.io/tls")


def _trust(installation: Installation, namespace: str) -> Json:
    names = [f"{issuer}.pub.pem" for issuer in CONTEXT_ISSUERS]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "sealcomb-trust", "namespace": namespace},
        "data": {name: (installation.context_trust_dir / name).read_text() for name in names},
    }


def main() -> None:
    """Entry point of `sealcomb-kube-keys`."""
    parser = argparse.ArgumentParser(
        prog="sealcomb-kube-keys",
        description="Makes the keys of an installation in a folder, if there are none yet, and prints them "
        "as Kubernetes Secrets: sealcomb-kube-keys --keys-dir keys | kubectl apply -f -",
    )
    parser.add_argument("--keys-dir", type=Path, required=True, help="the folder; keep it in a safe place")
    parser.add_argument("--namespace", default="sealcomb")
    parser.add_argument(
        "--edge-host",
        action="append",
        default=[],
        help="a name that clients reach the edge by; may be repeated",
    )
    parser.add_argument(
        "--cert-manager",
        action="store_true",
        help="give the authorities to cert-manager instead of certificates of 90 days",
    )
    parser.add_argument(
        "--no-root-key", action="store_true", help="keyvault uses a KMS of its own, not the root key file"
    )
    arguments = parser.parse_args()
    if sys.stdout.isatty():
        sys.exit("sealcomb-kube-keys: this prints private keys; pipe it into kubectl apply -f -")
    try:
        installation = ensure_installation(arguments.keys_dir.absolute(), edge_hosts=arguments.edge_host)
    except (InstallationDamaged, OSError) as error:
        sys.exit(f"sealcomb-kube-keys: {error}")
    document = manifests(
        installation,
        arguments.namespace,
        certificates=not arguments.cert_manager,
        root_key=not arguments.no_root_key,
    )
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    main()

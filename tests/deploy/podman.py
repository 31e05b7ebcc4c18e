"""The pods of the manifests, run by podman: what a cluster would add is put in their place.

A Secret, a ConfigMap and a volume become folders with the owner and mode that Kubernetes gives; names become
host aliases; probes are asked by the test. All else is the manifests' own: image, user, read-only
root, dropped capabilities, seccomp, limits, environment.
"""

from __future__ import annotations

import base64
import copy
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.deploy.relay import JOIN
from tests.deploy.rendered import Json

_CONFIG = """
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""


@dataclass(frozen=True)
class Pods:
    """Running pods on an internal network."""

    environment: Mapping[str, str]
    addresses: Mapping[str, str]

    def inside(self, service: str, code: str) -> str:
        """What a Python program prints inside the container of a service."""
        return self.podman("exec", f"{service}-{service}", "/opt/sealcomb/bin/python", "-c", code)

    def joined(self, service: str, port: int) -> list[str]:
        """A command whose standard input and output are a connection to a port of the pod."""
        settings = f"CONTAINERS_CONF={self.environment['CONTAINERS_CONF']}"
        python = "/opt/sealcomb/bin/python"
        name = f"{service}-{service}"
        return ["env", settings, "podman", "exec", "--interactive", name, python, "-c", JOIN, str(port)]

    def logs(self, service: str) -> str:
        """The end of a container's log."""
        return self.podman("logs", "--tail", "40", f"{service}-{service}", check=False)

    def podman(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """Runs podman; gives what it prints."""
        done = subprocess.run(
            ["podman", *arguments],
            input=stdin,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=180,
        )
        assert done.returncode == 0 or not check, f"podman {arguments}: {done.stdout}"
        return done.stdout


@contextmanager
def running(folder: Path, sets: Sequence[Json], objects: Mapping[str, Json]) -> Iterator[Pods]:
    """The pods of these StatefulSets; `objects` are the Secrets and ConfigMaps by name."""
    config = folder / "containers.conf"
    config.write_text(_CONFIG)
    net = f"sealcomb-{secrets.token_hex(4)}"
    subnet = f"10.222.{secrets.randbelow(250)}"
    names = [document["metadata"]["name"] for document in sets]
    addresses = {name: f"{subnet}.{10 + number}" for number, name in enumerate(names)}
    pods = Pods({**os.environ, "CONTAINERS_CONF": str(config)}, addresses)
    with ExitStack() as stack:
        pods.podman("network", "create", "--internal", "--disable-dns", "--subnet", f"{subnet}.0/24", net)
        stack.callback(pods.podman, "network", "rm", "--force", net, check=False)
        for document in sets:
            name = document["metadata"]["name"]
            pod = _pod(document, folder / name, objects, addresses)
            stack.callback(pods.podman, "pod", "rm", "--force", "--time", "20", name, check=False)
            pods.podman(
                "play", "kube", "--network", f"{net}:ip={addresses[name]}", "-", stdin=yaml.safe_dump(pod)
            )
        yield pods


def _pod(document: Json, folder: Path, objects: Mapping[str, Json], addresses: Mapping[str, str]) -> Json:
    template = copy.deepcopy(document["spec"]["template"])
    spec = template["spec"]
    owner = spec["securityContext"]["runAsUser"]
    for container in spec["containers"]:
        container["image"] = f"localhost/{container['image'].rsplit('/', 1)[-1]}"
        container["imagePullPolicy"] = "Never"
        for name in ("startupProbe", "livenessProbe", "readinessProbe", "lifecycle", "ports"):
            # Probes are the test's; ports would be given to the whole machine.
            container.pop(name)
    claims = [
        {"name": claim["metadata"]["name"]} for claim in document["spec"].get("volumeClaimTemplates", [])
    ]
    spec["volumes"] = [_volume(volume, folder, objects, owner) for volume in [*spec["volumes"], *claims]]
    spec["hostAliases"] = [{"ip": ip, "hostnames": [name]} for name, ip in addresses.items()]
    spec.pop("serviceAccountName")
    metadata = {"name": document["metadata"]["name"], "labels": template["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _volume(volume: Json, folder: Path, objects: Mapping[str, Json], owner: int) -> Json:
    place = folder / volume["name"]
    place.mkdir(parents=True)
    if "secret" in volume:
        secret = volume["secret"]
        data = {key: base64.b64decode(text) for key, text in objects[secret["secretName"]]["data"].items()}
        kept = {item["key"]: item["path"] for item in secret.get("items", [])} or {key: key for key in data}
        _fill(place, {path: data[key] for key, path in kept.items()}, owner, secret["defaultMode"])
    elif "configMap" in volume:
        texts = objects[volume["configMap"]["name"]]["data"]
        _fill(place, {key: text.encode() for key, text in texts.items()}, owner, 0o644)
    else:
        # An empty folder of the pod's own, as a fresh volume is with fsGroup.
        os.chown(place, owner, owner)
    return {"name": volume["name"], "hostPath": {"path": str(place), "type": "Directory"}}


def _fill(place: Path, files: Mapping[str, bytes], group: int, mode: int) -> None:
    """Files as Kubernetes mounts them: root's, readable by the pod's group."""
    for name, content in files.items():
        path = place / name
        path.write_bytes(content)
        os.chown(path, 0, group)
        path.chmod(mode)
    os.chown(place, 0, group)
    place.chmod(0o750)

"""The images in the pods of the manifests, on a network without a way out: `make k8s` runs this.

Not part of `make test`: it needs the images, which take minutes to build.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sealcomb_client import Client, Connection
from tests.deploy.podman import Pods, running
from tests.deploy.relay import relay
from tests.deploy.rendered import ROOT, SERVICES, Json, named, rendered

_LOCKED = re.compile(r"^([a-z0-9-]+)==([^ ;]+)", re.MULTILINE)
_READY_WITHIN_S = 180.0
_PROBE = """
import urllib.error, urllib.request
try: print(urllib.request.urlopen("http://127.0.0.1:9090%s", timeout=5).status)
except urllib.error.HTTPError as error: print(error.code)
except OSError: print(0)
"""
_STATUS = "print(open('/proc/self/status').read())"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("installation") / "keys"


@pytest.fixture(scope="module")
def pods(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    command = [str(Path(sys.executable).with_name("sealcomb-kube-keys")), "--keys-dir", str(keys)]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    objects: dict[str, Json] = {item["metadata"]["name"]: item for item in json.loads(made.stdout)["items"]}
    folder = tmp_path_factory.mktemp("pods")
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    sets = [named(rendered("local"), "StatefulSet", service) for service in SERVICES]
    with running(folder, sets, objects) as started:
        yield started


@pytest.fixture(scope="module")
def ready(pods: Pods) -> Pods:
    end = time.monotonic() + _READY_WITHIN_S
    for service in SERVICES:
        while _probe(pods, service, "/readyz") != 200:
            assert time.monotonic() < end, pods.logs(service)
            time.sleep(0.5)
    return pods


def _probe(pods: Pods, service: str, path: str) -> int:
    """The status of a probe, asked beside the service; 0 while nobody answers."""
    return int(pods.inside(service, _PROBE % path))


def test_every_pod_becomes_ready_and_lives(ready: Pods) -> None:
    assert {service: _probe(ready, service, "/livez") for service in SERVICES} == dict.fromkeys(SERVICES, 200)


@pytest.mark.parametrize("service", SERVICES)
def test_no_process_has_privileges(ready: Pods, service: str) -> None:
    """G4: of the running process, not of the manifest."""
    status = dict(
        line.split(":\t", 1) for line in ready.inside(service, _STATUS).splitlines() if ":\t" in line
    )
    assert status["Uid"].split()[0] not in ("0", "")
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_but_its_own_folders_can_be_written(ready: Pods, service: str) -> None:
    for path in ("/x", "/opt/sealcomb/x", "/etc/sealcomb/tls/x", "/usr/lib/x"):
        said = ready.inside(service, f"try: open({path!r}, 'w')\nexcept OSError as error: print(error.errno)")
        assert said.strip() in ("30", "13"), path


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_has_no_shell_and_no_tool(ready: Pods, service: str) -> None:
    look = "import shutil; print([t for t in %r if shutil.which(t, path=%r)])"
    tools = (
        "sh",
        "bash",
        "dash",
        "busybox",
        "apt",
        "dpkg",
        "pip",
        "gcc",
        "cc",
        "ld",
        "curl",
        "wget",
        "nc",
        "perl",
    )
    said = ready.inside(service, look % (tools, "/bin:/usr/bin:/sbin:/usr/sbin:/opt/sealcomb/bin"))
    assert said.strip() == "[]"


@pytest.mark.parametrize("service", SERVICES)
def test_secrets_are_neither_in_the_environment_nor_in_the_arguments(
    ready: Pods, keys: Path, service: str
) -> None:
    """G5."""
    # The process's own is closed to others of its user, too: exec gets the container's.
    code = "import os; print(dict(os.environ), open('/proc/1/cmdline').read())"
    said = ready.inside(service, code)
    assert "PRIVATE KEY" not in said
    for secret in ("root.key", "token.pepper"):
        assert (keys / secret).read_bytes().hex() not in said


@pytest.mark.parametrize("service", SERVICES)
def test_the_list_of_an_image_has_what_is_in_it_and_nothing_else(ready: Pods, service: str) -> None:
    """G7: the packages that the image's own Python finds, each of the locked version."""
    listed = json.loads((ROOT / "build" / "sbom" / f"{service}.json").read_text())["components"]
    python = {_normal(c["name"]): c["version"] for c in listed if not c["bom-ref"].startswith("pkg:deb/")}
    code = (
        "from importlib.metadata import distributions as d\nprint(*(f'{p.name}=={p.version}' for p in d()))"
    )
    found = dict(package.split("==") for package in ready.inside(service, code).split())
    assert python == {_normal(name): version for name, version in found.items()}
    lock = set(_LOCKED.findall((ROOT / "requirements" / f"image-{service}.txt").read_text()))
    assert {name for name, version in python.items() if (name, version) not in lock} == {"sealcomb"}
    system = {c["name"] for c in listed if c["bom-ref"].startswith("pkg:deb/")}
    assert {"libc6", "libssl3", "python3.11-minimal"} <= system


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_there_is_no_way_out(ready: Pods) -> None:
    for service in SERVICES:
        routes = ready.inside(service, "print(open('/proc/net/route').read())").split("\n")[1:]
        assert all(route.split()[1] != "00000000" for route in routes if route.strip()), "a default route"


def test_a_call_through_the_edge_works(ready: Pods, keys: Path) -> None:
    """A document's whole way through all four pods."""
    operator = ready.inside("gateway", "print(open('/var/lib/sealcomb/operator.token').read())").strip()
    with relay(ready.joined("gateway", 8443)) as port:
        connection = Connection(
            endpoint=f"localhost:{port}",
            ca_file=keys / "ca" / "edge-ca.pem",
            token="",
            operator_token=operator,
        )
        with Client(connection) as client:
            made = client.accounts.create("bees")
        with Client(replace(connection, token=made.token)) as client:
            client.collections.create("notes", embedder="default")
            client.documents.upload("notes", b"The wax cap seals each cell.", name="note.txt")
            hits = client.search("notes", "what seals a cell?")
            assert "wax cap" in hits[0].text

"""An Envoy that lacks one control, before the same policy process: what the twins of attacks use."""

from __future__ import annotations

import copy
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from services.gateway.envoy.supervisor import envoy_binary
from tests.gateway.rig import Edge, free_port

Json = dict[str, Any]


@contextmanager
def weakened(edge: Edge, weaken: Callable[[Json], None]) -> Iterator[Edge]:
    """The edge as it would be had `weaken` been applied to its configuration."""
    config = json.loads((edge.run_dir / "envoy.json").read_text())
    port = free_port()
    http_port = free_port()
    for listener, own in zip(config["static_resources"]["listeners"], (port, http_port), strict=False):
        listener["address"]["socket_address"]["port_value"] = own
    config["admin"]["address"]["pipe"]["path"] += f".{port}"
    before = copy.deepcopy(config)
    weaken(config)
    assert config != before, "the twin must differ"
    path = edge.folder / f"weak-{port}.json"
    path.write_text(json.dumps(config))
    process = subprocess.Popen(
        [
            str(envoy_binary()),
            "-c",
            str(path),
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "-l",
            "critical",
            "--file-flush-interval-msec",
            "200",
        ],
        env={},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    twin = Edge(edge.folder, edge.installation, edge.backends, port, edge.settings, http_port=http_port)
    try:
        deadline = time.monotonic() + 60
        while twin.health() != "SERVING":
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # Health checks of the services behind need their first round.
        time.sleep(0.2)
        yield twin
    finally:
        process.kill()
        process.wait()


def manager(config: Json) -> Json:
    """The HTTP connection manager in a configuration."""
    chain = config["static_resources"]["listeners"][0]["filter_chains"][0]
    found = chain["filters"][0]["typed_config"]
    assert isinstance(found, dict)
    return found


def http_manager(config: Json) -> Json:
    """The HTTP connection manager of the second door."""
    chain = config["static_resources"]["listeners"][1]["filter_chains"][0]
    found = chain["filters"][0]["typed_config"]
    assert isinstance(found, dict)
    return found


def tls(config: Json) -> Json:
    """The TLS settings that clients meet."""
    chain = config["static_resources"]["listeners"][0]["filter_chains"][0]
    found = chain["transport_socket"]["typed_config"]["common_tls_context"]
    assert isinstance(found, dict)
    return found


def routes(config: Json) -> list[Json]:
    """The routes in a configuration."""
    found = manager(config)["route_config"]["virtual_hosts"][0]["routes"]
    assert isinstance(found, list)
    return found

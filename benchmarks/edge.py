"""What policy costs at the edge: CPU per call of Envoy and the policy process, against plain Envoy.

Plain Envoy has the same TLS towards clients, the same mutual TLS to the service, the same route
and no filter but the router. The variants take turns within one run, since a busy machine makes
later batches differ from earlier ones by more than what is measured; a second plain Envoy is the
control, whose ratio to the first shows how far to trust the rest. Only the CPU time of Envoy and
policy counts, from the kernel's own account of each thread; client and service run elsewhere.

    python -m benchmarks.edge [--rounds 40] [--calls 400] [--in-flight 64] [--request-bytes 16]
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health as health_module
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.rpc.credentials import server_credentials
from services.common.tls import TlsFiles
from services.gateway.envoy.supervisor import envoy_binary
from services.standalone.pki import ensure_installation
from tests.gateway.rig import ROOT, Edge, bearer, free_port, running_edge

_PATH = "/sealcomb.v1.VectorService/Query"
_TARGET = 2.3
# The control's interval must lie this close to 1, or the run says nothing.
_CONTROL_WITHIN = 0.1


@dataclass(frozen=True)
class Load:
    """What each batch sends."""

    calls: int
    in_flight: int
    request_bytes: int


@dataclass
class Variant:
    """One way through the edge."""

    name: str
    port: int
    pids: tuple[int, ...]
    channel: grpc.Channel

    def cpu_ns(self) -> int:
        """CPU time of its processes so far, in nanoseconds."""
        return sum(
            int(task.joinpath("schedstat").read_text().split()[0])
            for pid in self.pids
            for task in Path(f"/proc/{pid}/task").iterdir()
        )

    def us_per_call(self, load: Load, token: str) -> float:
        """Microseconds of CPU per call over one batch."""
        method: Any = self.channel.unary_unary(_PATH)
        metadata = bearer(token)
        request = bytes(load.request_bytes)
        window = threading.Semaphore(load.in_flight)
        failures: list[grpc.RpcError] = []

        def done(call: Any) -> None:
            window.release()
            if call.exception() is not None:
                failures.append(call.exception())

        before = self.cpu_ns()
        for _ in range(load.calls):
            window.acquire()
            method.future(request, metadata=metadata, timeout=30).add_done_callback(done)
        for _ in range(load.in_flight):
            window.acquire()
        spent_ns = self.cpu_ns() - before
        if failures:
            # A refusal is cheaper than an answer, so one of them would make the batch worthless.
            raise failures[0]
        return spent_ns / 1000 / load.calls


def main() -> int:
    """Measures and prints; exit code 0: target met, 1: missed, 2: the run cannot tell."""
    parser = argparse.ArgumentParser(prog="benchmarks.edge", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=400, help="in each batch")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--request-bytes", type=int, default=16)
    parser.add_argument("--serve", nargs=2, metavar=("PORT", "TLS_DIR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(_serve(int(arguments.serve[0]), Path(arguments.serve[1])))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        load = Load(arguments.calls, arguments.in_flight, arguments.request_bytes)
        return _measure(Path(folder), arguments.rounds, load)


def _measure(folder: Path, rounds: int, load: Load) -> int:
    port = free_port()
    with ExitStack() as stack:
        settings = {
            "vectorstore_address": f"127.0.0.1:{port}",
            "calls_per_second": "1000000",
            "burst": "1000000",
        }
        stack.enter_context(_service(port, folder / "keys"))
        edge = stack.enter_context(running_edge(folder, **settings))
        token = edge.create_account("bench").token
        assert edge.process is not None
        variants = [
            Variant("plain", *stack.enter_context(_plain_envoy(edge))),
            Variant("plain again", *stack.enter_context(_plain_envoy(edge))),
            Variant(
                "edge", edge.port, (*edge.envoy_pids(), edge.process.pid), _channel(stack, edge, edge.port)
            ),
        ]
        samples: dict[str, list[float]] = {variant.name: [] for variant in variants}
        for variant in variants:
            variant.us_per_call(load, token)
        for number in range(rounds):
            # Each takes each place in turn, so that a drift during a round favours nobody.
            for variant in variants[number % 3 :] + variants[: number % 3]:
                samples[variant.name].append(variant.us_per_call(load, token))
        return _report(samples, rounds, load)


def _report(samples: dict[str, list[float]], rounds: int, load: Load) -> int:
    print(f"CPU per call at the gateway in us; {rounds} rounds of {load}")
    for name, values in samples.items():
        low, high = min(values), max(values)
        print(f"  {name:12} median {statistics.median(values):7.1f}   {low:7.1f} to {high:7.1f}")
    both = [(one + other) / 2 for one, other in zip(samples["plain"], samples["plain again"], strict=True)]
    control = _ratio(samples["plain again"], samples["plain"])
    ratio = _ratio(samples["edge"], both)
    for name, (middle, low, high) in (("control (plain again / plain)", control), ("edge / plain", ratio)):
        print(f"  {name:30} {middle:.2f}   95 % interval of the median {low:.2f} to {high:.2f}")
    if control[1] < 1 - _CONTROL_WITHIN or control[2] > 1 + _CONTROL_WITHIN:
        print("  INCONCLUSIVE: two equal Envoys differ too much; repeat on a quieter machine")
        return 2
    if ratio[1] <= _TARGET < ratio[2]:
        print(f"  INCONCLUSIVE: the interval holds the target {_TARGET}; take more rounds")
        return 2
    met = ratio[2] <= _TARGET
    print(f"  target {_TARGET}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


def _ratio(values: list[float], base: list[float]) -> tuple[float, float, float]:
    """Median of the ratios within each round, and its 95 % interval by order statistics."""
    ratios = sorted(value / other for value, other in zip(values, base, strict=True))
    count = len(ratios)
    # How many ratios fall below the true median is binomial with p = 1/2.
    below, rank = 0.0, 0
    while below + math.comb(count, rank) / 2**count <= 0.025:
        below += math.comb(count, rank) / 2**count
        rank += 1
    outermost = max(rank - 1, 0)
    return statistics.median(ratios), ratios[outermost], ratios[count - 1 - outermost]


@contextmanager
def _plain_envoy(edge: Edge) -> Iterator[tuple[int, tuple[int, ...], grpc.Channel]]:
    config = copy.deepcopy(json.loads((edge.run_dir / "envoy.json").read_text()))
    port = free_port()
    listener = config["static_resources"]["listeners"][0]
    config["static_resources"]["listeners"] = [listener]
    for part in ("admin", "overload_manager"):
        config.pop(part, None)
    listener["listener_filters"] = []
    listener["address"]["socket_address"]["port_value"] = port
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"] = [one for one in manager["http_filters"] if one["name"] == "router"]
    for name in ("early_header_mutation_extensions", "local_reply_config", "access_log"):
        manager.pop(name)
    host = manager["route_config"]["virtual_hosts"][0]
    for name in ("request_headers_to_remove", "response_headers_to_remove"):
        host.pop(name)
    host["routes"] = [route for route in host["routes"] if "route" in route]
    for route in host["routes"]:
        route.pop("typed_per_filter_config", None)
    path = edge.folder / f"plain-{port}.json"
    path.write_text(json.dumps(config))
    options = ("--disable-hot-restart", "--concurrency", "1", "-l", "critical")
    process = subprocess.Popen([str(envoy_binary()), "-c", str(path), *options], env={})
    with ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.kill)
        channel = _channel(stack, edge, port)
        _wait(channel.unary_unary(_PATH), edge.create_account("plain").token)
        yield port, (process.pid,), channel


def _channel(stack: ExitStack, edge: Edge, port: int) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(edge.installation.edge_ca_file.read_bytes())
    options = (("grpc.use_local_subchannel_pool", 1),)
    channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options)
    stack.callback(channel.close)
    return channel


def _wait(method: Any, token: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            method(b"", metadata=bearer(token), timeout=2)
        except grpc.RpcError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@contextmanager
def _service(port: int, keys: Path) -> Iterator[None]:

    tls_dir = ensure_installation(keys).tls_dir("vectorstore")
    command = [sys.executable, "-m", "benchmarks.edge", "--serve", str(port), str(tls_dir)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def _serve(port: int, tls_dir: Path) -> None:
    """A service that answers at once and asks for no context, so that both ways get the same answer."""

    async def answer(request: bytes, _context: Any) -> bytes:
        return request[:200]

    server = grpc.aio.server()
    method: Any = grpc.unary_unary_rpc_method_handler(answer)
    service, name = _PATH.strip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: method}),))
    health = health_module.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    server.add_secure_port(f"127.0.0.1:{port}", server_credentials(TlsFiles(tls_dir)))
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    sys.exit(main())

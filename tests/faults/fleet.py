"""Several replicas of each service, as processes of their own over one PostgreSQL and one Valkey.

Clients come by a balancer that passes connections on to the gateways that are ready.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sealcomb_client import Client, Connection
from services.common.methods import GATEWAY
from services.common.tls import TlsFiles
from services.standalone.admin import peers
from services.standalone.config import SERVICE_ORDER, Layout, StandaloneSettings
from services.standalone.pki import Installation, ensure_installation
from services.standalone.ports import free_ports
from tests.faults.balancer import Balancer, balancing
from tests.postgres import running_postgres
from tests.valkey_server import running_valkey

_SERVING_WITHIN_S = 90.0
_STOPS_WITHIN_S = 60.0
# How long a replica that goes says so first: health checks ask every second.
NOTICE_S = 2.5


@dataclass
class Replica:
    """One process of a service."""

    service: str
    port: int
    environment: Mapping[str, str]
    log: Path
    # Of a gateway: where its edge listens.
    edge_port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Its inner server."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it; does not wait."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"services.{self.service}.main"],
                env={**self.environment, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                stdout=log,
                stderr=log,
            )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        try:
            return self.process.wait(_STOPS_WITHIN_S)
        finally:
            self.process.kill()
            self.process.wait()


@dataclass
class Fleet:
    """All of them."""

    folder: Path
    keys: Installation
    balancer: Balancer
    replicas: dict[str, list[Replica]] = field(default_factory=dict)

    @property
    def edges(self) -> list[str]:
        """Where clients connect."""
        return [f"127.0.0.1:{replica.edge_port}" for replica in self.replicas[GATEWAY]]

    def connection(self, number: int = 0, token: str = "") -> Connection:
        """By one of the gateways."""
        operator = (self.keys.keys_dir / "operator.token").read_text().strip()
        return Connection(self.edges[number], self.keys.edge_ca_file, token, operator)

    def channel(self) -> grpc.Channel:
        """A channel by the balancer; nothing is tried again but by gRPC itself."""
        options = (
            ("grpc.ssl_target_name_override", "localhost"),
            # A connection of its own for each channel, as clients on machines of their own have.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
        )
        credentials = grpc.ssl_channel_credentials(self.keys.edge_ca_file.read_bytes())
        return grpc.secure_channel(f"127.0.0.1:{self.balancer.port}", credentials, options)

    def wait_serving(self, replica: Replica) -> None:
        """Waits until a replica says that it serves."""
        end = time.monotonic() + _SERVING_WITHIN_S
        while not self._serves(replica):
            assert replica.process is not None
            assert replica.process.poll() is None, replica.log.read_text()[-3000:]
            assert time.monotonic() < end, replica.log.read_text()[-3000:]
            time.sleep(0.1)
        if replica.edge_port and replica.edge_port not in self.balancer.ready:
            self.balancer.ready.append(replica.edge_port)

    def _serves(self, replica: Replica) -> bool:
        if replica.service == GATEWAY:
            with Client(self.connection(self.replicas[GATEWAY].index(replica))) as client:
                return client.health(timeout_s=2.0)
        tls = TlsFiles(self.keys.tls_dir(GATEWAY))
        said = asyncio.run(peers.states({replica.service: replica.address}, tls))
        return said[replica.service] == peers.SERVING

    def leave(self, replica: Replica) -> None:
        """Has the balancer send it no new connection."""
        if replica.edge_port in self.balancer.ready:
            self.balancer.ready.remove(replica.edge_port)

    def restart(self, replica: Replica) -> None:
        """As an upgrade does: ends it in order, starts it, and waits until others send calls to it."""
        self.leave(replica)
        code = replica.stop()
        assert code == 0, (replica.service, code, replica.log.read_text()[-3000:])
        replica.start()
        self.wait_serving(replica)
        # Until health checks of all that call it have seen it too.
        time.sleep(1.5)


@contextmanager
def fleet(folder: Path, counts: Mapping[str, int]) -> Iterator[Fleet]:
    """A running fleet for the block."""
    with ExitStack() as stack:
        database = stack.enter_context(running_postgres(folder))
        limits = stack.enter_context(running_valkey(folder))
        balancer = stack.enter_context(balancing())
        made = Fleet(folder, ensure_installation(folder / "keys"), balancer)
        addresses = {
            service: [f"127.0.0.1:{port}" for port in free_ports(counts[service])] for service in counts
        }
        for service in SERVICE_ORDER:
            url = database.make_database(service)
            made.replicas[service] = [
                _replica(made, service, number, addresses, url, f"valkey://127.0.0.1:{limits.port}/0")
                for number in range(counts[service])
            ]
            for replica in made.replicas[service]:
                replica.start()
                stack.callback(_end, replica)
            for replica in made.replicas[service]:
                if service != GATEWAY:
                    made.wait_serving(replica)
        _wait_for(made.keys.keys_dir / "operator.token")
        for replica in made.replicas[GATEWAY]:
            made.wait_serving(replica)
        yield made


def _replica(
    made: Fleet, service: str, number: int, addresses: Mapping[str, list[str]], database: str, limits: str
) -> Replica:
    edge_port = free_ports(1)[0] if service == GATEWAY else 0
    settings = StandaloneSettings(
        data_dir=made.folder / "data", keys_dir=made.keys.keys_dir, edge_http_port=0
    )
    environment = Layout(settings, made.keys, dict.fromkeys(SERVICE_ORDER, 1)).environment(
        service, os.environ
    )
    own = addresses[service][number]
    for other, replicas in addresses.items():
        name = f"SEALCOMB_{other.upper()}_ADDRESS"
        if name in environment:
            environment[name] = ",".join(replicas)
    environment |= {
        "SEALCOMB_LISTEN": own,
        "SEALCOMB_REPLICA_ADDRESS": own,
        "SEALCOMB_DATABASE_URL": database,
        "SEALCOMB_STOP_NOTICE_S": str(NOTICE_S),
        "SEALCOMB_LEDGER_FILE": str(made.folder / f"ledger-{number}"),
        "SEALCOMB_SHARED_LIMITS_URL": limits,
        "SEALCOMB_RUN_DIR": str(made.folder / f"run-{number}"),
        "SEALCOMB_EDGE_LISTEN": f"127.0.0.1:{edge_port}",
        "SEALCOMB_ENVOY_CONCURRENCY": "1",
        "SEALCOMB_CALLS_PER_SECOND": "5000",
        "SEALCOMB_BURST": "10000",
    }
    port = int(own.rpartition(":")[2])
    return Replica(service, port, environment, made.folder / f"{service}-{number}.log", edge_port)


def _end(replica: Replica) -> None:
    if replica.process is not None and replica.process.poll() is None:
        replica.stop(signal.SIGKILL)


def _wait_for(path: Path) -> None:
    end = time.monotonic() + _SERVING_WITHIN_S
    while not path.exists():
        assert time.monotonic() < end, f"{path} was not written"
        time.sleep(0.1)

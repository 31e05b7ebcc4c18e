"""A whole installation with its state elsewhere: PostgreSQL, a bucket, Valkey, and several vectorstores."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sealcomb_client import Client, Connection
from services.common.database import open_engine
from services.standalone.config import Layout, StandaloneSettings
from services.standalone.pki import ensure_installation
from services.standalone.ports import free_ports
from services.vectorstore.holders.store import HolderStore
from tests.postgres import Postgres
from tests.seaweed import SeaweedFs
from tests.valkey_server import ValkeyServer

_READY_WITHIN_S = 120.0
_SERVICES = ("keyvault", "vectorstore", "ingest", "gateway")


class Spread:
    """The processes; `vectorstores` are replicas of one another."""

    def __init__(
        self, folder: Path, postgres: Postgres, seaweed: SeaweedFs, valkey: ValkeyServer, replicas: int = 2
    ) -> None:
        edge, *ports = free_ports(3 + replicas + 1)
        settings = StandaloneSettings(
            data_dir=folder / "data", edge_port=edge, edge_http_port=0, calls_per_second=5000, burst=10000
        )
        installation = ensure_installation(settings.keys_folder)
        names = [name for name in _SERVICES if name != "vectorstore"]
        self.layout = Layout(
            settings, installation, dict(zip(names, ports, strict=False)) | {"vectorstore": ports[3]}
        )
        self._folder = folder
        self._stores = [f"127.0.0.1:{port}" for port in ports[3:]]
        mark = secrets.token_hex(4)
        bucket = seaweed.make_bucket(f"spread-{mark}")
        self._elsewhere = {
            name: {"SEALCOMB_DATABASE_URL": postgres.make_database(f"{name}_{mark}")} for name in _SERVICES
        }
        for name in ("vectorstore", "ingest"):
            self._elsewhere[name]["SEALCOMB_OBJECTS_URL"] = seaweed.url(bucket, name)
        self._elsewhere["gateway"]["SEALCOMB_SHARED_LIMITS_URL"] = valkey.url
        for name in ("gateway", "ingest"):
            self._elsewhere[name]["SEALCOMB_VECTORSTORE_ADDRESS"] = ",".join(self._stores)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.clients: list[Client] = []

    @property
    def connection(self) -> Connection:
        """The operator's connection."""
        ca = self.layout.installation.edge_ca_file
        return Connection(
            f"127.0.0.1:{self.layout.settings.edge_port}",
            ca,
            operator_token=self.layout.operator_token_file.read_text().strip(),
        )

    @property
    def vectorstores(self) -> list[str]:
        """The names of the replicas' processes."""
        return [name for name in self.processes if name.startswith("vectorstore")]

    def start(self) -> None:
        """Starts all and waits until the edge says that all serve."""
        (self._folder / "logs").mkdir(exist_ok=True)
        for service in _SERVICES:
            (self.layout.data / service).mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(len(self._stores)):
            self.start_vectorstore(number)
        for service in ("keyvault", "ingest", "gateway"):
            self._start(service, service, {})
        end = time.monotonic() + _READY_WITHIN_S
        while not self._serves():
            for name, process in self.processes.items():
                assert process.poll() is None, (name, self.log(name))
            assert time.monotonic() < end, [self.log(name) for name in self.processes]
            time.sleep(0.1)

    def start_vectorstore(self, number: int) -> None:
        """Starts one of the replicas."""
        own = self._stores[number]
        more = {"SEALCOMB_LISTEN": own, "SEALCOMB_REPLICA_ADDRESS": own}
        self._start(f"vectorstore{number}", "vectorstore", more)

    def client(self, connection: Connection) -> Client:
        """A client, closed at the end."""
        client = Client(connection)
        self.clients.append(client)
        return client

    def held(self) -> dict[str, int]:
        """How many collections each replica holds, by its process's name."""
        engine = open_engine(self._elsewhere["vectorstore"]["SEALCOMB_DATABASE_URL"])
        counts = dict(HolderStore(engine).counts())
        engine.dispose()
        return {f"vectorstore{number}": counts.get(at, 0) for number, at in enumerate(self._stores)}

    def log(self, name: str) -> str:
        """What a process logged."""
        return (self._folder / "logs" / f"{name}.log").read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """Ends all; the edge first."""
        for client in self.clients:
            client.close()
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)

    def _serves(self) -> bool:
        if not self.layout.operator_token_file.exists():
            return False
        with Client(self.connection) as client:
            return client.health(timeout_s=1.0)

    def _start(self, name: str, service: str, more: dict[str, str]) -> None:
        environment = self.layout.environment(service, os.environ) | self._elsewhere[service] | more
        with (self._folder / "logs" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-P", "-m", f"services.{service}.main"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )


@contextmanager
def running_spread(
    folder: Path, postgres: Postgres, seaweed: SeaweedFs, valkey: ValkeyServer
) -> Iterator[Spread]:
    """The installation for the block."""
    spread = Spread(folder, postgres, seaweed, valkey)
    try:
        spread.start()
        yield spread
    finally:
        spread.stop()

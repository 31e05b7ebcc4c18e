"""`sealcomb-standalone`: all of Sealcomb on one machine, from an empty folder to a first answer.

Reads top to bottom: settings, one installation per data folder, keys, processes, health, demo,
then waits for Ctrl-C and stops every process. It holds no data key and sees no document but the
demo's own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sealcomb_client import ApiError, Client, Connection
from services.common.clock import SystemClock
from services.standalone import clientfile, demo
from services.standalone.config import PORTS_FILE, RESTORING, SERVICE_ORDER, Layout, StandaloneSettings
from services.standalone.lock import DataFolderInUse, lock_folder
from services.standalone.pki import Installation, InstallationDamaged, ensure_installation, write_file
from services.standalone.ports import PortTaken, free_ports, require_free
from services.standalone.supervisor import Service, Supervisor

_SERVING_WITHIN_S = 90.0
_HEALTH_EVERY_S = 0.2


class StartFailed(Exception):
    """The installation cannot start; the text says why and what to do."""


class Standalone:
    """One run of the installation."""

    def __init__(self, layout: Layout, lock: int) -> None:
        self._layout = layout
        self._stop = asyncio.Event()
        self._stop_signals = 0
        self._client: Client | None = None
        self._supervisor = Supervisor(
            [self._service(name) for name in SERVICE_ORDER],
            SystemClock(),
            say=_complain,
            # The services hold the lock too, so that it lasts for as long as one of them lives.
            inherited_descriptors=(lock,),
        )

    async def run(self) -> None:
        """Starts, shows the demo, waits to be stopped, stops. Raises StartFailed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        try:
            await self._run()
        finally:
            if self._client is not None:
                self._client.close()
            await self._supervisor.stop()
            (self._layout.data / PORTS_FILE).unlink(missing_ok=True)

    async def _run(self) -> None:
        _say("starting keyvault, vectorstore, ingest, gateway ...")
        write_file(self._layout.data / PORTS_FILE, json.dumps(dict(self._layout.ports)).encode())
        self._supervisor.start()
        if not await self._until(self._serving(), fatal=True):
            return
        values = self._write_client_file()
        if self._layout.settings.demo:
            try:
                done = await self._until(asyncio.to_thread(self._show_demo, values), fatal=False)
            except ApiError as error:
                # Whatever the user has done to the demo since, the installation itself is well.
                _say(f"the demo was left out: {error}")
                done = True
            if not done:
                return
        _say(f"ready at {values[clientfile.ENDPOINT]} (data in {self._layout.data}; Ctrl-C stops everything)")
        await self._until(asyncio.Event().wait(), fatal=False)
        _say("stopping ...")

    async def _until(self, work: Any, *, fatal: bool) -> bool:
        """Waits for the work; False if a signal came first. A service that keeps dying ends a start."""
        task = asyncio.ensure_future(work)
        stop = asyncio.create_task(self._stop.wait())
        failed = asyncio.create_task(self._supervisor.failed())
        waiting: set[asyncio.Future[Any]] = {task, stop, failed}
        try:
            while True:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if task in done:
                    await task
                    return True
                if stop in done:
                    return False
                error = failed.exception()
                if fatal and error is not None:
                    raise StartFailed(str(error))
                _complain(str(error))
        finally:
            for future in (task, stop, failed):
                future.cancel()

    async def _serving(self) -> None:
        connection = Connection(self._endpoint, self._ca_file)
        clock = SystemClock()
        end_s = clock.monotonic_s() + _SERVING_WITHIN_S
        with Client(connection) as client:
            while not await asyncio.to_thread(client.health, timeout_s=1.0):
                if clock.monotonic_s() >= end_s:
                    raise StartFailed(f"the services do not serve; see {self._layout.data / 'logs'}")
                await asyncio.sleep(_HEALTH_EVERY_S)

    def _write_client_file(self) -> dict[str, str]:
        path = self._layout.data / "client.env"
        values = clientfile.read_client_file(path)
        values[clientfile.ENDPOINT] = self._endpoint
        values[clientfile.CA_FILE] = str(self._ca_file)
        if self._layout.operator_token_file.exists():
            values[clientfile.OPERATOR_TOKEN] = self._layout.operator_token_file.read_text().strip()
        clientfile.write_client_file(path, values)
        return values

    def _show_demo(self, values: dict[str, str]) -> None:
        connection = Connection.from_env(environ=values)
        if not connection.token:
            values[clientfile.TOKEN] = demo.ensure_account_token(connection)
            clientfile.write_client_file(self._layout.data / "client.env", values)
            connection = demo.with_token(connection, values[clientfile.TOKEN])
        shown = demo.Demo(
            connection, self._layout.settings.examples_dir, self._layout.data / ".demo-finished"
        )
        # Closed by `run`, which ends a call in progress when the user stops it all.
        self._client = Client(connection)
        if not shown.finished and not self._ingest(shown, self._client):
            return
        _say(demo.search_report(self._client.search(demo.COLLECTION, demo.QUESTION, top_k=3)))
        _say(demo.how_to_repeat(self._layout.data, self._endpoint))

    def _ingest(self, shown: demo.Demo, client: Client) -> bool:
        documents = shown.documents()
        columns = (
            TextColumn("ingesting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=Console(soft_wrap=True)) as progress:
            bar = _Bar(progress, len(documents))
            return shown.prepare(client, documents, bar, self._stop.is_set)

    def _on_signal(self) -> None:
        self._stop_signals += 1
        self._stop.set()
        if self._stop_signals > 1:
            self._supervisor.kill()

    def _service(self, name: str) -> Service:
        folder = self._layout.data / name
        folder.mkdir(mode=0o700, exist_ok=True)
        environment = self._layout.environment(name, os.environ)
        return Service(name, f"services.{name}.main", environment, self._layout.data / "logs" / f"{name}.log")

    @property
    def _endpoint(self) -> str:
        return f"{self._layout.settings.edge_host}:{self._layout.settings.edge_port}"

    @property
    def _ca_file(self) -> Path:
        return self._layout.data / "ca.pem"


class _Bar:
    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)

    def advance(self, name: str) -> None:
        """One more document is done."""
        self._progress.update(self._task, advance=1, description=name)


def prepare(settings: StandaloneSettings) -> Layout:
    """The keys, ports and model of the installation. Raises StartFailed."""
    data = settings.data_dir.absolute()
    try:
        require_free(settings.edge_host, settings.edge_port, "SEALCOMB_EDGE_PORT")
        if settings.edge_http_port:
            require_free(settings.edge_host, settings.edge_http_port, "SEALCOMB_EDGE_HTTP_PORT")
        if (data / RESTORING).exists():
            raise StartFailed("a backup is half put back; repeat `sealcomb-admin restore`")
        if (data / "keyvault").exists() and not settings.keys_folder.exists():
            raise StartFailed(
                f"there is data in {data} but no keys in {settings.keys_folder}; restore the keys"
            )
        installation = ensure_installation(settings.keys_folder)
        ports = free_ports(len(SERVICE_ORDER))
    except (PortTaken, InstallationDamaged) as error:
        raise StartFailed(str(error)) from error
    write_file(data / "ca.pem", installation.edge_ca_file.read_bytes(), 0o644)
    # What deletion receipts and checkpoints are checked with.
    signed_by = installation.context_trust_dir / "keyvault.pub.pem"
    write_file(data / "keyvault.pub.pem", signed_by.read_bytes(), 0o644)
    if settings.needs_default_model:
        _say("preparing the embedding model (once) ...")
        done = subprocess.run([sys.executable, "-P", "-m", "services.ingest.prepare_model"], check=False)
        if done.returncode != 0:
            raise StartFailed("the embedding model could not be prepared; run `make setup`")
    return Layout(settings, installation, dict(zip(SERVICE_ORDER, ports, strict=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="sealcomb-standalone", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument(
        "--data-dir", type=Path, help="folder of all state (SEALCOMB_DATA_DIR, default ./data)"
    )
    parser.add_argument("--edge-port", type=int, help="port of the edge (SEALCOMB_EDGE_PORT, default 8443)")
    parser.add_argument(
        "--no-demo", action="store_true", help="make no demo account and ingest nothing (SEALCOMB_DEMO=0)"
    )
    parser.add_argument(
        "--keyvault",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="run sealcomb-keyvault on this installation instead, as in `--keyvault --backup FILE`",
    )
    given = parser.parse_args(arguments)
    chosen = {
        "data_dir": given.data_dir,
        "edge_port": given.edge_port,
        "demo": False if given.no_demo else None,
    }
    try:
        settings = StandaloneSettings(**{name: value for name, value in chosen.items() if value is not None})
        if given.keyvault is not None:
            return _run_keyvault(settings, given.keyvault)
        with lock_folder(settings.data_dir.absolute()) as lock:
            layout = prepare(settings)
            asyncio.run(_run(layout, lock))
    except ValidationError as error:
        _complain("; ".join(f"SEALCOMB_{e['loc'][0]!s}".upper() + f": {e['msg']}" for e in error.errors()))
        return 2
    except (StartFailed, DataFolderInUse) as error:
        _complain(str(error))
        return 1
    return 0


def _run_keyvault(settings: StandaloneSettings, arguments: Sequence[str]) -> int:
    """The command with the settings that keyvault has here; an installation may run meanwhile."""
    if not settings.keys_folder.exists():
        raise StartFailed(f"there are no keys in {settings.keys_folder}")
    layout = Layout(settings, Installation(settings.keys_folder), dict.fromkeys(SERVICE_ORDER, 0))
    # A lost data folder is what is restored.
    (layout.data / "keyvault").mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "services.keyvault.main", *arguments]
    return subprocess.run(command, env=layout.environment("keyvault", os.environ), check=False).returncode


async def _run(layout: Layout, lock: int) -> None:
    await Standalone(layout, lock).run()


def _say(text: str) -> None:
    print(text, flush=True)


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"sealcomb-standalone: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

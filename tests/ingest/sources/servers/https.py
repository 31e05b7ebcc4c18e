"""A small HTTPS server for tests, on loopback: it answers as told, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

from services.ingest.egress.client import Egress, EgressLimits
from services.ingest.egress.network import open_tls
from services.ingest.egress.target import HostRules
from tests.certificates import TestCa, address, dns, write_files

LOOPBACK = bytes([127, 0, 0, 1])


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Reply:
    """`truncate` says more bytes than are sent; `raw` is sent instead of all else."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    delay_s: float = 0.0
    truncate: bool = False
    stream: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None


Handler = Callable[[Request], Reply]


def json_reply(value: object, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(status, {"content-type": "application/json", **named}, json.dumps(value).encode())


class HttpsServer:
    """One server. `port` is free; `requests` are all that came, in order."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext) -> None:
        self.handler = handler
        self.requests: list[Request] = []
        self._tls = tls
        self.port = 0
        self.faults: list[Reply] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[HttpsServer]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            # A client that never says goodbye must not leave a socket to whichever test comes next.
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        self._writers.add(writer)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while await self._exchange(connection, reader, writer):
                connection.start_next_cycle()
        except (OSError, h11.ProtocolError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head: h11.Request | None = None
        content = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(65536)
                if not data and head is None:
                    return False
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                content += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                break
            else:
                return False
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        request = Request(head.method.decode(), head.target.decode(), headers, content)
        self.requests.append(request)
        reply = self.faults.pop(0) if self.faults else self.handler(request)
        await asyncio.sleep(reply.delay_s)
        if reply.stream is not None:
            await reply.stream(writer)
            return False
        length = len(reply.content) + (1000 if reply.truncate else 0)
        lines = [*reply.headers.items(), ("content-length", str(length))]
        response = h11.Response(status_code=reply.status, headers=lines)
        writer.write(connection.send(response) or b"")
        if head.method != b"HEAD":
            writer.write(connection.send(h11.Data(data=reply.content)) or b"")
        if reply.truncate:
            await writer.drain()
            return False
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        return connection.our_state is not h11.MUST_CLOSE


class FixedResolver:
    """Names as the test says; each look-up is remembered. A list of answers is given one after the other."""

    def __init__(self, answers: Mapping[str, Sequence[bytes]] | None = None) -> None:
        self.answers = dict(answers or {})
        self.asked: list[str] = []

    async def resolve(self, host: str) -> Sequence[bytes]:
        self.asked.append(host)
        return self.answers.get(host, (LOOPBACK,))


@dataclass(frozen=True)
class Tls:
    """A server's and a client's side of one private CA."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    certificate_file: Path
    key_file: Path
    ca_file: Path
    ca: TestCa


def make_tls(folder: Path, names: Sequence[str]) -> Tls:
    ca = TestCa.make()
    files = write_files(folder, ca.issue([*map(dns, names), address("127.0.0.1")]))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    client = open_tls(str(folder / "ca.pem"))
    return Tls(server, client, folder / "cert.pem", folder / "key.pem", Path(files.folder) / "ca.pem", ca)


def open_egress(
    tls: Tls,
    allowed: str,
    *,
    resolver: FixedResolver | None = None,
    limits: EgressLimits | None = None,
) -> Egress:
    """The real client, which may reach what is allowed on this machine."""
    return Egress(
        HostRules.parse(allowed), resolver=resolver or FixedResolver(), tls=tls.client, limits=limits
    )

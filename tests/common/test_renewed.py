"""C3: certificates renewed on both sides between services, without a failed call."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509

from services.common.rpc.credentials import channel_credentials, server_credentials
from services.common.rpc.renewed import RenewedChannel
from services.common.tls import TlsFiles, TlsMaterial, host_of
from services.standalone.pki import Authority, make_authority, service_names, write_file

PATH = "/a.B/C"


def authority(name: str) -> Authority:
    return make_authority(name, dt.datetime.now(dt.UTC))


def put(folder: Path, ca: Authority, service: str, *trusted: Authority) -> None:
    """A new certificate of a service, renamed into place like any renewal."""
    folder.mkdir(exist_ok=True)
    certificate, key = ca.issue(service_names(service), dt.datetime.now(dt.UTC))
    write_file(folder / "ca.pem", b"".join(one.pem for one in trusted or (ca,)))
    write_file(folder / "key.pem", key)
    write_file(folder / "cert.pem", certificate)


def serial_in(folder: Path) -> int:
    return x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes()).serial_number


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[int]:
    """A server that answers with the serial number of its client's certificate."""

    async def answer(_request: bytes, context: Any) -> bytes:
        (pem,) = context.auth_context()["x509_pem_cert"]
        return str(x509.load_pem_x509_certificate(pem).serial_number).encode()

    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))

    async def beat(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        while True:
            yield b"."
            await asyncio.sleep(0.01)

    handlers: Any = {
        "C": grpc.unary_unary_rpc_method_handler(answer),
        "Beat": grpc.unary_stream_rpc_method_handler(beat),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(TlsFiles(folder)))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0.5)


def make_channel(port: int, material: TlsMaterial) -> grpc.aio.Channel:
    options = (
        ("grpc.ssl_target_name_override", host_of("keyvault")),
        ("grpc.use_local_subchannel_pool", 1),
    )
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", channel_credentials(material), options=options)


async def read_on(stream: Any) -> None:
    while True:
        await stream.read()


async def shown(channel: grpc.aio.Channel) -> int:
    method: Any = channel.unary_unary(PATH)
    return int(await method(b"", timeout=10))


async def test_renewed_leaves_and_authorities_are_followed_under_load(tmp_path: Path) -> None:
    """C3: both sides' leaves, then a roll-over to a new CA and back to a single one."""
    client, server = tmp_path / "client", tmp_path / "server"
    old, new = authority("old"), authority("new")
    for folder, service in ((client, "ingest"), (server, "keyvault")):
        put(folder, old, service)
    calls, done = 0, False
    async with serving(server) as port:
        own = RenewedChannel(lambda one: make_channel(port, one), TlsFiles(client), time.monotonic, 0.0)

        async def caller() -> None:
            nonlocal calls
            method: Any = own.unary_unary(PATH)
            while not done:
                await method(b"", timeout=10)
                calls += 1

        async def more_than(count: int) -> None:
            method: Any = own.unary_unary(PATH)
            while calls < count:
                await method(b"", timeout=10)

        async with own, asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(caller())
            for ca, trusted in ((old, (old,)), (old, (old, new)), (new, (old, new)), (new, (new,))):
                for folder, service in ((client, "ingest"), (server, "keyvault")):
                    put(folder, ca, service, *trusted)
                    await more_than(calls + 20)
                assert await shown(own) == serial_in(client)
            done = True
    assert calls > 100


async def test_a_channel_of_grpc_keeps_the_certificate_it_was_made_with(tmp_path: Path) -> None:
    """Twin of the test above."""
    client, server, ca = tmp_path / "client", tmp_path / "server", authority("CA")
    for folder, service in ((client, "ingest"), (server, "keyvault")):
        put(folder, ca, service)
    first = serial_in(client)
    async with serving(server) as port, make_channel(port, TlsFiles(client).read()) as channel:
        put(client, ca, "ingest")
        assert await shown(channel) == first != serial_in(client)


async def test_a_stream_outlives_the_renewal_of_its_channel(tmp_path: Path) -> None:
    client, server, ca = tmp_path / "client", tmp_path / "server", authority("CA")
    for folder, service in ((client, "ingest"), (server, "keyvault")):
        put(folder, ca, service)
    async with serving(server) as port:
        own = RenewedChannel(lambda one: make_channel(port, one), TlsFiles(client), time.monotonic, 0.0)
        async with own:
            method: Any = own.unary_stream("/a.B/Beat")
            stream = method(b"", timeout=30)
            assert await stream.read() == b"."
            put(client, ca, "ingest")
            assert await shown(own) == serial_in(client)
            for _ in range(20):
                assert await stream.read() == b"."
            stream.cancel()


async def test_a_channel_closed_under_a_stream_cancels_its_reader(tmp_path: Path) -> None:
    """Twin of the test above: why the old channel is left alone."""
    client, server, ca = tmp_path / "client", tmp_path / "server", authority("CA")
    for folder, service in ((client, "ingest"), (server, "keyvault")):
        put(folder, ca, service)
    async with serving(server) as port:
        channel = make_channel(port, TlsFiles(client).read())
        method: Any = channel.unary_stream("/a.B/Beat")
        stream = method(b"", timeout=30)
        assert await stream.read() == b"."
        await channel.close()
        with pytest.raises(asyncio.CancelledError):
            await read_on(stream)


async def test_a_renewal_that_stopped_half_way_changes_nothing(tmp_path: Path) -> None:
    client, server, ca = tmp_path / "client", tmp_path / "server", authority("CA")
    for folder, service in ((client, "ingest"), (server, "keyvault")):
        put(folder, ca, service)
    first = serial_in(client)
    async with serving(server) as port:
        own = RenewedChannel(lambda one: make_channel(port, one), TlsFiles(client), time.monotonic, 0.0)
        async with own:
            assert await shown(own) == first
            write_file(client / "key.pem", ca.issue(service_names("ingest"), dt.datetime.now(dt.UTC))[1])
            with pytest.raises(ValueError, match="not the key"):
                TlsFiles(client).read()
            assert await shown(own) == first
            (client / "cert.pem").unlink()
            assert await shown(own) == first
            put(client, ca, "ingest")
            assert await shown(own) == serial_in(client) != first


async def test_files_are_looked_at_now_and_then_and_not_at_every_call(tmp_path: Path) -> None:
    client, ca, now_s = tmp_path / "client", authority("CA"), [0.0]
    put(client, ca, "ingest")
    own = RenewedChannel(lambda one: make_channel(1, one), TlsFiles(client), lambda: now_s[0], 5.0)
    async with own:
        before = own.current()
        put(client, ca, "ingest")
        now_s[0] = 4.9
        assert own.current() is before
        now_s[0] = 5.0
        assert own.current() is not before

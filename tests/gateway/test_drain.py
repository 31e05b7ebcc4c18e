"""The end of a gateway: what is in flight is finished, nothing new is begun, and impatience is possible."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.gateway.envoy.admin import AdminUnreachable, EnvoyAdmin
from tests.gateway.rig import PAUSE, Answer, Edge, bearer, call, running_edge

QUERY = "/sealcomb.v1.VectorService/Query"
UPLOAD = "/sealcomb.v1.DocumentService/UploadDocument"


@pytest.fixture
def draining(tmp_path: Path) -> Iterator[Edge]:
    """An edge that lets calls in flight go on for long."""
    with running_edge(tmp_path, drain_s="60") as edge:
        yield edge


class InFlight:
    """A call and an upload that last until they are let go."""

    def __init__(self, edge: Edge, token: str) -> None:
        self._edge = edge
        self._let_go = threading.Event()
        self.answers: list[Answer | str] = []
        self._threads = [
            threading.Thread(target=self._unary, args=(token,)),
            threading.Thread(target=self._upload, args=(token,)),
        ]
        edge.backends.gate = self._let_go
        for thread in self._threads:
            thread.start()
        wait_for(
            lambda: edge.backends.held >= 1 and EnvoyAdmin(edge.run_dir / "admin.sock").active_calls() >= 2
        )

    def finish(self) -> None:
        """Lets both end and waits for them."""
        self._let_go.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)

    def _unary(self, token: str) -> None:
        self.answers.append(self._edge.call(QUERY, token, PAUSE, timeout=60))

    def _upload(self, token: str) -> None:
        def parts() -> Iterator[bytes]:
            yield b"\x12\x01a"
            self._let_go.wait(60)
            yield b"\x12\x01b"

        with self._edge.channel() as channel:
            method: Any = channel.stream_unary(UPLOAD)
            try:
                method(parts(), metadata=bearer(token), timeout=60)
            except grpc.RpcError as error:
                self.answers.append(error.code().name)
            else:
                self.answers.append("OK")


def test_calls_and_streams_in_flight_end_well_and_nothing_new_begins(draining: Edge) -> None:
    """G8."""
    edge = draining
    created = edge.create_account()
    assert edge.process is not None
    with edge.channel() as held:
        assert call(held, QUERY, created.token).code is grpc.StatusCode.OK
        work = InFlight(edge, created.token)
        edge.process.send_signal(signal.SIGTERM)
        for port in (edge.port, edge.http_port):
            wait_for(partial(refuses_connections, port))
        # A connection that is there is served, by a policy process that still answers, and then told to go.
        assert call(held, QUERY, created.token).code is grpc.StatusCode.OK
        assert edge.process.poll() is None
        work.finish()
    assert edge.process.wait(30) == 0
    assert [getattr(one, "code", one) for one in work.answers] in (
        [grpc.StatusCode.OK, "OK"],
        ["OK", grpc.StatusCode.OK],
    )
    assert edge.envoy_pids() == []
    assert "calls in flight are cut" not in edge.log()


def test_with_other_gateways_a_connection_between_two_calls_is_told_to_go_before_the_end(
    tmp_path: Path,
) -> None:
    """G8: a call that begins in the instant of the end would fail."""
    with running_edge(tmp_path, stop_notice_s="0.1", drain_s="60") as edge:
        created = edge.create_account()
        assert edge.process is not None
        with edge.channel() as held:
            assert call(held, QUERY, created.token).code is grpc.StatusCode.OK
            edge.process.send_signal(signal.SIGTERM)
            wait_for(lambda: refuses_connections(edge.port))
            # Longer than the end takes that waits for calls in flight alone.
            time.sleep(1)
            assert call(held, QUERY, created.token).code is grpc.StatusCode.OK
        assert edge.process.wait(30) == 0
        assert "calls in flight are cut" not in edge.log()


def test_without_time_to_drain_they_are_cut(tmp_path: Path) -> None:
    """Twin of the test above."""
    with running_edge(tmp_path, drain_s="0") as edge:
        created = edge.create_account()
        work = InFlight(edge, created.token)
        assert edge.stop() == 0
        work.finish()
    assert not any(one == "OK" or getattr(one, "code", None) is grpc.StatusCode.OK for one in work.answers)
    assert "calls in flight are cut" in edge.log()


def test_a_second_signal_ends_it_at_once(draining: Edge) -> None:
    edge = draining
    created = edge.create_account()
    assert edge.process is not None
    work = InFlight(edge, created.token)
    edge.process.send_signal(signal.SIGTERM)
    wait_for(lambda: refuses_connections(edge.port))
    assert edge.process.poll() is None
    edge.process.send_signal(signal.SIGTERM)
    assert edge.process.wait(20) == 0
    work.finish()
    assert edge.envoy_pids() == []


def test_health_says_so_before_connections_are_refused(tmp_path: Path) -> None:
    """G8: readiness flips first."""
    with running_edge(tmp_path, stop_notice_s="60") as edge:
        assert edge.process is not None
        edge.process.send_signal(signal.SIGTERM)
        # On a connection of its own each time.
        wait_for(lambda: edge.health() == "NOT_SERVING")
        assert not refuses_connections(edge.port)
        edge.process.send_signal(signal.SIGTERM)
        assert edge.process.wait(20) == 0


def test_an_envoy_that_is_gone_is_no_reason_to_wait(tmp_path: Path) -> None:
    admin = EnvoyAdmin(tmp_path / "nobody.sock")
    for ask in (admin.stop_listening, admin.active_calls, admin.connections, admin.metrics):
        with pytest.raises(AdminUnreachable):
            ask()


def refuses_connections(port: int) -> bool:
    """Whether nobody listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except ConnectionRefusedError:
        return True
    return False


def wait_for(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)

"""What holds for every test: nothing reaches past this machine.

Only loopback and Unix sockets may be used. The guard is an audit hook, so it sees every socket that Python
opens, whichever library asks; sockets of native code (grpc, libuv) and of other processes are beyond it.
Property tests have no deadline for one example: a busy machine must not turn a right answer red.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import services  # noqa: F401  (sets what grpc reads when it is imported, before any test imports it)
from tests.postgres import Postgres, running_postgres
from tests.seaweed import SeaweedFs, running_seaweed

_LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
_GUARDED = frozenset(
    {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}
)


class OutsideNetworkRefused(RuntimeError):
    """A test asked for an address beyond this machine."""


def is_local(host: object) -> bool:
    """Whether a host as sockets name it is this machine; names that need a resolver are not."""
    if host is None or host == "":
        return True
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if not isinstance(host, str):
        return False
    if host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def refuse_outside(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook: refuse whatever names a host that is not this machine."""
    if event not in _GUARDED:
        return
    address = (
        arguments[0] if event.startswith("socket.gethost") or event == "socket.getaddrinfo" else arguments[1]
    )
    # Unix sockets are named by a path; netlink and the like by tuples without a host.
    host = address[0] if isinstance(address, tuple) else address
    unix = event in {"socket.connect", "socket.sendto", "socket.sendmsg"} and not isinstance(address, tuple)
    if unix or isinstance(host, int) or is_local(host):
        return
    raise OutsideNetworkRefused(f"tests stay on this machine; asked for {host!r} by {event}")


sys.addaudithook(refuse_outside)
settings.register_profile("sealcomb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sealcomb")


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A real PostgreSQL, one for all tests; `make_database` makes a database of a test's own."""
    with running_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFs]:
    """A real S3 server, one for all tests; `make_bucket` makes a bucket of a test's own."""
    with running_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server

"""What is left of keys in keyvault's memory, read from outside, once they are turned off (D16, D25)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sealcomb.internal.v1 import keyvault_service_pb2 as pb
from sealcomb.internal.v1 import keyvault_service_pb2_grpc as stubs
from sealcomb.v1 import key_service_pb2 as key_pb
from sealcomb.v1 import key_service_pb2_grpc as key_stubs
from services.common import ids
from services.common.clock import SystemClock
from services.common.context import HEADER, CallContext, ContextSigner
from services.common.sealing import DataKey
from services.common.tls import host_of
from services.keyvault.kms.file import FileKms
from services.standalone.config import Layout, StandaloneSettings
from services.standalone.pki import Installation
from tests.common import cobblestone_reader as reader
from tests.keyvault.test_main import _Install, install

__all__ = ["install"]
_KEYS = 40
_QUERY = "/sealcomb.v1.VectorService/Query"


class _Callers:
    """The services that call a keyvault process."""

    def __init__(self, install: _Install) -> None:
        self._install = install
        self._signer = ContextSigner.from_file(install.keys.context_key_file("gateway"))
        self.account = ids.new_id()

    @contextlib.contextmanager
    def channel(self, service: str) -> Iterator[grpc.Channel]:
        """A channel of a service."""
        folder = self._install.keys.tls_dir(service)
        files = ((folder / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
        options = [("grpc.ssl_target_name_override", host_of("keyvault"))]
        address = self._install.environment["SEALCOMB_LISTEN"]
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(*files), options) as channel:
            yield channel

    def metadata(self, method: str) -> tuple[tuple[str, str], ...]:
        """A context for a method."""
        now, audience = SystemClock().now_s(), ("keyvault",)
        context = CallContext(
            "gateway", audience, self.account, "t", ("keys",), (), method, now, now + 30, "r"
        )
        return ((HEADER, self._signer.sign(context)),)

    def provision(self) -> None:
        """Makes the account."""
        method = "/sealcomb.v1.AccountService/CreateAccount"
        with self.channel("gateway") as channel:
            request = pb.ProvisionAccountRequest()
            stubs.KeyReleaseServiceStub(channel).ProvisionAccount(request, metadata=self.metadata(method))

    def release(self, count: int) -> list[bytes]:
        """Data keys that left; none for refusals."""
        found = []
        with self.channel("vectorstore") as channel:
            stub = stubs.KeyReleaseServiceStub(channel)
            for _ in range(count):
                request = pb.GetDataKeyRequest(resource=ids.new_id(), purpose="collection")
                with contextlib.suppress(grpc.RpcError):
                    found.append(bytes(stub.GetDataKey(request, metadata=self.metadata(_QUERY)).secret))
        return found

    def disable(self) -> None:
        """Turns the account's key off."""
        with self.channel("gateway") as channel:
            metadata = self.metadata("/sealcomb.v1.KeyService/DisableKey")
            key_stubs.KeyServiceStub(channel).DisableKey(key_pb.DisableKeyRequest(), metadata=metadata)


def _memory(pid: int) -> bytes:
    """Everything that a process has mapped and that can be read."""
    parts = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, rights = line.split()[:2]
            if not rights.startswith("rw"):
                continue
            start, end = (int(number, 16) for number in place.split("-"))
            with contextlib.suppress(OSError):
                memory.seek(start)
                parts.append(memory.read(end - start))
    return b"".join(parts)


def _account_key(install: _Install, account: str) -> bytes:
    root = install.keys.root_key_file.read_bytes()
    with contextlib.closing(sqlite3.connect(install.folder / "data" / "keyvault.db")) as database:
        query = "select handle from account_keys where account = ?"
        handle = database.execute(query, (account,)).fetchone()[0]
    root_id = hashlib.sha256(b"sealcomb root key id\0" + root).digest()[:16]
    return reader.read_object(root, root_id, (account, "account-key", "kek", "", 1), handle)[16:]


def _as_standalone(folder: Path) -> dict[str, str]:
    """How standalone has keyvault's memory wiped."""
    layout = Layout(StandaloneSettings(data_dir=folder), Installation(folder), {"keyvault": 1, "gateway": 2})
    names = ("GLIBC_TUNABLES", "PYTHONMALLOC")
    return {name: layout.environment("keyvault", {})[name] for name in names}


def test_an_account_key_leaves_memory_when_it_is_turned_off_and_data_keys_when_they_have_left(
    install: _Install, tmp_path: Path
) -> None:
    """D16: the account key is found while it is in use, which proves the scan, and not after the disable.

    Data keys are never held; a few copies stay until their place is used again (docs/security.md).
    """
    install.environment |= _as_standalone(tmp_path)
    callers = _Callers(install)
    with install.serving() as started:
        callers.provision()
        keys = callers.release(_KEYS)
        assert len(set(keys)) == _KEYS
        account_key = _account_key(install, callers.account)
        assert account_key in _memory(started.pid)
        callers.disable()
        assert callers.release(_KEYS) == []
        memory = _memory(started.pid)
        assert account_key not in memory
        assert sum(key in memory for key in keys) <= _KEYS // 4


def test_no_key_is_in_any_log_however_much_is_logged(install: _Install, tmp_path: Path) -> None:
    """D25: with grpc's own tracing on as well, which the method's name in the log proves."""
    install.environment |= {"SEALCOMB_LOG_LEVEL": "debug", "GRPC_TRACE": "all", "GRPC_VERBOSITY": "DEBUG"}
    callers = _Callers(install)
    log = tmp_path / "log"
    with log.open("wb") as written, install.logging_to(written):
        callers.provision()
        keys = callers.release(_KEYS)
        callers.disable()
    content = log.read_bytes()
    assert len(keys) == _KEYS
    forms = [form for key in keys for form in (key, key.hex().encode(), repr(key)[2:-1].encode())]
    forms.append(_account_key(install, callers.account))
    assert not [form for form in forms if form in content]
    assert b"GetDataKey" in content


def test_the_scan_reads_what_is_there(tmp_path: Path) -> None:
    """The twin of both: a secret of our own process is found."""
    secret = os.urandom(32)
    assert secret in _memory(os.getpid())


def test_keys_are_in_no_repr_of_what_holds_them() -> None:
    """Nor in a message's text, but for the one that carries a key, which nothing logs."""
    secret: Any = b"canary of a secret key, 32 bytes"
    holders = [FileKms(secret), DataKey(ids.new_id(), secret), FileKms(secret)._root]
    assert not any("canary" in f"{holder!r} {holder}" for holder in holders)
    with pytest.raises(TypeError):
        pickle.dumps(holders[2])

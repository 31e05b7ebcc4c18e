"""A keyvault process whose KMS is silent, slow or asked too much, as the services see it (D12, D13, D14).

What the services hold goes on until its time, then the answer is UNAVAILABLE and never "disabled";
what one account asks for costs the others nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sealcomb.v1 import key_service_pb2, key_service_pb2_grpc
from services.common import ids
from services.common.clock import SystemClock
from services.common.context import CallContext, Caller, ContextSigner, acting_as
from services.common.datakeys import DataKeys
from services.common.errors import SealcombError
from services.common.rpc.channel import context_metadata, open_channel
from services.common.rpc.keyvault import KeyvaultClient
from services.common.tls import TlsFiles
from services.keyvault.kms import aws_client as aws_client_module
from services.keyvault.kms.aws import AwsKms
from services.keyvault.kms.faults import KmsKeyDisabled, KmsUnavailable
from services.keyvault.records import Wrapping
from tests.keyvault.kms.aws_fake import AwsFake
from tests.keyvault.kms.conftest import aws_client
from tests.keyvault.kms.process import KeyvaultProcess, aws_settings, until

_CREATE_ACCOUNT = "/sealcomb.v1.AccountService/CreateAccount"
_QUERY = "/sealcomb.v1.VectorService/Query"
_TTL_S = 3.0
_WITHIN_S = 30.0


class Services:
    """The services of one keyvault process, each under its own certificate."""

    def __init__(self, keyvault: KeyvaultProcess) -> None:
        self._signer = ContextSigner.from_file(keyvault.keys.context_key_file("gateway"))
        self._channels = {
            peer: open_channel(
                f"127.0.0.1:{keyvault.port}", "keyvault", TlsFiles(keyvault.keys.tls_dir(peer))
            )
            for peer in ("gateway", "vectorstore")
        }
        self.vectorstore = KeyvaultClient(self._channels["vectorstore"])

    @contextmanager
    def calling(self, account: str, method: str = _QUERY) -> Iterator[None]:
        """The block runs under a fresh context of an account."""
        now_s = SystemClock().now_s()
        context = CallContext(
            "gateway", ("keyvault",), account, "tok1", ("read",), (), method, now_s, now_s + 30, "req1"
        )
        with acting_as(Caller(context, self._signer.sign(context))):
            yield

    async def new_account(self) -> str:
        """An account with its key."""
        account = ids.new_id()
        with self.calling(account, _CREATE_ACCOUNT):
            await KeyvaultClient(self._channels["gateway"]).provision_account()
        return account

    async def key(self, account: str) -> key_service_pb2.Key:
        """The account's key as its owner sees it."""
        stub = key_service_pb2_grpc.KeyServiceStub(self._channels["gateway"])
        method = "/sealcomb.v1.KeyService/GetKey"
        with self.calling(account, method):
            request = key_service_pb2.GetKeyRequest()
            return (await stub.GetKey(request, metadata=context_metadata(), timeout=10)).key

    async def close(self) -> None:
        """Ends the connections."""
        for channel in self._channels.values():
            await channel.close()


@pytest.fixture
async def services(fake: AwsFake, tmp_path: Path) -> AsyncIterator[Services]:
    """The services of a keyvault whose keys are in AWS."""
    settings = aws_settings(fake, SEALCOMB_KMS_CALLS_PER_SECOND="1000", SEALCOMB_KMS_TIMEOUT_S="2")
    keyvault = KeyvaultProcess(tmp_path, **settings)
    with keyvault.started() as process:
        await asyncio.to_thread(until, process, "serving")
        services = Services(keyvault)
        yield services
        await services.close()


async def _outcome(call: Any) -> str:
    try:
        await call
    except SealcombError as error:
        return error.reason
    return "OK"


async def test_what_a_service_holds_goes_on_without_the_kms_and_then_says_unavailable(
    services: Services, fake: AwsFake
) -> None:
    """D12: not "disabled", nothing destroyed; it works again as soon as the KMS does."""
    account = await services.new_account()
    resource, other = ids.new_id(), ids.new_id()
    held = DataKeys(services.vectorstore, SystemClock(), _TTL_S)
    with services.calling(account):
        key = await held.current(resource, "collection")
        taken_s = time.monotonic()
        fake.stop()
        seen: list[str] = []
        while (outcome := await _outcome(held.current(resource, "collection"))) == "OK":
            seen.append(outcome)
            assert time.monotonic() < taken_s + _WITHIN_S
            await asyncio.sleep(0.05)
        held_s = time.monotonic() - taken_s
        assert outcome == "KMS_UNAVAILABLE"
        assert held_s >= _TTL_S
        assert seen
        # What it never held is not to be had meanwhile, under the same name.
        assert await _outcome(held.current(other, "collection")) == "KMS_UNAVAILABLE"
    assert (await services.key(account)).state == key_service_pb2.KEY_STATE_ENABLED
    fake.start()
    with services.calling(account):
        back_s = time.monotonic()
        while await _outcome(held.current(resource, "collection")) != "OK":
            # Within a second on a machine that does nothing else; bench-keys has the figure.
            assert time.monotonic() < back_s + 10
            await asyncio.sleep(0.02)
        assert await held.current(resource, "collection") == key
    assert {found.state for found in fake.states.keys.values()} == {"Enabled"}


async def test_a_replica_that_is_told_nothing_stops_after_the_time_that_it_holds_keys(
    services: Services,
) -> None:
    """D14: its watch is gone for good, and the key was disabled right after it took it."""
    account = await services.new_account()
    resource = ids.new_id()
    deaf = DataKeys(services.vectorstore, SystemClock(), _TTL_S)
    stub = key_service_pb2_grpc.KeyServiceStub(services._channels["gateway"])
    with services.calling(account):
        before_s = time.monotonic()
        await deaf.current(resource, "collection")
    with services.calling(account, "/sealcomb.v1.KeyService/DisableKey"):
        await stub.DisableKey(key_service_pb2.DisableKeyRequest(), metadata=context_metadata(), timeout=10)
    with services.calling(account):
        last_ok_s = before_s
        while True:
            asked_s = time.monotonic()
            outcome = await _outcome(deaf.current(resource, "collection"))
            if outcome != "OK":
                break
            last_ok_s = asked_s
            assert asked_s < before_s + _WITHIN_S
            await asyncio.sleep(0.02)
    assert outcome == "KEY_DISABLED"
    # The bound counts from before the key was taken, so no use begins later.
    assert last_ok_s - before_s <= _TTL_S + 0.5


async def test_one_accounts_storm_on_a_slow_key_leaves_the_others_alone(
    services: Services, fake: AwsFake
) -> None:
    """D13: one call in flight for the account in its KMS, and 99.9 % of the others' calls succeed."""
    stormy = await services.new_account()
    slow = next(iter(key.arn for key in fake.states.keys.values() if key.tags["sealcomb:account"] == stormy))
    others = [await services.new_account() for _ in range(5)]
    resources = {other: [ids.new_id() for _ in range(4)] for other in others}
    fake.faults.delay_by_key[slow] = 0.3
    stop = asyncio.Event()
    storms: Counter[str] = Counter()

    async def storm() -> None:
        with services.calling(stormy):
            while not stop.is_set():
                call = services.vectorstore.get_data_key(ids.new_id(), "collection", "")
                storms[await _outcome(call)] += 1

    async def work(other: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for _ in range(50):
            with services.calling(other):
                for resource in resources[other]:
                    found[await _outcome(services.vectorstore.get_data_key(resource, "collection", ""))] += 1
        return found

    storming = [asyncio.create_task(storm()) for _ in range(100)]
    await asyncio.sleep(0.5)
    fake.in_flight_max.clear()
    outcomes = sum(await asyncio.gather(*(work(other) for other in others)), Counter[str]())
    stop.set()
    await asyncio.gather(*storming)
    assert outcomes["OK"] >= 0.999 * sum(outcomes.values()), (outcomes, storms)
    assert fake.in_flight_max[stormy] == 1
    # The storm was one: it got its turns, and no more.
    assert storms["OK"] > 0


async def test_an_error_of_the_network_never_reads_as_disabled(
    fake: AwsFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D12: in the provider; and the twin, where it would be taken for a refusal."""
    kms = AwsKms(aws_client(fake))
    key = await kms.new_key(ids.new_id(), 1)
    wrapping = Wrapping(key.account, ids.new_id(), "collection", ids.new_id())
    wrapped = await kms.wrap(key, wrapping, bytes(32))
    fake.stop()
    with pytest.raises(KmsUnavailable):
        await kms.unwrap(key, wrapping, wrapped)
    monkeypatch.setattr(aws_client_module, "KmsUnavailable", lambda **_values: KmsKeyDisabled())
    with pytest.raises(KmsKeyDisabled):
        await kms.unwrap(key, wrapping, wrapped)
    await kms.close()

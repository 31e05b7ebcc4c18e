"""Permits: as good as the call they came from, for one peer and one job, until the job ends."""

from __future__ import annotations

import asyncio

import pytest

from services.common import ids
from services.common.context import ContextRefused, ContextVerifier
from services.common.errors import (
    AlreadyExists,
    InvalidArgument,
    KeyDisabled,
    PermissionDenied,
    ResourceExhausted,
    SealcombError,
)
from services.keyvault import permits, releases
from services.keyvault.asker import Asker
from services.keyvault.policy import AccountSuspended, AccountUnknown, PermitEnded
from tests.keyvault.rig import Rig

_UPLOAD = "/sealcomb.v1.DocumentService/UploadDocument"
_RESOURCE = ids.from_bytes(bytes(16))


def _ingest(rig: Rig, account: str) -> Asker:
    return rig.asker(account, "ingest", _UPLOAD, scopes=("read", "write"), collections=("bees",))


async def _permit(rig: Rig, account: str, job_id: str, ttl_s: int = 600) -> Asker:
    """Somebody who asks under a fresh permit, as the services would verify it."""
    text = (await rig.permits.issue(_ingest(rig, account), job_id, ttl_s)).permit
    verifier = ContextVerifier("keyvault", {"keyvault": rig.signing_key.public_key()}, rig.clock)
    return Asker("ingest", verifier.verify(text))


async def test_a_permit_carries_the_calls_context_and_nothing_more(memory_rig: Rig) -> None:
    rig, job_id = memory_rig, ids.new_id()
    account = await rig.account()
    call = _ingest(rig, account).context
    context = (await _permit(rig, account, job_id)).context
    assert (context.issuer, context.audience, context.bearer) == (
        "keyvault",
        ("vectorstore", "keyvault"),
        "ingest",
    )
    assert (context.job_id, context.account) == (job_id, account)
    assert context.expires_s - context.issued_s == 600
    for name in ("token_id", "scopes", "collections", "method", "request_id"):
        assert getattr(context, name) == getattr(call, name)
    verifier = ContextVerifier("gateway", {"keyvault": rig.signing_key.public_key()}, rig.clock)
    with pytest.raises(ContextRefused):
        verifier.verify((await rig.permits.issue(_ingest(rig, account), ids.new_id(), 600)).permit)


async def test_a_permit_releases_keys_long_after_its_call(memory_rig: Rig) -> None:
    rig = memory_rig
    account = await rig.account()
    asker = await _permit(rig, account, ids.new_id(), 3600)
    key = await rig.releases.release(asker, _RESOURCE, "documents")
    rig.clock.time_s += 3599
    assert await rig.releases.release(asker, _RESOURCE, "documents") == key
    rig.clock.time_s += 1
    with pytest.raises(PermitEnded):
        await rig.releases.release(asker, _RESOURCE, "documents")


async def test_an_ended_job_releases_nothing_more(memory_rig: Rig) -> None:
    rig, job_id = memory_rig, ids.new_id()
    account = await rig.account()
    asker, other = await _permit(rig, account, job_id), await _permit(rig, account, ids.new_id())
    await rig.releases.release(asker, _RESOURCE, "documents")
    await rig.permits.end(asker, job_id)
    await rig.permits.end(asker, job_id)
    await rig.permits.end(_ingest(rig, account), ids.new_id())
    with pytest.raises(PermitEnded):
        await rig.releases.release(asker, _RESOURCE, "documents")
    await rig.releases.release(other, _RESOURCE, "documents")
    acts = await rig.acts(account)
    assert [action for action, _peer, _outcome in acts].count("permit.end") == 1
    assert ("key.release", "ingest", "PERMIT_ENDED") in acts
    with pytest.raises(AlreadyExists):
        await rig.permits.issue(_ingest(rig, account), job_id, 600)


async def test_an_ended_job_releases_once_jobs_are_not_looked_up(
    memory_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin."""
    rig, job_id = memory_rig, ids.new_id()
    account = await rig.account()
    asker = await _permit(rig, account, job_id)
    await rig.permits.end(asker, job_id)
    monkeypatch.setattr(releases, "_permit_refusal", lambda *_arguments: None)
    await rig.releases.release(asker, _RESOURCE, "documents")


@pytest.mark.parametrize("act", ["disable", "suspend"])
async def test_disable_and_suspend_end_every_permit_for_good(memory_rig: Rig, act: str) -> None:
    """B16, D14: the work begins again after the account returns; the old permit does not."""
    rig = memory_rig
    account, bystander = await rig.account(), await rig.account()
    asker, other = await _permit(rig, account, ids.new_id()), await _permit(rig, bystander, ids.new_id())
    refusal: type[SealcombError] = KeyDisabled if act == "disable" else AccountSuspended
    owner = rig.asker(account, "gateway")
    await (rig.vault.disable(owner) if act == "disable" else rig.vault.set_suspended(owner, True))
    with pytest.raises(refusal):
        await rig.releases.release(asker, _RESOURCE, "documents")
    with pytest.raises(refusal):
        await _permit(rig, account, ids.new_id())
    await (rig.vault.enable(owner) if act == "disable" else rig.vault.set_suspended(owner, False))
    with pytest.raises(PermitEnded):
        await rig.releases.release(asker, _RESOURCE, "documents")
    await rig.releases.release(other, _RESOURCE, "documents")
    await rig.releases.release(await _permit(rig, account, ids.new_id()), _RESOURCE, "documents")


async def test_a_destroyed_accounts_permit_is_worth_nothing(memory_rig: Rig) -> None:
    rig = memory_rig
    account = await rig.account()
    asker = await _permit(rig, account, ids.new_id())
    await rig.vault.destroy(rig.asker(account, "gateway"))
    with pytest.raises(AccountUnknown):
        await rig.releases.release(asker, _RESOURCE, "documents")
    with pytest.raises(AccountUnknown):
        await _permit(rig, account, ids.new_id())


async def test_a_permit_is_no_ones_elses(memory_rig: Rig) -> None:
    """D1: neither another peer's nor another account's, and its job is not another account's either."""
    rig, job_id = memory_rig, ids.new_id()
    alice, bob = await rig.account(), await rig.account()
    asker = await _permit(rig, alice, job_id)
    # Vectorstore is called with it, and asks for its own keys; nobody else is.
    await rig.releases.release(Asker("vectorstore", asker.context), _RESOURCE, "collection")
    with pytest.raises(PermitEnded):
        await rig.releases.release(Asker("gateway", asker.context), "profile", "profile")
    await rig.permits.end(_ingest(rig, bob), job_id)
    await rig.releases.release(asker, _RESOURCE, "documents")
    await _permit(rig, bob, job_id)
    await rig.permits.end(Asker("vectorstore", _ingest(rig, alice).context), job_id)
    await rig.releases.release(asker, _RESOURCE, "documents")


async def test_a_permit_begets_no_permit_and_ends_no_other_job(memory_rig: Rig) -> None:
    rig = memory_rig
    account, other = await rig.account(), ids.new_id()
    asker = await _permit(rig, account, ids.new_id())
    await _permit(rig, account, other)
    with pytest.raises(PermissionDenied):
        await rig.permits.issue(asker, ids.new_id(), 600)
    with pytest.raises(PermissionDenied):
        await rig.permits.end(asker, other)


@pytest.mark.parametrize("ttl_s", [0, -1, 3601, 2**31])
async def test_a_permits_life_is_bounded(memory_rig: Rig, ttl_s: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await memory_rig.permits.issue(_ingest(memory_rig, await memory_rig.account()), ids.new_id(), ttl_s)
    assert caught.value.fields[0].field == "ttl_s"


async def test_malformed_job_ids_are_refused(memory_rig: Rig) -> None:
    account = await memory_rig.account()
    for job_id in ("", "job", "A" * 26, "x" * 10_000):
        with pytest.raises(InvalidArgument):
            await memory_rig.permits.issue(_ingest(memory_rig, account), job_id, 60)
        with pytest.raises(InvalidArgument):
            await memory_rig.permits.end(_ingest(memory_rig, account), job_id)


async def test_permits_are_bounded_in_number_and_forgotten_in_time(
    memory_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = memory_rig
    monkeypatch.setattr(permits, "_PERMITS_MAX", 3)
    account = await rig.account()
    results = await asyncio.gather(
        *(_permit(rig, account, ids.new_id(), 60) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(result, ResourceExhausted) for result in results) == 2
    rig.clock.time_s += 61
    await _permit(rig, account, ids.new_id())
    assert rig.sql("select count(*) from permits")[0][0] == 1

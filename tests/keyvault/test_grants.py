"""Grants: what standing work keeps at rest. They open nothing, hold no names, and end with the job."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable

import pytest

from services.common import ids
from services.common.context import ContextRefused, ContextVerifier
from services.common.errors import InvalidArgument, KeyDisabled, SealcombError
from services.keyvault.asker import Asker
from services.keyvault.permits import Issued
from services.keyvault.policy import AccountSuspended, KeyUnknown, PermitEnded
from tests.keyvault.rig import Rig

_CREATE = "/sealcomb.v1.IngestionService/CreateIngestion"
_MINE = ids.from_bytes(bytes(16))
_OTHER = ids.from_bytes(bytes(15) + b"\1")
_YEAR_S = 365 * 86_400


def _ingest(rig: Rig, account: str) -> Asker:
    return rig.asker(account, "ingest", _CREATE, scopes=("sources", "write"), collections=("secret bees",))


async def _issue(rig: Rig, account: str, job_id: str) -> Issued:
    return await rig.permits.issue(_ingest(rig, account), job_id, 60, collection_id=_MINE, standing=True)


def _as_permit(rig: Rig, text: str) -> Asker:
    verifier = ContextVerifier("keyvault", {"keyvault": rig.signing_key.public_key()}, rig.clock)
    return Asker("ingest", verifier.verify(text))


async def test_a_grant_is_exchanged_for_permits_long_after_its_call(memory_rig: Rig) -> None:
    rig = memory_rig
    account, job_id = await rig.account(), ids.new_id()
    grant = (await _issue(rig, account, job_id)).grant
    key = await rig.releases.release(
        _as_permit(rig, (await _issue(rig, account, ids.new_id())).permit), _MINE, "documents"
    )
    rig.clock.time_s += _YEAR_S
    asker = _as_permit(rig, await rig.permits.renew("ingest", grant, 600))
    assert (asker.context.job_id, asker.context.account) == (job_id, account)
    assert asker.context.expires_s - asker.context.issued_s == 600
    assert await rig.releases.release(asker, _MINE, "documents") == key
    rig.clock.time_s += _YEAR_S
    with pytest.raises(ContextRefused):
        await rig.permits.renew("ingest", grant, 600)


async def test_a_kept_grant_holds_no_names(memory_rig: Rig) -> None:
    """The collections of the token become one id; what is signed is readable, so it is looked into."""
    rig = memory_rig
    issued = await _issue(rig, await rig.account(), ids.new_id())
    for text in (issued.grant, issued.permit):
        payload = text.split(".")[0]
        assert b"bees" not in base64.urlsafe_b64decode(payload + "==")
    assert "grant" not in repr(issued)


async def test_a_grant_opens_nothing_itself(memory_rig: Rig) -> None:
    """D1: it is no permit, and a permit is no grant."""
    rig = memory_rig
    issued = await _issue(rig, await rig.account(), ids.new_id())
    with pytest.raises(ContextRefused):
        _as_permit(rig, issued.grant)
    with pytest.raises(ContextRefused):
        await rig.permits.renew("ingest", issued.permit, 60)
    with pytest.raises(ContextRefused):
        await rig.permits.renew("vectorstore", issued.grant, 60)
    assert await rig.permits.renew("ingest", issued.grant, 60)


@pytest.mark.parametrize(
    ("stop", "refused"),
    [
        (lambda rig, asker, job: rig.permits.end(asker, job), PermitEnded),
        (lambda rig, asker, _job: rig.vault.set_suspended(asker, True), AccountSuspended),
        (lambda rig, asker, _job: rig.vault.disable(asker), KeyDisabled),
    ],
)
async def test_what_stops_the_work_stops_the_grant(
    memory_rig: Rig, stop: Callable[[Rig, Asker, str], Awaitable[None]], refused: type[SealcombError]
) -> None:
    """B16: an ended job, a suspended account, a disabled key; and none comes back with the account."""
    rig, job_id = memory_rig, ids.new_id()
    account = await rig.account()
    grant = (await _issue(rig, account, job_id)).grant
    permit = _as_permit(rig, await rig.permits.renew("ingest", grant, 600))
    await stop(rig, _ingest(rig, account), job_id)
    with pytest.raises(refused):
        await rig.permits.renew("ingest", grant, 600)
    with pytest.raises(refused):
        await rig.releases.release(permit, _MINE, "documents")
    await rig.vault.set_suspended(_ingest(rig, account), False)
    await rig.vault.enable(_ingest(rig, account))
    with pytest.raises(PermitEnded):
        await rig.permits.renew("ingest", grant, 600)


async def test_a_permit_for_one_collection_opens_no_other(memory_rig: Rig) -> None:
    """D1: least authority for work that nobody watches; the twin without a collection opens both."""
    rig = memory_rig
    account = await rig.account()
    bound = _as_permit(rig, (await _issue(rig, account, ids.new_id())).permit)
    await rig.releases.release(bound, _MINE, "documents")
    await rig.releases.release(bound, ids.new_id(), "connection")
    with pytest.raises(KeyUnknown):
        await rig.releases.release(bound, _OTHER, "documents")
    free = await rig.permits.issue(_ingest(rig, account), ids.new_id(), 60)
    await rig.releases.release(_as_permit(rig, free.permit), _OTHER, "documents")


async def test_standing_work_names_its_collection(memory_rig: Rig) -> None:
    rig = memory_rig
    asker = _ingest(rig, await rig.account())
    for collection_id in ("", "bees"):
        with pytest.raises(InvalidArgument) as caught:
            await rig.permits.issue(asker, ids.new_id(), 60, collection_id=collection_id, standing=True)
        assert caught.value.fields[0].field == "collection_id"

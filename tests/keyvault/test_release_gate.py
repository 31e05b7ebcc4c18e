"""What a service that was taken over can ask for: bounded in time, and told (C4)."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from services.common import ids
from services.common.alarms import NOTES_MAX
from services.common.errors import SealcombError
from services.keyvault import release_gate
from services.keyvault.policy import AccountUnknown
from services.keyvault.release_gate import ReleaseGate, ReleaseRate
from tests.keyvault.rig import Rig

_RESOURCE = ids.from_bytes(bytes(16))


def _alarms(peer: str, kind: str) -> float:
    labels = {"service": "keyvault", "peer": peer, "kind": kind}
    return REGISTRY.get_sample_value("sealcomb_alarms_total", labels) or 0.0


async def test_a_thousand_foreign_accounts_give_no_key_and_one_alarm(memory_rig: Rig) -> None:
    """C4: every request is refused, and somebody is told."""
    rig = memory_rig
    before = _alarms("ingest", "ACCOUNT_NOT_FOUND")
    for _ in range(1000):
        with pytest.raises(AccountUnknown):
            await rig.gate.release(rig.asker(ids.new_id(), "ingest"), _RESOURCE, "documents")
    assert _alarms("ingest", "ACCOUNT_NOT_FOUND") == before + 1


async def test_keys_of_other_services_are_refused_recorded_and_told(memory_rig: Rig) -> None:
    """C4: with a real account's context as well."""
    rig = memory_rig
    account = await rig.account()
    before = _alarms("ingest", "PURPOSE_REFUSED")
    for _ in range(NOTES_MAX):
        with pytest.raises(SealcombError) as caught:
            await rig.gate.release(rig.asker(account, "ingest"), _RESOURCE, "collection")
        assert caught.value.reason == "PURPOSE_REFUSED"
    assert _alarms("ingest", "PURPOSE_REFUSED") == before + 1
    assert ("key.release", "ingest", "PURPOSE_REFUSED") in await rig.acts(account)


async def test_one_service_gets_no_more_keys_than_its_rate_and_others_theirs(memory_rig: Rig) -> None:
    """C4: whatever it could open it opens slowly; the rate comes back with time."""
    rig = memory_rig
    gate = ReleaseGate(rig.releases, rig.clock, 5.0, rig.alarms)
    asker = rig.asker(await rig.account())
    before = _alarms("vectorstore", "RELEASE_RATE")
    for _ in range(20):
        await gate.release(asker, _RESOURCE, "collection")
    for _ in range(NOTES_MAX):
        with pytest.raises(ReleaseRate) as caught:
            await gate.release(asker, _RESOURCE, "collection")
        assert caught.value.retry_after_s == pytest.approx(0.2)
    assert _alarms("vectorstore", "RELEASE_RATE") == before + 1
    await gate.release(rig.asker(asker.account, "ingest"), _RESOURCE, "documents")
    rig.clock.time_s += 1
    for _ in range(5):
        await gate.release(asker, _RESOURCE, "collection")
    with pytest.raises(ReleaseRate):
        await gate.release(asker, _RESOURCE, "collection")


async def test_without_the_rate_it_gets_as_many_as_it_asks_for(
    memory_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4's twin."""
    rig = memory_rig
    monkeypatch.setattr(release_gate.ReleaseGate, "_spend", lambda *_arguments: None)
    gate = ReleaseGate(rig.releases, rig.clock, 5.0, rig.alarms)
    asker = rig.asker(await rig.account())
    for _ in range(100):
        await gate.release(asker, _RESOURCE, "collection")


async def test_a_disabled_key_is_no_alarm(memory_rig: Rig) -> None:
    """Users may ask for what they turned off as often as they like."""
    rig = memory_rig
    account = await rig.account()
    await rig.vault.disable(rig.asker(account))
    before = _alarms("vectorstore", "KEY_DISABLED")
    for _ in range(2 * NOTES_MAX):
        with pytest.raises(SealcombError):
            await rig.gate.release(rig.asker(account), _RESOURCE, "collection")
    assert _alarms("vectorstore", "KEY_DISABLED") == before

"""Signed checkpoints of the audit chain (D19): what they notice, and what goes unnoticed without them."""

from __future__ import annotations

import pytest

from sealcomb_client.audit import ChainBroken, ChainHead, checkpoint_head, verify_chain
from services.common import ids
from services.keyvault.audit import FIRST_HASH, export_line, link
from services.keyvault.policy import AccountUnknown
from tests.keyvault.rig import Rig


async def _export(rig: Rig, account: str) -> list[str]:
    return [line async for line in rig.checkpoints.export(account)]


@pytest.fixture
async def busy(memory_rig: Rig) -> tuple[Rig, str, bytes]:
    """A rig, an account with some records, and the public key."""
    account = await memory_rig.account()
    for _ in range(5):
        await memory_rig.releases.release(memory_rig.asker(account), ids.new_id(), "collection")
    return memory_rig, account, memory_rig.statements.public_pem.encode()


async def test_an_export_ends_in_a_checkpoint_that_the_key_verifies(busy: tuple[Rig, str, bytes]) -> None:
    rig, account, key = busy
    lines = await _export(rig, account)
    head = verify_chain(lines, public_key=key)
    assert head is not None
    assert head.sequence == len(lines) - 1 == 6
    assert checkpoint_head(await rig.checkpoints.of(account), key) == head


async def test_every_way_of_cutting_the_end_off_is_noticed(busy: tuple[Rig, str, bytes]) -> None:
    """D19: truncation, with and without the checkpoint, names where the chain stops."""
    rig, account, key = busy
    lines = await _export(rig, account)
    for keep in range(len(lines) - 1):
        with pytest.raises(ChainBroken) as caught:
            verify_chain([*lines[:keep], lines[-1]])
        assert caught.value.line == keep + 1
        with pytest.raises(ChainBroken) as caught:
            verify_chain(lines[:keep], public_key=key)
        assert caught.value.line == keep + 1


async def test_without_the_key_a_chain_cut_with_its_checkpoint_looks_whole(
    busy: tuple[Rig, str, bytes],
) -> None:
    """D19's twin: this is what the checkpoint is for."""
    rig, account, _ = busy
    lines = await _export(rig, account)
    assert verify_chain(lines[:3]) is not None


async def test_a_chain_written_anew_by_whoever_has_the_database_does_not_hold(
    busy: tuple[Rig, str, bytes],
) -> None:
    """D19: a whole other chain is consistent in itself, but no checkpoint of it can be signed."""
    rig, account, key = busy
    lines = await _export(rig, account)
    records = await rig.read(lambda tx: tx.events(account, 0, 100))
    previous, forged = FIRST_HASH, []
    for number, record in enumerate(records[1:], 1):
        made = link(account, number, previous, record.act)
        previous = made.hash
        forged.append(export_line(made))
    assert verify_chain(forged) is not None
    for end in ([lines[-1]], []):
        with pytest.raises(ChainBroken):
            verify_chain([*forged, *end], public_key=key)


async def test_a_checkpoint_kept_from_earlier_holds_a_later_export_to_it(
    busy: tuple[Rig, str, bytes],
) -> None:
    """D19: even whoever holds the signing key cannot unsay what was signed before."""
    rig, account, key = busy
    kept = checkpoint_head(await rig.checkpoints.of(account), key)
    await rig.releases.release(rig.asker(account), ids.new_id(), "collection")
    lines = await _export(rig, account)
    assert verify_chain(lines, kept, key) is not None
    with pytest.raises(ChainBroken):
        verify_chain(lines, ChainHead(account, kept.sequence, "0" * 64), key)


async def test_a_changed_checkpoint_and_lines_after_it_are_refused(busy: tuple[Rig, str, bytes]) -> None:
    rig, account, key = busy
    lines = await _export(rig, account)
    text = lines[-1]
    for place in range(len(text)):
        changed = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
        with pytest.raises(ChainBroken):
            verify_chain([*lines[:-1], changed], public_key=key)
    with pytest.raises(ChainBroken) as caught:
        verify_chain([*lines, lines[-1]])
    assert caught.value.line == len(lines) + 1


async def test_a_destroyed_accounts_chain_can_still_be_exported_and_an_unknown_ones_not(
    busy: tuple[Rig, str, bytes],
) -> None:
    rig, account, key = busy
    await rig.vault.destroy(rig.asker(account))
    operator = rig.asker("", "gateway", "/sealcomb.v1.AuditService/ExportAccountEvents")
    lines = [line async for line in rig.checkpoints.export_any(operator, account)]
    assert verify_chain(lines, public_key=key) is not None
    assert (await rig.acts(account))[-1] == ("audit.export", "gateway", "ok")
    assert '"action":"audit.export"' in lines[-2]
    for unknown in (ids.new_id(), "installation", ""):
        with pytest.raises(AccountUnknown):
            [line async for line in rig.checkpoints.export_any(operator, unknown)]
    with pytest.raises(AccountUnknown):
        await rig.checkpoints.of(ids.new_id())

"""The audit chain: verified offline by the client's own code, holding nothing but its fields (D18, D19)."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealcomb_client.audit import ChainBroken, ChainHead, verify_chain
from services.common import ids
from services.common.errors import InvalidArgument
from services.keyvault import audit
from services.keyvault.audit import Act, AuditRecord, export_line, link
from services.keyvault.transaction import Transaction
from tests.keyvault.rig import Rig

_CANARY = "canary of somebody's text"


def _chain(count: int, account: str = "account") -> list[AuditRecord]:
    records: list[AuditRecord] = []
    previous = audit.FIRST_HASH
    for number in range(1, count + 1):
        act = Act(
            1_700_000_000_000_000 + number, "key.release", "vectorstore", "tok", "/s.v1.S/M", "r", "ok", "q"
        )
        records.append(link(account, number, previous, act))
        previous = records[-1].hash
    return records


def _lines(count: int = 8) -> list[str]:
    return [export_line(record) for record in _chain(count)]


def test_a_record_has_the_documented_form() -> None:
    """D18: a golden record; a field more or another spelling changes it."""
    line = _lines(1)[0]
    body = (
        '{"account":"account","action":"key.release","method":"/s.v1.S/M","outcome":"ok","peer":"vectorstore",'
        f'"previous":"{"0" * 64}","request_id":"q","resource":"r","sequence":1,'
        '"time_us":1700000000000001,"token_id":"tok"}'
    )
    digest = hashlib.sha256(b"sealcomb audit v1\0" + body.encode()).hexdigest()
    assert json.loads(line) == {**json.loads(body), "hash": digest}
    assert line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))


def test_a_whole_chain_verifies_and_names_its_head() -> None:
    records = _chain(8)
    lines = [export_line(record) for record in records]
    assert verify_chain(lines) == ChainHead("account", 8, records[-1].hash.hex())
    assert verify_chain(line + "\n" for line in lines) == verify_chain(lines)
    assert verify_chain([]) is None


def test_every_changed_character_is_found_in_its_line() -> None:
    """D19."""
    lines = _lines(3)
    for at, char in enumerate(lines[1]):
        changed = lines[1][:at] + ("1" if char != "1" else "2") + lines[1][at + 1 :]
        with pytest.raises(ChainBroken) as caught:
            verify_chain([lines[0], changed, lines[2]])
        assert caught.value.line == 2


def test_removed_added_and_moved_lines_are_found_where_they_are() -> None:
    """D19: the verifier names the first bad line."""
    lines = _lines(8)
    for at in range(len(lines) - 1):
        before, after = lines[:at], lines[at + 1 :]
        for broken, first_bad in [
            ([*before, *after], at + 1),
            ([*before, lines[at], lines[at], *after], at + 2),
            ([*before, after[0], lines[at], *after[1:]], at + 1),
        ]:
            with pytest.raises(ChainBroken) as caught:
                verify_chain(broken)
            assert caught.value.line == first_bad


def test_a_forged_record_with_a_right_hash_of_its_own_breaks_the_next() -> None:
    """D19: whoever recomputes one hash must recompute all that follow, and then the known head differs."""
    records = _chain(5)
    head = verify_chain(export_line(record) for record in records)
    forged = link("account", 3, records[1].hash, Act(1, "key.release", "nobody"))
    lines = [export_line(record) for record in [*records[:2], forged, *records[3:]]]
    with pytest.raises(ChainBroken) as caught:
        verify_chain(lines)
    assert caught.value.line == 4
    rewritten = [*records[:2], forged]
    for number in (4, 5):
        rewritten.append(link("account", number, rewritten[-1].hash, Act(1, "key.release")))
    lines = [export_line(record) for record in rewritten]
    verify_chain(lines)
    with pytest.raises(ChainBroken) as caught:
        verify_chain(lines, head)
    assert caught.value.line == 5


def test_a_cut_end_is_found_by_an_earlier_head_alone() -> None:
    """D19: the checkpoint; its twin is the verification without one."""
    lines = _lines(8)
    head = verify_chain(lines[:6])
    assert verify_chain(lines, head) == verify_chain(lines)
    assert verify_chain(lines[:5]) is not None
    for cut in (5, 0):
        with pytest.raises(ChainBroken) as caught:
            verify_chain(lines[:cut], head)
        assert caught.value.line == cut + 1


def test_another_accounts_records_do_not_continue_a_chain() -> None:
    mine, other = _chain(2), _chain(2, "other")
    with pytest.raises(ChainBroken):
        verify_chain([export_line(mine[0]), export_line(other[1])])
    crafted = link("other", 2, mine[0].hash, Act(1, "key.release"))
    with pytest.raises(ChainBroken, match="another account"):
        verify_chain([export_line(mine[0]), export_line(crafted)])


@pytest.mark.parametrize(
    "line",
    ["", "{}", "null", "[]", "1", "not json", "[" * 100_000, '{"sequence":1}', '{"a":1,"a":2}', "\ud800"],
)
def test_what_is_no_record_is_refused(line: str) -> None:
    with pytest.raises(ChainBroken) as caught:
        verify_chain([line])
    assert caught.value.line == 1


def test_other_spellings_of_a_record_are_refused() -> None:
    line = _lines(1)[0]
    repeated = line.replace('{"account"', '{"account":"other","account"', 1)
    for odd in (line.replace(":", ": ", 1), " " + line, repeated, line.replace("ok", "\\u006fk", 1)):
        with pytest.raises(ChainBroken, match="canonical form"):
            verify_chain([odd])
    with pytest.raises(ChainBroken, match="fields"):
        verify_chain([line.replace('"sequence":1', '"sequence":true')])


@given(st.text(max_size=80))
def test_no_text_gets_into_a_record(text: str) -> None:
    """D18: each field keeps words of its form and nothing else."""
    act = link("a", 1, audit.FIRST_HASH, Act(1, text, text, text, text, text, text, text)).act
    for value in (act.action, act.peer, act.token_id, act.method, act.resource, act.outcome, act.request_id):
        assert value in {"", "-"} or (
            value == text and len(text) <= 64 and " " not in text and text.isascii()
        )
    verify_chain([export_line(link("a", 1, audit.FIRST_HASH, act))])


async def test_a_lived_life_verifies_and_leaks_nothing(rig: Rig) -> None:
    """D18, D19: every act, refused ones too, with canaries wherever a caller can put text."""
    account = await rig.account()
    odd = rig.asker(account, token_id=_CANARY, request_id=_CANARY, method=f"/sealcomb.v1.S/{_CANARY}")
    key = await rig.releases.release(odd, ids.new_id(), "collection")
    await rig.moves.rotate(odd)
    await rig.vault.disable(odd)
    for attempt in (rig.releases.release(odd, ids.new_id(), "collection"), rig.moves.rotate(odd)):
        with pytest.raises(Exception, match="disabled"):
            await attempt
    await rig.vault.enable(odd)
    await rig.vault.set_suspended(odd, True)
    await rig.vault.record(rig.asker(account, "gateway"), "token.create", "tok2")
    lines = await rig.lines(account)
    head = verify_chain(lines)
    assert head is not None
    assert head.sequence == len(lines) == 9
    text = "\n".join(lines)
    assert "canary" not in text
    assert key.secret.hex() not in text
    fields = "account action hash method outcome peer previous request_id resource sequence time_us token_id"
    assert all(sorted(json.loads(line)) == fields.split() for line in lines)


async def test_a_changed_database_is_found_in_the_export(rig: Rig) -> None:
    """D19: an attacker with the database edits, deletes or swaps records."""
    account = await rig.account()
    for _ in range(5):
        await rig.releases.release(rig.asker(account), ids.new_id(), "collection")
    await rig.lines(account)
    verify_chain(await rig.lines(account))
    rig.sql("update audit_events set outcome='ok2' where sequence=3")
    with pytest.raises(ChainBroken) as caught:
        verify_chain(await rig.lines(account))
    assert caught.value.line == 3
    rig.sql("update audit_events set outcome='ok' where sequence=3")
    rig.sql("delete from audit_events where sequence=4")
    with pytest.raises(ChainBroken) as caught:
        verify_chain(await rig.lines(account))
    assert caught.value.line == 4


async def test_pages_cover_the_chain_once_and_in_order(rig: Rig) -> None:
    account = await rig.account()
    for _ in range(24):
        await rig.releases.release(rig.asker(account), ids.new_id(), "collection")
    sequences: list[int] = []
    token = ""
    while True:
        records, token = await rig.chain.page(account, 7, token)
        sequences += [record.sequence for record in records]
        assert len(records) <= 7
        if not token:
            break
    assert sequences == list(range(1, 26))
    records, token = await rig.chain.page(account, 25, "")
    assert (len(records), token) == (25, "")


async def test_a_page_token_is_its_accounts_own(rig: Rig) -> None:
    """D2."""
    alice, bob = await rig.account(), await rig.account()
    await rig.releases.release(rig.asker(alice), ids.new_id(), "collection")
    _records, token = await rig.chain.page(alice, 1, "")
    for account, odd in ((bob, token), (alice, token[:-2]), (alice, "x"), (alice, "1")):
        with pytest.raises(InvalidArgument) as caught:
            await rig.chain.page(account, 1, odd)
        assert caught.value.fields[0].field == "page_token"


async def test_a_chain_longer_than_a_batch_is_exported_whole(rig: Rig) -> None:
    account = await rig.account()
    asker = rig.asker(account, "gateway")

    def hundred(tx: Transaction) -> None:
        for _ in range(100):
            rig.vault._append(asker, "token.create", "", None, tx)

    for _ in range(11):
        await rig.store.write(hundred)
    lines = await rig.lines(account)
    head = verify_chain(lines)
    assert head is not None
    assert head.sequence == 1101


async def test_chains_are_apart(rig: Rig) -> None:
    alice, bob = await rig.account(), await rig.account()
    await rig.releases.release(rig.asker(alice), ids.new_id(), "collection")
    assert len(await rig.lines(bob)) == 1
    assert await rig.lines(ids.new_id()) == []

"""Whatever is done to an exported chain, `audit verify` names the first line that was changed (D19)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from sealcomb_client.audit import ChainBroken, verify_chain
from services.common import ids
from services.keyvault import audit
from services.keyvault.audit import Act, export_line, link
from services.keyvault.statements import CHECKPOINT, StatementDamaged, StatementSigner

_SIGNER = StatementSigner(Ed25519PrivateKey.generate())
_PUBLIC = _SIGNER.public_pem.encode()


def _export(account: str, count: int) -> list[str]:
    lines, previous = [], audit.FIRST_HASH
    for number in range(1, count + 1):
        act = Act(
            1_700_000_000_000_000 + number, "key.release", "vectorstore", "tok", "/s.S/M", "r", "ok", "q"
        )
        record = link(account, number, previous, act)
        previous = record.hash
        lines.append(export_line(record))
    end = {"account": account, "sequence": count, "hash": previous.hex(), "time_us": 1_700_000_000_000_000}
    return [*lines, _SIGNER.sign(CHECKPOINT, end)]


_ONE, _OTHER = ids.from_bytes(bytes(16)), ids.from_bytes(bytes(15) + b"b")
_LINES, _OTHERS = _export(_ONE, 9), _export(_OTHER, 9)
# A checkpoint of the same account and key, of an earlier end.
_EARLIER = _export(_ONE, 5)[-1]
_HEAD = verify_chain(_LINES, public_key=_PUBLIC, account=_ONE)

_at = st.integers(0, 30)
_changes = st.one_of(
    st.tuples(st.just("edit"), _at, st.integers(0, 2000), st.integers(1, 127)),
    st.tuples(st.just("insert character"), _at, st.integers(0, 2000), st.sampled_from(' ,"0a}{')),
    st.tuples(st.just("delete"), _at),
    st.tuples(st.just("repeat"), _at, _at),
    st.tuples(st.just("swap"), _at, _at),
    st.tuples(st.just("truncate"), _at),
    st.tuples(st.just("splice"), _at, _at),
    st.tuples(st.just("replace checkpoint"), st.booleans()),
    st.tuples(st.just("cut line"), _at, st.integers(0, 2000)),
)


def _changed(lines: list[str], change: tuple[Any, ...]) -> list[str]:
    lines = list(lines)
    if not lines:
        return lines
    what, *values = change
    at = values[0] % len(lines) if not isinstance(values[0], bool) else 0
    if what == "edit":
        place = values[1] % max(1, len(lines[at]))
        flipped = chr((ord(lines[at][place]) ^ values[2]) & 0x7F) if lines[at] else ""
        lines[at] = lines[at][:place] + flipped + lines[at][place + 1 :]
    elif what == "insert character":
        place = values[1] % (len(lines[at]) + 1)
        lines[at] = lines[at][:place] + values[2] + lines[at][place:]
    elif what == "delete":
        del lines[at]
    elif what == "repeat":
        lines.insert(values[1] % (len(lines) + 1), lines[at])
    elif what == "swap":
        other = values[1] % len(lines)
        lines[at], lines[other] = lines[other], lines[at]
    elif what == "truncate":
        del lines[at:]
    elif what == "splice":
        lines[at] = _OTHERS[values[1] % len(_OTHERS)]
    elif what == "replace checkpoint":
        lines[-1] = _EARLIER if values[0] else _OTHERS[-1]
    else:
        lines[at] = lines[at][: values[1] % max(1, len(lines[at]))]
    return lines


def _first_difference(lines: list[str]) -> int:
    """The first line, counted from 1, that is not what it was; 0: none."""
    # A line end more or less is no change of a line.
    for number, (now, then) in enumerate(itertools.zip_longest(lines, _LINES), 1):
        if now is None or then is None or now.rstrip("\r\n") != then:
            return number
    return 0


@settings(max_examples=1000)
@given(st.lists(_changes, min_size=1, max_size=4))
def test_the_first_bad_line_is_named_whatever_was_done(changes: list[tuple[Any, ...]]) -> None:
    lines = _LINES
    for change in changes:
        lines = _changed(lines, change)
    first_bad = _first_difference(lines)
    if lines[:6] == [*_LINES[:5], _EARLIER] and len(lines) > 6:
        # A genuine checkpoint in its own place: what is bad is what follows.
        first_bad = 7
    if not first_bad:
        head = verify_chain(lines, public_key=_PUBLIC, account=_ONE)
        assert head == _HEAD
        return
    if lines == [*_LINES[:5], _EARLIER]:
        # An earlier export, whole and signed: only what was kept since tells that it is not the latest.
        assert verify_chain(lines, public_key=_PUBLIC, account=_ONE) is not None
        with pytest.raises(ChainBroken):
            verify_chain(lines, _HEAD, _PUBLIC, _ONE)
        return
    with pytest.raises(ChainBroken) as caught:
        verify_chain(lines, public_key=_PUBLIC, account=_ONE)
    assert caught.value.line == first_bad


@pytest.mark.parametrize("at", range(1, 9))
def test_an_earlier_export_holds_and_a_head_that_was_kept_tells_it_is_not_the_latest(at: int) -> None:
    """What a checkpoint alone cannot say: truncated to a record whose own checkpoint was kept."""
    earlier = [*_LINES[:at], _export(_ONE, at)[-1]]
    assert verify_chain(earlier, public_key=_PUBLIC) is not None
    with pytest.raises(ChainBroken):
        verify_chain(earlier, _HEAD, _PUBLIC)


@pytest.mark.parametrize(
    "respell", [str.upper, lambda text: " " + text, lambda text: text[:64] + " " + text[64:]]
)
def test_a_signature_has_one_spelling(respell: Callable[[str], str]) -> None:
    """Hex in capitals or with spaces is the same number and another line."""
    fields = json.loads(_LINES[-1])
    other = {**fields, "signature": respell(fields["signature"])}
    line = json.dumps(other, sort_keys=True, separators=(",", ":"))
    with pytest.raises(ChainBroken) as caught:
        verify_chain([*_LINES[:-1], line], public_key=_PUBLIC)
    assert caught.value.line == 10
    with pytest.raises(StatementDamaged):
        _SIGNER.read(line, CHECKPOINT)
    assert _SIGNER.read(_LINES[-1], CHECKPOINT)["sequence"] == 9


def test_every_join_of_two_accounts_is_found() -> None:
    """The head of one chain with the tail of the other, at every line, with either checkpoint."""
    for at in range(1, len(_LINES)):
        for ours, theirs in ((_LINES, _OTHERS), (_OTHERS, _LINES)):
            with pytest.raises(ChainBroken) as caught:
                verify_chain([*ours[:at], *theirs[at:]], public_key=_PUBLIC)
            assert caught.value.line == at + 1


def test_the_twin_a_chain_that_is_hashed_anew_holds_without_the_key_and_not_with_it() -> None:
    """What the hashes alone cannot hold: somebody who writes the whole chain anew, checkpoint cut off."""
    forged = _export(_ONE, 7)[:-1]
    assert verify_chain(forged) is not None
    with pytest.raises(ChainBroken):
        verify_chain(forged, public_key=_PUBLIC)

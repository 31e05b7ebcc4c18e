"""Attacks on the sealed format and on what is random in it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import secrets
from unittest.mock import patch

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from services.common import ids, sealing
from services.common.datakeys import DataKeys
from services.common.sealing import DataKey, Identity, Opener, OpenFailed, open_sealed, seal
from tests.attacks.keys.row import Attack, Trial
from tests.common import cobblestone_reader as reader
from tests.common import salamander
from tests.keyvault.rig import ManualClock

_KEY = DataKey(ids.from_bytes(bytes(range(16))), bytes(range(32)))
_PLACE = Identity("account", "resource", "kind", "object", 1)


def _opens(key: DataKey, place: Identity, sealed: bytes) -> bool:
    try:
        open_sealed(key, place, sealed)
    except OpenFailed:
        return False
    return True


async def _moved(trial: Trial) -> float:
    places = [Identity(f"a{n % 7}", f"r{n % 5}", f"k{n % 3}", f"o{n}", n % 2) for n in range(trial.size)]
    loose = patch.object(sealing, "context_bytes", lambda _header, _identity: b"")
    with loose if trial.twin else contextlib.nullcontext():
        sealed = {place: seal(_KEY, place, b"text") for place in places}
        return sum(
            _opens(_KEY, target, sealed[source]) for source, target in itertools.permutations(places, 2)
        )


async def _two_keys(trial: Trial) -> float:
    """Forged ciphertexts that open under a second key."""
    opened = 0
    for number in range(trial.size):
        other = DataKey(_KEY.id, secrets.token_bytes(32))
        header = seal(_KEY, _PLACE, b"")[: sealing.HEADER_BYTES]
        context, salt = sealing.context_bytes(header, _PLACE), number.to_bytes(24, "big")
        derived = [reader.derive(key.secret, salt, context) for key in (_KEY, other)]
        forged = salamander.forge(derived[0][:2], derived[1][:2])
        body = salt + derived[0][2] + forged
        if trial.twin:
            with contextlib.suppress(reader.Unreadable):
                reader.read(other.secret, context, body, check_commitment=False)
                opened += 1
        else:
            opened += _opens(other, _PLACE, header + body)
    return opened


async def _flipped(trial: Trial) -> float:
    """Flipped bits that open; in the twin the plaintext is taken without its tag."""
    sealed = seal(_KEY, _PLACE, b"some text of sixty-four bytes, so that most of the object is text")
    opened = 0
    for at, bit in itertools.product(range(len(sealed)), range(min(8, trial.size))):
        changed = bytearray(sealed)
        changed[at] ^= 1 << bit
        opened += _unchecked(bytes(changed)) if trial.twin else _opens(_KEY, _PLACE, bytes(changed))
    return opened


def _unchecked(sealed: bytes) -> bool:
    context = sealing.context_bytes(sealed[:19], _PLACE)
    key, nonce, commitment = reader.derive(_KEY.secret, sealed[19:43], context)
    if commitment != sealed[43:75]:
        return False
    counter = Cipher(algorithms.AES(key), modes.CTR(nonce + b"\0\0\0\2")).decryptor()
    return bool(counter.update(sealed[75:-16]))


async def _cut(trial: Trial) -> float:
    """Streams that give a byte that is not of the true beginning; in the twin nobody waits for the tag."""
    plaintext = bytes(number % 251 for number in range(40_000))
    sealed = seal(_KEY, _PLACE, plaintext)
    wrong = 0
    for number in range(trial.size):
        changed = bytearray(sealed)
        changed[80 + number * 37 % (len(sealed) - 80)] ^= 1
        if trial.twin:
            context = sealing.context_bytes(bytes(changed[:19]), _PLACE)
            key, nonce, _ = reader.derive(_KEY.secret, bytes(changed[19:43]), context)
            counter = Cipher(algorithms.AES(key), modes.CTR(nonce + b"\0\0\0\2")).decryptor()
            given = counter.update(bytes(changed[75 : 75 + 16384]))
        else:
            opener, given = Opener(_KEY, _PLACE), b""
            with contextlib.suppress(OpenFailed):
                for at in range(0, len(changed), 1000):
                    given += opener.update(changed[at : at + 1000])
        wrong += not plaintext.startswith(given)
    return wrong


async def _forked(trial: Trial) -> float:
    """Salts and key ids that repeat over children forked from one warmed-up process."""
    seal(_KEY, _PLACE, b"")
    generator = random.Random(7)
    drawn = [_child(generator, trial.twin) for _ in range(trial.size)]
    salts, key_ids = {one[:24] for one in drawn}, {one[24:] for one in drawn}
    return 2 * len(drawn) - len(salts) - len(key_ids)


def _child(generator: random.Random, twin: bool) -> bytes:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        # Nothing but what a seal and a new id draw, and no clean-up of Python's in the copy.
        if twin:
            os.write(writing, generator.randbytes(40))
        else:
            os.write(writing, seal(_KEY, _PLACE, b"")[19:43] + ids.to_bytes(ids.new_id()))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        drawn = pipe.read()
    os.waitpid(child, 0)
    assert len(drawn) == 40
    return drawn


async def _ambiguous(trial: Trial) -> float:
    """Pairs of different identities with one context; in the twin fields are joined without lengths."""
    words = ["", "a", "b", "ab", "ba", "a\0", "\0a"]
    places = list(itertools.islice(itertools.product(words, repeat=3), trial.size))
    if trial.twin:
        contexts = ["".join(place).encode() for place in places]
    else:
        contexts = [sealing.context_bytes(b"", Identity(one, two, three)) for one, two, three in places]
    return len(contexts) - len(set(contexts))


class _Source:
    """A keyvault that gives each account its own key."""

    def __init__(self) -> None:
        self.account = ""

    async def get_data_key(self, resource: str, purpose: str, key_id: str) -> DataKey:
        """A key that says whose it is."""
        return DataKey(ids.new_id(), self.account.encode().ljust(32, b"\0"))


async def _shared_cache(trial: Trial) -> float:
    """Keys that a cache gives to another account than theirs."""
    source = _Source()
    keys, wrong = DataKeys(source, ManualClock()), 0
    for number in range(trial.size):
        source.account = f"account{number % 10}"
        known = "one account" if trial.twin else source.account
        with (
            patch("services.common.datakeys.current_account", lambda known=known: known),
            patch("services.common.datakeys.current_caller", _caller),
        ):
            key = await keys.current("resource", "purpose")
        wrong += key.secret.rstrip(b"\0").decode() != source.account
    return wrong


class _caller:  # noqa: N801  (stands for a function)
    text = "context"


async def _stale(trial: Trial) -> float:
    """Keys that a cache gives after their time, with nobody to tell it."""
    source, clock = _Source(), ManualClock()
    keys, old = DataKeys(source, clock, 1e9 if trial.twin else 60.0), 0
    for number in range(trial.size):
        with (
            patch("services.common.datakeys.current_account", lambda number=number: f"account{number}"),
            patch("services.common.datakeys.current_caller", _caller),
        ):
            source.account = "before"
            first = await keys.current("resource", "purpose")
            clock.time_s += 60.0
            source.account = "after"
            old += await keys.current("resource", "purpose") == first
    await asyncio.sleep(0)
    return old


ATTACKS = [
    Attack("D3", "objects in each other's place that open", 60, 12, _moved),
    Attack("D4", "one ciphertext that opens under a second key", 50, 3, _two_keys),
    Attack("D5", "salts and ids that repeat over forked children", 1000, 20, _forked),
    Attack("D7", "flipped bits that open, header included", 8, 1, _flipped),
    Attack("D10", "identities that share a context", 343, 343, _ambiguous),
    Attack("D14", "cached keys used after their time", 1000, 50, _stale),
    Attack("D15", "cached keys given to another account", 1000, 50, _shared_cache),
    Attack("D27", "streams that give a byte that is not authentic", 500, 30, _cut),
]

"""The sealed format: what opens, what never does, and that a second reader agrees (D3, D4, D7, D10, D23)."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import pickle
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from cryptography.cobblestone import Cobblestone256Encryptor
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common import ids, sealing
from services.common.sealing import (
    HEADER_BYTES,
    DataKey,
    Identity,
    Opener,
    OpenFailed,
    Sealer,
    context_bytes,
    key_id_of,
    name_tag,
    open_sealed,
    seal,
)
from tests.common import cobblestone_reader, salamander

_KEY = DataKey(ids.from_bytes(bytes(range(16))), bytes(range(32)))
_SAME_SECRET = DataKey(ids.new_id(), _KEY.secret)
_IDENTITY = Identity("0123456789abcdefghjkmnpqrs", "7zzzzzzzzzzzzzzzzzzzzzzzzz", "record", "", 1)
_CHUNK = 16 * 1024

# Frozen: written once by this format's first version; every later version must open them.
_VECTORS = [
    (
        _IDENTITY,
        b"hello",
        "534301000102030405060708090a0b0c0d0e0f5af4fc9c1f4433032a8af7ab03de271c6e9163c15db874e2e3bca8205bde"
        "7a187cada8be0db4abb5771210397d5c297d4665a3c1f40c635b8d3308dd80e2b77a74c1ac3f0c62924dfe439d102a",
    ),
    (
        Identity("", "r", "k"),
        b"",
        "534301000102030405060708090a0b0c0d0e0f7972c9473d0289b5b1a1a6885bc051c2fb5a92a1bb581466f17ad8aefc69"
        "d3a40ab90a4bbf4bfdf896efb259005030e2a33628b40835324295abeef876187f305e747533db67db9d",
    ),
]
_CONTEXT_VECTOR = (
    "00000013534301000102030405060708090a0b0c0d0e0f0000001a3031323334353637383961626364656667686a6b6d6e"
    "707172730000001a377a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a000000067265636f72640000000000"
    "0000080000000000000001"
)


@pytest.mark.parametrize(("identity", "plaintext", "sealed"), _VECTORS)
def test_objects_that_were_sealed_once_open_for_ever(
    identity: Identity, plaintext: bytes, sealed: str
) -> None:
    assert open_sealed(_KEY, identity, bytes.fromhex(sealed)) == plaintext
    assert key_id_of(bytes.fromhex(sealed)) == _KEY.id


def test_the_context_and_the_name_tag_are_frozen() -> None:
    assert context_bytes(bytes.fromhex(_VECTORS[0][2])[:HEADER_BYTES], _IDENTITY).hex() == _CONTEXT_VECTOR
    tag = "944a999a3333bc09cd267b276f3b3f329993462e5323e85d923b3bc0167220de"
    assert name_tag(_KEY, "collection-name", "bees").hex() == tag


def test_the_published_known_answers_are_these() -> None:
    page = "".join((Path(__file__).parents[2] / "docs" / "sealed-format.md").read_text().split())
    assert _VECTORS[0][2] in page
    assert _CONTEXT_VECTOR in page


@given(st.binary(max_size=200))
def test_what_is_sealed_opens_and_is_as_long_as_promised(plaintext: bytes) -> None:
    sealed = seal(_KEY, _IDENTITY, plaintext)
    assert open_sealed(_KEY, _IDENTITY, sealed) == plaintext
    assert len(sealed) == len(plaintext) + 91


@pytest.mark.parametrize("size", [_CHUNK - 1, _CHUNK, _CHUNK + 1, 3 * _CHUNK + 5])
def test_an_independent_reader_opens_what_we_seal(size: int) -> None:
    plaintext = bytes(index % 251 for index in range(size))
    sealed = seal(_KEY, _IDENTITY, plaintext)
    context = context_bytes(sealed[:HEADER_BYTES], _IDENTITY)
    assert cobblestone_reader.read(_KEY.secret, context, sealed[HEADER_BYTES:]) == plaintext


def _published() -> list[Any]:
    text = resources.files("cryptography_vectors").joinpath("chunked-encryption", "vectors.json").read_text()
    return [vector for vector in json.loads(text)["vectors"] if vector["aead"] == "AEAD_AES_256_GCM"]


@pytest.mark.parametrize("vector", _published(), ids=lambda vector: vector["name"])
def test_the_independent_reader_obeys_the_published_vectors(vector: Any) -> None:
    ciphertext = base64.b64decode(vector["ciphertext"] or "")
    if vector.get("compressed"):
        ciphertext = zlib.decompressobj().decompress(ciphertext)
    key, context = bytes.fromhex(vector["key"]), vector["context"].encode()
    if vector["expect"] == "success":
        plaintext = cobblestone_reader.read(key, context, ciphertext, digest="sha256")
        assert hashlib.sha256(plaintext).hexdigest() == vector["payload_sha256"]
    else:
        with pytest.raises(cobblestone_reader.Unreadable):
            cobblestone_reader.read(key, context, ciphertext, digest="sha256")


@pytest.mark.parametrize("plaintext", [b"", b"some plaintext"])
def test_no_flipped_bit_opens(plaintext: bytes) -> None:
    """D7: header bytes included, every bit of every byte; D23: and always by the same error."""
    sealed = seal(_KEY, _IDENTITY, plaintext)
    for at, bit in itertools.product(range(len(sealed)), range(8)):
        changed = bytearray(sealed)
        changed[at] ^= 1 << bit
        with pytest.raises(OpenFailed) as caught:
            open_sealed(_KEY, _IDENTITY, changed)
        assert caught.value.message == OpenFailed().message
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_flipped_header_opens_once_the_header_is_not_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """D7's twin: with the header left out of check and context, another key id or version goes unnoticed."""
    bound = sealing.context_bytes
    monkeypatch.setattr(sealing, "context_bytes", lambda _header, identity: bound(b"", identity))
    sealed = bytearray(seal(_KEY, _IDENTITY, b"x"))
    sealed[2] ^= 1
    monkeypatch.setattr(sealing, "_header", lambda _key_id: bytes(sealed[:HEADER_BYTES]))
    assert open_sealed(_KEY, _IDENTITY, sealed) == b"x"


def test_no_truncation_extension_or_reordering_opens() -> None:
    """F2's class: cut at every byte of the short parts and around every chunk."""
    sealed = seal(_KEY, _IDENTITY, bytes(2 * _CHUNK + 100))
    edges = [HEADER_BYTES + 56 + number * (_CHUNK + 16) for number in range(3)]
    cuts = {*range(120), *(edge + near for edge in edges for near in range(-2, 3)), len(sealed) - 1}
    for cut in cuts:
        with pytest.raises(OpenFailed):
            open_sealed(_KEY, _IDENTITY, sealed[:cut])
    first, second, third = sealed[edges[0] : edges[1]], sealed[edges[1] : edges[2]], sealed[edges[2] :]
    head = sealed[: edges[0]]
    for parts in [
        (second, first, third),
        (first, third),
        (first, first, third),
        (first, second, third, third),
    ]:
        with pytest.raises(OpenFailed):
            open_sealed(_KEY, _IDENTITY, head + b"".join(parts))
    with pytest.raises(OpenFailed):
        open_sealed(_KEY, _IDENTITY, sealed + b"\0")


_PLACES = [
    Identity(account, resource, kind, object_, version)
    for account, resource, kind, object_, version in itertools.product(
        ("a", "ab"), ("b", "bc"), ("record", "page"), ("", "c"), (0, 1)
    )
]


def test_no_object_opens_in_another_place() -> None:
    """D3: sealed at n places and moved to all the others; 0 of n(n-1) open."""
    sealed = {place: seal(_KEY, place, b"plaintext") for place in _PLACES}
    opened = 0
    for source, target in itertools.permutations(_PLACES, 2):
        try:
            open_sealed(_KEY, target, sealed[source])
        except OpenFailed:
            continue
        opened += 1
    assert opened == 0
    assert all(open_sealed(_KEY, place, sealed[place]) == b"plaintext" for place in _PLACES)


def test_objects_move_once_identity_is_not_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """D3's twin: with an empty context every object opens everywhere."""
    monkeypatch.setattr(sealing, "context_bytes", lambda _header, _identity: b"")
    sealed = seal(_KEY, _PLACES[0], b"plaintext")
    assert all(open_sealed(_KEY, place, sealed) == b"plaintext" for place in _PLACES)


_texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6)
_identities = st.builds(Identity, _texts, _texts, _texts, _texts, st.integers(0, 2**64 - 1))


@settings(max_examples=2000)
@given(_identities, _identities)
def test_no_two_identities_share_a_context(left: Identity, right: Identity) -> None:
    """D10: the encoding is injective, also for Unicode's several spellings of one letter."""
    same = context_bytes(b"h", left) == context_bytes(b"h", right)
    assert same == (left == right)


def test_fields_that_run_together_differ_where_plain_joining_would_not() -> None:
    """D10's twin: "a" + "bc" and "ab" + "c" are one text once joined."""
    left, right = Identity("a", "bc", "k"), Identity("ab", "c", "k")
    assert left.account + left.resource == right.account + right.resource
    assert context_bytes(b"", left) != context_bytes(b"", right)


def test_one_ciphertext_for_two_keys_is_refused() -> None:
    """D4: an "invisible salamander" opens under both keys as bare GCM and with the commitment unchecked
    (the twin), but as a sealed object under none but the key that it commits to."""
    other = DataKey(_KEY.id, bytes(range(1, 33)))
    header = bytes.fromhex(_VECTORS[0][2])[:HEADER_BYTES]
    context, salt = context_bytes(header, _IDENTITY), bytes(24)
    chunk_keys = [cobblestone_reader.derive(key.secret, salt, context) for key in (_KEY, other)]
    pairs = [(chunk_key, nonce) for chunk_key, nonce, _commitment in chunk_keys]
    forged = salamander.forge(pairs[0], pairs[1])
    plaintexts = {AESGCM(key).decrypt(nonce, forged, None) for key, nonce in pairs}
    assert len(plaintexts) == 2

    for committed in range(2):
        body = salt + chunk_keys[committed][2] + forged
        unchecked = {
            cobblestone_reader.read(key.secret, context, body, check_commitment=False)
            for key in (_KEY, other)
        }
        assert unchecked == plaintexts
        right, wrong = (_KEY, other) if committed == 0 else (other, _KEY)
        assert open_sealed(right, _IDENTITY, header + body) in plaintexts
        with pytest.raises(OpenFailed):
            open_sealed(wrong, _IDENTITY, header + body)


def test_the_key_must_be_the_named_one() -> None:
    sealed = seal(_KEY, _IDENTITY, b"x")
    with pytest.raises(OpenFailed):
        open_sealed(_SAME_SECRET, _IDENTITY, sealed)
    with pytest.raises(OpenFailed):
        open_sealed(DataKey(_KEY.id, bytes(32)), _IDENTITY, sealed)


def test_a_bare_cobblestone_ciphertext_is_no_sealed_object() -> None:
    encryptor = Cobblestone256Encryptor(_KEY.secret, b"")
    bare = encryptor.update(b"x") + encryptor.finalize()
    for offered in (bare, b"", b"SC", bytes(HEADER_BYTES)):
        with pytest.raises(OpenFailed):
            open_sealed(_KEY, _IDENTITY, offered)
        with pytest.raises(OpenFailed):
            key_id_of(offered[: HEADER_BYTES - 1])


def test_equal_plaintexts_look_different_every_time() -> None:
    assert len({seal(_KEY, _IDENTITY, b"same") for _ in range(100)}) == 100


@given(st.binary(max_size=3 * _CHUNK), st.lists(st.integers(1, 2 * _CHUNK), max_size=6))
@settings(max_examples=50, deadline=None)
def test_streams_equal_whole_objects(plaintext: bytes, sizes: list[int]) -> None:
    sealer, opener = Sealer(_KEY, _IDENTITY), Opener(_KEY, _IDENTITY)
    sealed = b"".join([*(sealer.update(part) for part in _parts(plaintext, sizes)), sealer.finalize()])
    assert open_sealed(_KEY, _IDENTITY, sealed) == plaintext
    opened = b"".join([*(opener.update(part) for part in _parts(sealed, sizes)), opener.finalize()])
    assert opened == plaintext


def test_a_stream_gives_no_byte_that_is_not_authentic_and_no_end_to_a_cut_one() -> None:
    """D27: what was released before the damage is a true prefix, and `finalize` refuses."""
    plaintext = bytes(index % 251 for index in range(2 * _CHUNK))
    sealed = bytearray(seal(_KEY, _IDENTITY, plaintext))
    sealed[HEADER_BYTES + 56 + _CHUNK + 16 + 7] ^= 1
    released: list[bytes] = []
    with pytest.raises(OpenFailed):
        _stream(sealed, released)
    assert b"".join(released) == plaintext[:_CHUNK]
    for cut in (0, HEADER_BYTES - 1, HEADER_BYTES, 200, HEADER_BYTES + 56 + _CHUNK + 16):
        with pytest.raises(OpenFailed):
            _stream(sealed[:cut], released)


def test_a_data_key_shows_its_secret_to_nobody() -> None:
    key = DataKey(ids.new_id(), b"canary of a secret key, 32 bytes")
    assert "canary" not in f"{key!r} {key}"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(key, protocol)
    for bad in (b"", bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="32 bytes"):
            DataKey(key.id, bad)
    with pytest.raises(ValueError, match="an id"):
        DataKey("8" + key.id[1:], key.secret)


def test_name_tags_depend_on_key_purpose_and_name_alone() -> None:
    tags = {
        name_tag(key, purpose, name)
        for key in (_KEY, DataKey(_KEY.id, bytes(32)))
        for purpose in "ab"
        for name in "xy"
    }
    assert len(tags) == 8
    assert name_tag(_KEY, "a", "x") == name_tag(_SAME_SECRET, "a", "x")


def _parts(data: bytes, sizes: list[int]) -> list[bytes]:
    parts = []
    for size in sizes:
        parts.append(data[:size])
        data = data[size:]
    return [*parts, data]


def _stream(sealed: bytes | bytearray, released: list[bytes]) -> None:
    opener = Opener(_KEY, _IDENTITY)
    for at in range(0, len(sealed), 1000):
        released.append(opener.update(sealed[at : at + 1000]))
    released.append(opener.finalize())

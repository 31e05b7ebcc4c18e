"""Token form, checksum, hash: rows B1, B2, B3, B4, B12, B13 and B15 of the threat table."""

from __future__ import annotations

import base64
import copy
import hmac
import json
import math
import os
import pickle
import random
import re
import statistics
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import tokens
from services.gateway.tokens import Kind, Pepper, Token, has_token_form, id_in, make_token, same_digest

PEPPER = Pepper(bytes(32))
ROOT = Path(__file__).resolve().parents[2]


def new() -> Token:
    return make_token(Kind.ACCOUNT, os.urandom)


def test_a_new_token_has_the_published_form_and_names_its_id() -> None:
    for kind in Kind:
        token = make_token(kind, os.urandom)
        assert re.fullmatch(tokens.PATTERN, token.text)
        assert has_token_form(token.text.encode())
        assert id_in(token.text.encode()) == token.id
        assert token.text.startswith(f"sealcomb_{kind.value}_{token.id}_")


def test_a_secret_has_at_least_160_bits_and_uses_every_character_evenly() -> None:
    """B1: no character of the alphabet is more likely than another."""
    secrets = "".join(new().text.rsplit("_", 1)[1][:30] for _ in range(4000))
    counts = [secrets.count(char) for char in tokens._BASE62.decode()]
    assert len(counts) == 62
    expected = len(secrets) / 62
    # Chi-squared with 61 degrees of freedom: above 120 happens once in 100,000 runs.
    assert sum((count - expected) ** 2 / expected for count in counts) < 120
    assert len(secrets) == 4000 * tokens._SECRET_CHARS
    assert 62**tokens._SECRET_CHARS > 2**160


def test_every_changed_character_is_refused_by_the_checksum() -> None:
    """B1: a typo costs no look-up."""
    text = new().text
    for position, char in enumerate(text):
        for other in "0Aaz_-":
            if other != char:
                assert not has_token_form((text[:position] + other + text[position + 1 :]).encode())


def test_without_the_checksum_a_typo_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin of the test above."""
    text = new().text.encode()
    typo = text[:-8] + (b"A" if text[-8:-7] != b"A" else b"B") + text[-7:]
    assert not has_token_form(typo)
    monkeypatch.setattr(tokens, "_checksum", lambda head: typo[-6:])
    assert has_token_form(typo)


@given(st.binary(max_size=400))
def test_arbitrary_bytes_have_no_token_form(text: bytes) -> None:
    """B15: no input crashes the check."""
    assert not has_token_form(text)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: text + b"\n",
        lambda text: b" " + text,
        lambda text: text + b"\0",
        lambda text: text.upper(),
        lambda text: text + text,
        lambda text: text[:-1],
        lambda text: text.replace(b"acc", b"adm"),
        lambda text: b"x" * 10_000_000 + text,
        lambda text: text.replace(b"_", b"__"),
        lambda text: text[:-40] + "é".encode() + text[-38:],
        lambda text: b"' OR 1=1 --",
        lambda text: b"",
    ],
)
def test_naughty_tokens_are_refused(wrap: object) -> None:
    """B15: length and alphabet are checked before anything is computed."""
    assert callable(wrap)
    assert not has_token_form(wrap(new().text.encode()))


def test_a_token_shows_itself_nowhere() -> None:
    """B3: no repr, str, format, exception or pickle carries the text."""
    token = new()
    shown = [
        repr(token),
        str(token),
        f"{token}",
        f"{[token]!r}",
        repr(ValueError(token)),
        str(ValueError(token)),
    ]
    secret = token.text.rsplit("_", 1)[1]
    assert all(secret not in text and secret[:8] not in text for text in shown)
    for leak in (pickle.dumps, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError):
            leak(token)


def test_a_plain_string_in_its_place_would_show(capsys: pytest.CaptureFixture[str]) -> None:
    """Twin of the test above: what the type is for."""
    token = new()
    print(repr({"token": token.text}))
    assert token.text in capsys.readouterr().out


def test_a_digest_depends_on_the_whole_token_and_on_the_pepper() -> None:
    """B4: without the pepper a stolen digest cannot even be checked against a guess."""
    token = new().text.encode()
    digest = PEPPER.digest(token)
    assert len(digest) == tokens.DIGEST_BYTES
    assert digest != Pepper(b"\1" + bytes(31)).digest(token)
    assert len({PEPPER.digest(token[:size]) for size in range(len(token) + 1)}) == len(token) + 1


def test_tags_of_different_parts_never_meet() -> None:
    assert PEPPER.tag("p", "a", "bc") != PEPPER.tag("p", "ab", "c")
    assert PEPPER.tag("p", "a") != PEPPER.tag("pa")
    assert PEPPER.tag("p", "a", "") != PEPPER.tag("p", "a")


def test_a_pepper_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pepper"
    path.write_bytes(bytes(32))
    path.chmod(0o644)
    with pytest.raises(ValueError, match="open to others"):
        Pepper.from_file(path)
    path.chmod(0o600)
    Pepper.from_file(path)
    path.write_bytes(bytes(31))
    with pytest.raises(ValueError, match="32 bytes"):
        Pepper.from_file(path)


def _t_statistic(
    compare: Callable[[bytes, bytes], bool], guesses: tuple[bytes, bytes], stored: bytes
) -> float:
    """Welch's t between the times that two guesses take, 160,000 comparisons in all.

    Which guess is timed is drawn for each sample: in a fixed order, even one guess against itself
    gave t above 10, by its place in the loop alone.
    """
    samples: tuple[list[int], list[int]] = ([], [])
    clock = time.perf_counter_ns
    choose = random.Random().randrange
    for _ in range(8000):
        which = choose(2)
        guess = guesses[which]
        started = clock()
        for _ in range(20):
            compare(guess, stored)
        samples[which].append(clock() - started)
    # The slowest tenth is the machine, not the comparison.
    kept = [sorted(values)[: len(values) * 9 // 10] for values in samples]
    means = [statistics.fmean(values) for values in kept]
    errors = [statistics.variance(values) / len(values) for values in kept]
    return abs(means[0] - means[1]) / math.sqrt(sum(errors))


def _median_t(compare: Callable[[bytes, bytes], bool], guesses: tuple[bytes, bytes]) -> float:
    # A median, not the best: a comparison that leaks does so every time.
    return statistics.median(_t_statistic(compare, guesses, bytes(32)) for _ in range(5))


def _leaky(left: bytes, right: bytes) -> bool:
    return all(a == b for a, b in zip(left, right, strict=True))


WRONG_FIRST, WRONG_LAST = b"\xff" + bytes(31), bytes(31) + b"\xff"


def test_comparing_digests_takes_the_same_time_wherever_they_differ() -> None:
    """B2, by the dudect criterion (|t| < 4.5); equal guesses are the control of the measurement itself."""
    assert _median_t(same_digest, (WRONG_FIRST, WRONG_FIRST)) < 4.5, "the measurement is biased"
    assert _median_t(same_digest, (WRONG_FIRST, WRONG_LAST)) < 4.5


def test_a_comparison_that_stops_early_is_noticed() -> None:
    """Twin of the test above."""
    assert _median_t(_leaky, (WRONG_FIRST, WRONG_LAST)) > 4.5


def _published_rule() -> dict[str, object]:
    text = (ROOT / "docs" / "tokens.md").read_text()
    (rule,) = tomllib.loads(text.split("```toml\n")[1].split("```")[0])["rules"]
    assert isinstance(rule, dict)
    return rule


def test_the_published_rule_finds_every_token_and_little_else() -> None:
    """B12: the rule as operators copy it, over leaks as they look and over random text."""
    rule = _published_rule()
    expression = re.compile(str(rule["regex"]))
    assert tokens.PATTERN in (ROOT / "docs" / "tokens.md").read_text()
    keywords = rule["keywords"]
    assert isinstance(keywords, list)
    for kind in Kind:
        text = make_token(kind, os.urandom).text
        for leak in (f"SEALCOMB_TOKEN={text}", f'{{"token": "{text}"}}', f"Bearer {text}\n", f"'{text}',"):
            assert expression.findall(leak) == [text]
            assert any(word in leak for word in keywords)
    source = random.Random(7)
    alphabet = tokens._BASE62.decode() + "_-/+= .\n"
    noise = "".join(source.choices(alphabet, k=1_000_000))
    assert not expression.findall(noise)
    look_alikes = [_look_alike(source) for _ in range(20_000)]
    assert all(expression.fullmatch(text) for text in look_alikes)
    assert not any(has_token_form(text.encode()) for text in look_alikes)


def test_without_prefix_and_checksum_random_text_would_be_found() -> None:
    """The twin of the test above: what a bare secret looks like is everywhere."""
    source = random.Random(7)
    noise = "".join(source.choices(tokens._BASE62.decode(), k=10_000))
    assert re.findall(r"[0-9A-Za-z]{36}", noise)


def _look_alike(source: random.Random) -> str:
    token_id = "".join(source.choices("0123456789abcdefghjkmnpqrstvwxyz", k=26))
    return f"sealcomb_acc_{token_id}_" + "".join(source.choices(tokens._BASE62.decode(), k=36))


@pytest.mark.parametrize("algorithm", ["none", "None", "HS256", "RS256", "EdDSA"])
def test_a_jwt_is_no_token_whatever_it_claims(algorithm: str) -> None:
    """B13: tokens are opaque, so there is no algorithm to choose."""
    header, claims = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": algorithm, "typ": "JWT"}, {"sub": "operator", "scope": "operator admin"})
    )
    for signature in (b"", hmac.digest(bytes(32), header + b"." + claims, "sha256").hex().encode()):
        assert not has_token_form(header + b"." + claims + b"." + signature)

"""Sealing and opening, MB a second of processor time, beside bare Cobblestone and AES-256-GCM in one run."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.keys.table import Row
from services.common import ids
from services.common.sealing import DataKey, Identity, open_sealed, seal

_SIZES = {"64 KiB": 64 * 1024, "1 MiB": 1024 * 1024, "16 MiB": 16 * 1024 * 1024}
_BYTES = 256 * 1024 * 1024
_ROUNDS_MAX = 400
_ROUNDS_MIN = 25
_LEAST = 0.8


def rows() -> list[Row]:
    """The rows of every size; the ratio at 1 MiB and above is a promise."""
    found: list[Row] = []
    for name, size in _SIZES.items():
        found += _of(name, size)
    return found


def _of(name: str, size: int) -> list[Row]:
    plain = os.urandom(size)
    key = DataKey(ids.new_id(), os.urandom(32))
    identity = Identity("account", "resource", "object", "benchmark", 1)
    gcm, nonce, context = AESGCM(key.secret), os.urandom(12), b"context"
    sealed, ciphertext = seal(key, identity, plain), gcm.encrypt(nonce, plain, context)
    bare = _cobblestone_seal(key.secret, plain, context)
    found = []
    for verb, ways in (
        (
            "seal",
            {
                "sealcomb": lambda: seal(key, identity, plain),
                "cobblestone": lambda: _cobblestone_seal(key.secret, plain, context),
                "aes-256-gcm": lambda: gcm.encrypt(nonce, plain, context),
            },
        ),
        (
            "open",
            {
                "sealcomb": lambda: open_sealed(key, identity, sealed),
                "cobblestone": lambda: _cobblestone_open(key.secret, bare, context),
                "aes-256-gcm": lambda: gcm.decrypt(nonce, ciphertext, context),
            },
        ),
    ):
        rounds = max(_ROUNDS_MIN, min(_ROUNDS_MAX, _BYTES // size // len(ways)))
        speeds, ratio = _speeds(ways, size, rounds)
        holds = ratio >= _LEAST if size >= 1024 * 1024 else None
        verdict = "" if holds is None else f"   at least {_LEAST}: {'holds' if holds else 'MISSED'}"
        figures = "   ".join(f"{way} {speed:7.0f} MB/s" for way, speed in speeds.items())
        found.append(Row(f"{verb} {name}", rounds, f"{figures}   ratio {ratio:.2f}{verdict}", holds))
    return found


def _speeds(ways: dict[str, Callable[[], bytes]], size: int, rounds: int) -> tuple[dict[str, float], float]:
    """MB/s of each way, and how fast ours is beside Cobblestone: the median of the rounds' own ratios."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        # In turns, so that what else the machine does falls on all alike.
        for way, work in ways.items():
            started = time.thread_time()
            work()
            seconds[way].append(time.thread_time() - started)
    ratios = [bare / ours for bare, ours in zip(seconds["cobblestone"], seconds["sealcomb"], strict=True)]
    speeds = {way: size / statistics.median(taken) / 1e6 for way, taken in seconds.items()}
    return speeds, statistics.median(ratios)


def _cobblestone_seal(key: bytes, plain: bytes, context: bytes) -> bytes:
    encryptor = Cobblestone256Encryptor(key, context)
    return b"".join((encryptor.update(plain), encryptor.finalize()))


def _cobblestone_open(key: bytes, sealed: bytes, context: bytes) -> bytes:
    decryptor = Cobblestone256Decryptor(key, context)
    return decryptor.update(sealed) + decryptor.finalize()

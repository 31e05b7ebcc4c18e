"""The operator's token: made at first start, or anew when it was lost.

Its text is written to one private file and nowhere else; the table holds its hash, as of any token.
"""

from __future__ import annotations

from pathlib import Path

from services.common.clock import Clock
from services.common.methods import Scope
from services.gateway.files import write_private
from services.gateway.records import OPERATOR, TokenRow
from services.gateway.store import GatewayStore
from services.gateway.tokens import Kind, Pepper, RandomBytes, make_token


def ensure_operator_token(
    store: GatewayStore, pepper: Pepper, path: Path, clock: Clock, random_bytes: RandomBytes
) -> bool:
    """Makes the first operator token if there is none; returns whether it did."""
    if store.count_tokens(OPERATOR):
        return False
    text, row = _new(pepper, clock, random_bytes)
    return store.add_first_operator_token(row, lambda: write_private(path, text))


def replace_operator_token(
    store: GatewayStore, pepper: Pepper, path: Path, clock: Clock, random_bytes: RandomBytes
) -> None:
    """Ends every operator token and writes a new one to the file."""
    text, row = _new(pepper, clock, random_bytes)
    # The file first: a crash in between leaves a token that nobody accepts, and the next start makes another.
    write_private(path, text)
    store.replace_operator_tokens(row, row.create_time_ms)


def _new(pepper: Pepper, clock: Clock, random_bytes: RandomBytes) -> tuple[bytes, TokenRow]:
    token = make_token(Kind.OPERATOR, random_bytes)
    digest = pepper.digest(token.text.encode())
    now_ms = int(clock.now_s() * 1000)
    row = TokenRow(token.id, OPERATOR, digest, (Scope.OPERATOR.value,), False, None, now_ms)
    return token.text.encode() + b"\n", row

"""Whether tokens still let anybody in, for the services that serve their streams."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.common.clock import Clock
from services.common.errors import invalid
from services.gateway.store import GatewayStore

_TOKENS_MAX = 1000


class Standing:
    """Looks tokens up, always in the store: what is held in memory may be seconds old."""

    def __init__(self, store: GatewayStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def ended(self, token_ids: Sequence[str]) -> list[str]:
        """The tokens among these that are revoked, expired, a suspended account's, or not there."""
        if len(token_ids) > _TOKENS_MAX:
            raise invalid("token_ids", f"must have at most {_TOKENS_MAX}")
        good = await asyncio.to_thread(self._store.good_tokens, token_ids, self._clock.now_s() * 1000)
        return [one for one in token_ids if one not in good]

"""Signs the call contexts that the services behind the edge believe.

A context lives 30 s and is used again for 5 s, so that signing is shared by many calls; neither
outlives its token. This module must never put into a context what the token's own record does
not say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.common import ids
from services.common.clock import Clock
from services.common.context import GATEWAY, CallContext, Caller, ContextSigner
from services.common.methods import KEYVAULT, PublicMethod
from services.gateway.replicas import Replicas

LIFE_S = 30.0
REUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token is. `account` is empty for an operator; `collections` empty means all."""

    account: str
    token_id: str
    scopes: tuple[str, ...]
    collections: tuple[str, ...]
    # Wall time in seconds; infinite for a token that does not expire.
    expires_s: float
    # How many calls of the account a service's replicas may have under way together; 0: any number.
    calls_in_flight: int = 0


class ContextMint:
    """Makes contexts for calls through the edge, and for what the policy process asks of keyvault itself."""

    def __init__(self, signer: ContextSigner, clock: Clock, replicas: Replicas) -> None:
        self._signer = signer
        self._clock = clock
        self._replicas = replicas

    def for_call(self, identity: Identity, method: PublicMethod) -> str:
        """The signed context of calls of one method by one token."""
        in_flight = self._replicas.part_of(identity.calls_in_flight, method.owner)
        return self._sign(identity, method.path, method.audience, in_flight)[1]

    def for_keyvault(self, account: str, path: str, token_id: str) -> Caller:
        """A caller for keyvault alone: an operator's act, or the gateway's own, upon one account."""
        identity = Identity(account, token_id, (), (), math.inf)
        context, text = self._sign(identity, path, (KEYVAULT,))
        return Caller(context, text)

    def _sign(
        self, identity: Identity, path: str, audience: tuple[str, ...], calls_in_flight: int = 0
    ) -> tuple[CallContext, str]:
        now_s = self._clock.now_s()
        context = CallContext(
            issuer=GATEWAY,
            audience=audience,
            account=identity.account,
            token_id=identity.token_id,
            scopes=identity.scopes,
            collections=identity.collections,
            method=path,
            issued_s=now_s,
            expires_s=min(now_s + LIFE_S, identity.expires_s),
            request_id=ids.new_id(),
            calls_in_flight=calls_in_flight,
        )
        return context, self._signer.sign(context)

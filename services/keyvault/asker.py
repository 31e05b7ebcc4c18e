"""Who asks keyvault for something: the peer that its certificate names, and the context it calls under."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.context import CallContext
from services.common.errors import SealcombError
from services.common.telemetry import current_request_id
from services.keyvault import audit
from services.keyvault.audit import Act


@dataclass(frozen=True, slots=True)
class Asker:
    """A verified peer with a verified context. The account is the context's and nobody else's."""

    peer: str
    context: CallContext

    @property
    def account(self) -> str:
        """The account that is acted for."""
        return self.context.account

    def act(self, time_us: int, action: str, resource: str = "", refusal: SealcombError | None = None) -> Act:
        """What the audit chain is to say of this."""
        return Act(
            time_us=time_us,
            action=action,
            peer=self.peer,
            token_id=self.context.token_id,
            method=self.context.method,
            resource=resource,
            outcome=audit.OK if refusal is None else refusal.reason,
            # The caller's own call, as its answer and the access log name it.
            request_id=current_request_id() or self.context.request_id,
        )

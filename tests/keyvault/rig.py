"""A keyvault without a network: its domain over a real database, and a KMS that lives in memory."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.common import ids
from services.common.alarms import Alarms
from services.common.context import (
    GRANT_AUDIENCE,
    GRANT_LIFE_S_MAX,
    CallContext,
    ContextSigner,
    ContextVerifier,
)
from services.common.errors import Unavailable
from services.common.sealing import DataKey, OpenFailed
from services.keyvault.asker import Asker
from services.keyvault.chain import AuditChain
from services.keyvault.checkpoints import Checkpoints
from services.keyvault.completion import Completion
from services.keyvault.deletions import Deletions
from services.keyvault.events import KeyEvents
from services.keyvault.kms.binding import Handle
from services.keyvault.kms.protocol import KeyReference, Kms
from services.keyvault.kms.registry import KmsRegistry
from services.keyvault.moves import Moves
from services.keyvault.permits import Permits
from services.keyvault.receipts import Receipts
from services.keyvault.reconciliation import Reconciliation
from services.keyvault.records import AccountKey, Wrapping
from services.keyvault.release_gate import ReleaseGate
from services.keyvault.releases import Releases
from services.keyvault.resealing import Resealing
from services.keyvault.reseals import Reseals
from services.keyvault.statements import StatementSigner
from services.keyvault.store import Store
from services.keyvault.transaction import Transaction
from services.keyvault.vault import Vault

_Result = TypeVar("_Result")
QUERY = "/sealcomb.v1.VectorService/Query"
DELETE = "/sealcomb.v1.CollectionService/DeleteCollection"


class ManualClock:
    """A clock that moves by hand."""

    def __init__(self, time_s: float = 1_700_000_000.0) -> None:
        self.time_s = time_s

    def now_s(self) -> float:
        """The time set."""
        return self.time_s

    def monotonic_s(self) -> float:
        """The time set."""
        return self.time_s


class MemoryKms:
    """The twin of a real KMS: strict about keys and encryption contexts, able to be down, and counting."""

    provider = "memory"

    def __init__(self) -> None:
        self.fingerprint = secrets.token_bytes(8)
        self.down = False
        self.unwraps: list[Wrapping] = []
        self._keys: set[bytes] = set()
        self._wrapped: dict[bytes, tuple[AccountKey, Wrapping, bytes]] = {}

    async def new_key(self, account: str, version: int) -> AccountKey:
        """A new key."""
        handle = secrets.token_bytes(16)
        self._keys.add(handle)
        return AccountKey(account, version, handle, self.provider)

    async def wrap(self, key: AccountKey, wrapping: Wrapping, secret: bytes) -> bytes:
        """A token for the secret."""
        self._check(key, wrapping)
        token = secrets.token_bytes(32)
        self._wrapped[token] = (key, wrapping, secret)
        return token

    async def unwrap(self, key: AccountKey, wrapping: Wrapping, wrapped: bytes) -> bytes:
        """The secret of a token."""
        self._check(key, wrapping)
        self.unwraps.append(wrapping)
        found = self._wrapped.get(wrapped)
        if found is None or found[:2] != (key, wrapping):
            raise OpenFailed
        return found[2]

    async def destroy_key(self, key: AccountKey) -> None:
        """Forgets a key."""
        self._keys.discard(key.handle)

    async def adopt_key(self, account: str, version: int, reference: KeyReference) -> AccountKey:
        """A key that somebody else made."""
        handle = Handle(account, version, reference.key, reference.role, adopted=True).encode()
        self._keys.add(handle)
        return AccountKey(account, version, handle, self.provider)

    def forget(self, account: str) -> None:
        """Nothing is held beside the keys themselves."""

    async def close(self) -> None:
        """There is nothing to close."""

    def _check(self, key: AccountKey, wrapping: Wrapping) -> None:
        if self.down:
            raise Unavailable("the KMS does not answer; try again")
        if key.handle not in self._keys or key.account != wrapping.account:
            raise OpenFailed


@dataclass
class Rig:
    """Keyvault's domain on one database."""

    database: Path
    kms: Kms
    clock: ManualClock = field(default_factory=ManualClock)
    random_bytes: Callable[[int], bytes] = secrets.token_bytes
    # Of tests with a ledger.
    reconciliation: Reconciliation = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store.open(f"sqlite:///{self.database}")
        self.events = KeyEvents()
        self.completion = Completion()
        self.registry = KmsRegistry(self.kms)
        self.vault = Vault(self.store, self.registry, self.events, self.clock, self.completion)
        self.releases = Releases(
            self.store, self.registry, self.events, self.clock, self.completion, self.random_bytes
        )
        self.alarms = Alarms("keyvault", self.clock)
        self.gate = ReleaseGate(self.releases, self.clock, 500.0, self.alarms)
        self.resealing = Resealing(self.store, self.events, self.clock, self.completion)
        self.moves = Moves(self.store, self.registry, self.clock)
        self.signing_key = Ed25519PrivateKey.generate()
        self.grants = ContextVerifier(
            GRANT_AUDIENCE, {"keyvault": self.signing_key.public_key()}, self.clock, GRANT_LIFE_S_MAX
        )
        self.permits = Permits(self.store, ContextSigner(self.signing_key), self.grants, self.clock)
        self.reseals = Reseals(self.store, ContextSigner(self.signing_key), self.clock)
        self.chain = AuditChain(self.store, DataKey(ids.new_id(), bytes(32)))
        self.statements = StatementSigner(self.signing_key)
        self.receipts = Receipts(self.store, self.statements)
        self.checkpoints = Checkpoints(self.store, self.chain, self.statements, self.clock)
        self.deletions = Deletions(self.store, self.vault, self.events, self.clock, self.completion)

    def asker(self, account: str, peer: str = "vectorstore", method: str = QUERY, **changes: Any) -> Asker:
        """Somebody who asks."""
        values: dict[str, Any] = {
            "issuer": "gateway",
            "audience": ("keyvault",),
            "account": account,
            "token_id": "tok1",
            "scopes": ("read",),
            "collections": (),
            "method": method,
            "issued_s": self.clock.now_s(),
            "expires_s": self.clock.now_s() + 30,
            "request_id": "req1",
        }
        return Asker(peer, CallContext(**{**values, **changes}))

    async def account(self) -> str:
        """A new account with its key."""
        account = ids.new_id()
        await self.vault.provision(
            self.asker(account, "gateway", "/sealcomb.v1.AccountService/CreateAccount")
        )
        return account

    async def lines(self, account: str) -> list[str]:
        """The account's exported audit chain."""
        return [line async for line in self.chain.lines(account)]

    async def acts(self, account: str) -> list[tuple[str, str, str]]:
        """What the chain says: action, peer and outcome."""
        records = await self.store.read(lambda tx: tx.events(account, 0, 10_000))
        return [(record.act.action, record.act.peer, record.act.outcome) for record in records]

    async def read(self, step: Callable[[Transaction], _Result]) -> _Result:
        """What a step reads."""
        return await self.store.read(step)

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """Runs a statement as somebody who can write the database would."""
        engine = sa.create_engine(f"sqlite:///{self.database}", connect_args={"timeout": 10})
        try:
            with engine.begin() as connection:
                result = connection.execute(sa.text(statement), values)
                return list(result) if result.returns_rows else []
        finally:
            engine.dispose()

    def files(self) -> bytes:
        """Every byte that the database has written, beside it included."""
        return b"".join(path.read_bytes() for path in self.database.parent.rglob("*") if path.is_file())

    def close(self) -> None:
        """Closes the database."""
        with contextlib.suppress(RuntimeError):
            self.store.close()

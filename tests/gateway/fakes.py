"""Twins of what the policy process depends on, and the whole of its domain around them."""

from __future__ import annotations

import base64
import itertools
import json
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.common import ids
from services.common.context import (
    CallContext,
    Caller,
    ContextSigner,
    ContextVerifier,
    acting_as,
    current_account,
    current_caller,
)
from services.common.datakeys import DataKeys
from services.common.errors import KeyDisabled, SealcombError, Unavailable
from services.common.sealing import DataKey
from services.gateway.accounts import Accounts
from services.gateway.authorizer import Authorizer, UsageLog
from services.gateway.buckets import AddressBuckets, BucketTable, Limits
from services.gateway.contexts import ContextMint
from services.gateway.failures import Failures
from services.gateway.issuer import TokenIssuer
from services.gateway.limits import LimitChange
from services.gateway.operator import replace_operator_token
from services.gateway.positions import page_key
from services.gateway.profiles import Profiles
from services.gateway.replicas import Replicas
from services.gateway.sessions import Defaults, Sessions
from services.gateway.store import GatewayStore
from services.gateway.tokens import Pepper
from services.gateway.usage.meter import Meters

OPERATOR_METHOD = "/sealcomb.v1.AccountService/CreateAccount"
ADMIN_METHOD = "/sealcomb.v1.TokenService/CreateToken"
DEFAULT_LIMITS = Limits(100.0, 100)
FAILURE_LIMITS = Limits(1.0, 5)
ADDRESS_LIMITS = Limits(1e9, 1_000_000_000)
NO_CHANGE = LimitChange()


@dataclass
class FakeClock:
    """A clock that moves when told to."""

    wall_s: float = 1_800_000_000.0
    steady_s: float = 1000.0

    def now_s(self) -> float:
        return self.wall_s

    def monotonic_s(self) -> float:
        return self.steady_s

    def pass_s(self, seconds: float) -> None:
        """Time goes by for both clocks."""
        self.wall_s += seconds
        self.steady_s += seconds


@dataclass
class FakeKeyvault:
    """Keyvault in memory; `failing` names acts that do not work at present."""

    accounts: set[str] = field(default_factory=set)
    disabled: set[str] = field(default_factory=set)
    suspended: set[str] = field(default_factory=set)
    destroyed: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    keys: dict[str, DataKey] = field(default_factory=dict)
    releases: int = 0

    async def provision_account(self) -> None:
        self._check("provision")
        self.accounts.add(current_account())

    async def set_account_suspended(self, suspended: bool) -> None:
        self._check("suspend")
        (self.suspended.add if suspended else self.suspended.discard)(current_account())

    async def destroy_account(self) -> str:
        self._check("destroy")
        if current_account() not in self.accounts:
            raise SealcombError("there is no such account", reason="ACCOUNT_NOT_FOUND")
        self.destroyed.add(current_account())
        return f"receipt of {current_account()}"

    async def record_event(self, action: str, resource: str) -> None:
        self._check("record")
        self.events.append((current_account(), action, resource))

    async def get_data_key(self, resource: str, purpose: str, key_id: str) -> DataKey:
        self._check("release")
        account = current_account()
        if account in self.disabled:
            raise KeyDisabled
        self.releases += 1
        return self.keys.setdefault(account, DataKey(ids.new_id(), random.Random(account).randbytes(32)))

    def _check(self, act: str) -> None:
        if act in self.failing:
            raise Unavailable("keyvault is down")


class Policy:
    """The policy process without its sockets."""

    def __init__(
        self,
        folder: Path,
        limits: Limits = DEFAULT_LIMITS,
        failures: Limits = FAILURE_LIMITS,
        seed: int = 0,
        token_share: float = 1.0,
    ) -> None:
        self.clock = FakeClock()
        self.store = GatewayStore(f"sqlite:///{folder}/gateway.db")
        self.store.migrate()
        self.pepper = Pepper(bytes(range(32)))
        self.keyvault = FakeKeyvault()
        key = Ed25519PrivateKey.generate()
        self.replicas = Replicas()
        self.mint = ContextMint(ContextSigner(key), self.clock, self.replicas)
        self.verifier = ContextVerifier("vectorstore", {"gateway": key.public_key()}, self.clock)
        self.profiles = Profiles(DataKeys(self.keyvault, self.clock))
        self.meters = Meters(self.store.usage(), self.clock)
        self.account_buckets = BucketTable(self.clock)
        self.sessions = Sessions(
            self.store, self.profiles, self.mint, self.clock, Defaults(limits, token_share=token_share),
            self.account_buckets, BucketTable(self.clock), self.meters,
        )  # fmt: skip
        # Nobody else changes this database; tests of the change feed bring one.
        self.sessions.believe_until(math.inf)
        self.usage = UsageLog()
        self.failures = AddressBuckets(failures, self.clock, bytes(32))
        self.guard = Failures(self.failures)
        self.addresses = AddressBuckets(ADDRESS_LIMITS, self.clock, bytes(32))
        self.authorizer = Authorizer(
            self.sessions, self.pepper, self.mint, self.addresses, self.guard, self.meters, self.usage,
            self.clock,
        )  # fmt: skip
        pages = page_key(self.pepper)
        counter = itertools.count(seed)
        # Deterministic, and never the same twice.
        self.random_bytes = lambda size: random.Random(next(counter)).randbytes(size)
        self.accounts = Accounts(
            self.store, self.keyvault, self.profiles, self.sessions, self.mint, self.pepper, pages,
            self.clock, self.random_bytes,
        )  # fmt: skip
        self.issuer = TokenIssuer(
            self.store,
            self.keyvault,
            self.profiles,
            self.sessions,
            self.pepper,
            pages,
            self.clock,
            self.random_bytes,
        )
        replace_operator_token(
            self.store, self.pepper, folder / "operator.token", self.clock, self.random_bytes
        )
        self.operator_token = (folder / "operator.token").read_text().strip()

    async def new_account(self, name: str = "an account", limits: LimitChange = NO_CHANGE) -> tuple[str, str]:
        """A new account's id and admin token."""
        with acting(OPERATOR_METHOD):
            account, token = await self.accounts.create(name, limits, "")
        assert token is not None
        return account.id, token.text

    async def new_token(
        self, account: str, *scopes: str, collections: tuple[str, ...] = ()
    ) -> tuple[str, str]:
        """A new token's id and text."""
        with acting(ADMIN_METHOD, account):
            token, info = await self.issuer.create("a label", scopes or ("read",), collections, None, "")
        assert token is not None
        return info.row.id, token.text

    def admit(self, path: str, token: str, address: str = "192.0.2.1") -> CallContext:
        """The context that a call gets. Raises as the authorizer refuses."""
        grant = self.authorizer.admit(path, f"Bearer {token}".encode(), address)
        assert grant is not None
        return _payload(grant.context)


def _payload(text: str) -> CallContext:
    raw = text.split(".")[0]
    fields = json.loads(base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)))
    for name in ("audience", "scopes", "collections"):
        fields[name] = tuple(fields[name])
    return CallContext(**fields)


def stored_bytes(folder: Path) -> bytes:
    """Every byte of the database's files."""
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.name.startswith("gateway.db"))


@contextmanager
def acting(method: str, account: str = "") -> Iterator[None]:
    """A call in progress, as the guard would have set it."""
    context = CallContext("gateway", ("gateway",), account, "0" * 26, (), (), method, 0.0, 1e12, "request")
    with acting_as(Caller(context, "context text")):
        assert current_caller().context is context
        yield

"""Decisions at the edge: rows B1, B4, B7, B8, B10, B14, B15 and B16 of the threat table."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from services.common import ids
from services.common.errors import PermissionDenied, ResourceExhausted, SealcombError, Unauthenticated
from services.common.methods import ACCOUNT_SCOPES, EDGE_METHODS, PublicMethod, Scope
from services.gateway import authorizer as authorizer_module
from services.gateway import sessions as sessions_module
from services.gateway.buckets import Limits
from services.gateway.limits import LimitChange
from services.gateway.records import TokenRow
from services.gateway.tokens import Kind, make_token
from tests.gateway.fakes import (
    ADMIN_METHOD,
    FAILURE_LIMITS,
    OPERATOR_METHOD,
    Policy,
    acting,
    stored_bytes,
)

READ = "/sealcomb.v1.VectorService/Query"
WHOAMI = "/sealcomb.v1.TokenService/WhoAmI"
GENEROUS = Limits(1e6, 1_000_000)


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy(tmp_path)


async def test_a_valid_token_gets_a_context_of_its_own_account_and_method(policy: Policy) -> None:
    account, token = await policy.new_account()
    grant = policy.authorizer.admit(READ, f"Bearer {token}".encode(), "192.0.2.1")
    assert grant is not None
    context = policy.verifier.verify(grant.context)
    assert (context.account, context.method, context.issuer) == (account, READ, "gateway")
    assert context.audience == EDGE_METHODS[READ].audience
    assert context.scopes == ACCOUNT_SCOPES
    assert context.expires_s == policy.clock.now_s() + 30


async def test_a_context_is_used_again_for_five_seconds_and_no_longer(policy: Policy) -> None:
    _, token = await policy.new_account()
    first = policy.admit(READ, token)
    policy.clock.pass_s(4.9)
    assert policy.admit(READ, token) == first
    policy.clock.pass_s(0.2)
    assert policy.admit(READ, token).issued_s > first.issued_s


async def test_a_bound_on_calls_under_way_is_shared_out_among_healthy_replicas(policy: Policy) -> None:
    """B8: each replica keeps what the context says, so all of them together keep the bound.

    The twin is where real replicas are, in test_balancing.
    """
    account, token = await policy.new_account(limits=LimitChange(calls_in_flight=10))
    assert policy.admit(READ, token).calls_in_flight == 10
    for healthy, part in ((3, 3), (4, 2), (30, 1), (0, 10), (1, 10)):
        policy.replicas.note({"vectorstore": healthy, "ingest": 7})
        policy.sessions.drop_account(account)
        assert policy.admit(READ, token).calls_in_flight == part
    # Without a change of the token, once its context is made anew.
    policy.replicas.note({"vectorstore": 2})
    policy.clock.pass_s(5.1)
    assert policy.admit(READ, token).calls_in_flight == 5


async def test_every_method_is_allowed_exactly_to_the_scopes_of_the_table(tmp_path: Path) -> None:
    """B14: every method against every set of scopes, and against the operator."""
    policy = Policy(tmp_path, GENEROUS)
    account, _ = await policy.new_account()
    for size in range(1, len(ACCOUNT_SCOPES) + 1):
        for scopes in itertools.combinations(ACCOUNT_SCOPES, size):
            token = make_token(Kind.ACCOUNT, policy.random_bytes)
            digest = policy.pepper.digest(token.text.encode())
            policy.store.add_token(TokenRow(token.id, account, digest, scopes, False, None, 0))
            for path, method in EDGE_METHODS.items():
                allowed = method.scope is Scope.ANY or _names(method, scopes)
                assert _admits(policy, path, token.text) is allowed, (path, scopes)
    for path, method in EDGE_METHODS.items():
        allowed = method.scope in (Scope.ANY, Scope.OPERATOR, Scope.OPERATOR_OR_ADMIN)
        assert _admits(policy, path, policy.operator_token) is allowed, path


async def test_without_the_scope_check_the_matrix_would_be_wrong(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of the test above."""
    account, _ = await policy.new_account()
    _, token = await policy.new_token(account, "read")
    assert not _admits(policy, OPERATOR_METHOD, token)
    monkeypatch.setattr(authorizer_module, "_check_scope", lambda session, method: None)
    assert _admits(policy, OPERATOR_METHOD, token)


async def test_an_account_token_that_claims_the_operator_scope_is_no_operator(policy: Policy) -> None:
    account, _ = await policy.new_account()
    token = make_token(Kind.OPERATOR, policy.random_bytes)
    digest = policy.pepper.digest(token.text.encode())
    policy.store.add_token(TokenRow(token.id, account, digest, ("operator",), False, None, 0))
    assert not _admits(policy, OPERATOR_METHOD, token.text)


async def test_a_method_that_is_not_in_the_table_is_refused_to_everybody(policy: Policy) -> None:
    for path in ("/sealcomb.internal.v1.KeyReleaseService/GetDataKey", READ + "/", READ.lower(), "", "*"):
        with pytest.raises(PermissionDenied):
            policy.admit(path, policy.operator_token)


async def test_no_guessed_token_is_accepted_and_lookups_stay_within_the_limit(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B1: well-formed guesses with good checksums, from one address."""
    lookups = _count_lookups(policy, monkeypatch)
    outcomes = [_reason(policy, make_token(Kind.ACCOUNT, os.urandom).text) for _ in range(5000)]
    assert set(outcomes) == {"TOKEN_INVALID", "TOO_MANY_FAILURES"}
    assert outcomes.count("TOKEN_INVALID") == len(lookups) == 5


async def test_without_the_failure_limit_every_guess_would_cost_a_lookup(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of the test above."""
    lookups = _count_lookups(policy, monkeypatch)
    monkeypatch.setattr(policy.failures, "wait_s", lambda address: 0.0)
    for _ in range(500):
        assert _reason(policy, make_token(Kind.ACCOUNT, os.urandom).text) == "TOKEN_INVALID"
    assert len(lookups) == 500


async def test_the_right_id_with_a_wrong_secret_is_refused(policy: Policy) -> None:
    """B1, B4: an id is no capability."""
    _, token = await policy.new_account()
    impostor = make_token(Kind.ACCOUNT, lambda size: _first_then(token, size))
    assert impostor.id == token.split("_")[2]
    assert impostor.text != token
    assert _reason(policy, impostor.text) == "TOKEN_INVALID"


async def test_a_stolen_table_holds_nothing_that_authenticates(policy: Policy, tmp_path: Path) -> None:
    """B4: neither the token nor its secret is in the database, and the stored digest is not accepted."""
    _, token = await policy.new_account()
    row = policy.store.token(token.split("_")[2])
    assert row is not None
    stored = stored_bytes(tmp_path)
    assert token.encode() not in stored
    assert token.rsplit("_", 1)[1].encode() not in stored
    for text in (
        row.digest.hex(),
        row.digest.decode("latin-1"),
        f"sealcomb_acc_{row.id}_{row.digest.hex()[:36]}",
    ):
        with pytest.raises(SealcombError):
            policy.authorizer.admit(READ, b"Bearer " + text.encode("latin-1"), "192.0.2.9")


async def test_wrong_tokens_make_no_bucket_and_no_session(policy: Policy) -> None:
    """B10: only authenticated calls leave anything behind."""
    sessions, buckets = policy.sessions, policy.account_buckets
    before = len(buckets), len(sessions._held)
    for number in range(2000):
        address = f"198.51.{number >> 8}.{number & 255}"
        assert _reason(policy, make_token(Kind.ACCOUNT, os.urandom).text, address) == "TOKEN_INVALID"
    assert (len(buckets), len(sessions._held)) == before


async def test_wrong_tokens_never_cost_an_account_its_calls(policy: Policy) -> None:
    """B10: somebody who knows a token's id cannot drain its account."""
    _, token = await policy.new_account(limits=LimitChange(1.0, 3))
    for number in range(50):
        impostor = make_token(Kind.ACCOUNT, lambda size: _first_then(token, size))
        assert _reason(policy, impostor.text, f"203.0.113.{number}") == "TOKEN_INVALID"
    assert [_admits(policy, READ, token) for _ in range(4)] == [True, True, True, False]


async def test_a_known_token_still_works_from_an_address_that_failed_too_often(policy: Policy) -> None:
    _, token = await policy.new_account()
    assert _admits(policy, READ, token)
    for _ in range(20):
        _reason(policy, "nonsense")
    assert _reason(policy, "nonsense") == "TOO_MANY_FAILURES"
    assert _admits(policy, READ, token)


async def test_many_tokens_of_one_account_share_its_bucket(policy: Policy) -> None:
    """B8: the limit is the account's, however many tokens and calls."""
    account, first = await policy.new_account(limits=LimitChange(100.0, 200))
    tokens = [first] + [(await policy.new_token(account))[1] for _ in range(19)]
    admitted = 0
    for _ in range(300):
        policy.clock.pass_s(0.01)
        admitted += sum(_admits(policy, READ, token) for token in tokens)
    assert 0.98 * 500 <= admitted <= 500 * 1.01


async def test_a_bucket_for_each_token_alone_would_let_them_through(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of the test above."""
    account, first = await policy.new_account(limits=LimitChange(10.0, 20))
    tokens = [first] + [(await policy.new_token(account))[1] for _ in range(4)]
    table = policy.account_buckets
    bucket = table.bucket
    fresh = itertools.count()
    monkeypatch.setattr(table, "bucket", lambda name, given: bucket(f"{name}{next(fresh)}", given))
    assert sum(_admits(policy, READ, token) for token in tokens for _ in range(20)) == 100


async def test_a_refused_call_says_when_it_will_be_admitted(policy: Policy) -> None:
    _, token = await policy.new_account(limits=LimitChange(4.0, 1))
    assert _admits(policy, READ, token)
    with pytest.raises(ResourceExhausted) as refused:
        policy.admit(READ, token)
    assert refused.value.reason == "RATE_LIMITED"
    assert refused.value.retry_after_s == 0.25
    policy.clock.pass_s(0.25)
    assert _admits(policy, READ, token)


async def test_a_refusal_drains_neither_bucket(tmp_path: Path) -> None:
    """A call that one bucket refuses takes nothing from the other."""
    policy = Policy(tmp_path, token_share=0.99)
    _, token = await policy.new_account(limits=LimitChange(1.0, 2))
    assert _admits(policy, READ, token)
    session = next(iter(policy.sessions._held.values()))
    assert session.token_bucket is not None
    session.token_bucket.take(2.0)
    assert not _admits(policy, READ, token)
    assert session.account_bucket.wait_s(1.0, policy.clock.monotonic_s()) == 0.0


async def test_an_expired_token_is_refused_though_its_session_is_held(policy: Policy) -> None:
    account, _ = await policy.new_account()
    with acting(ADMIN_METHOD, account):
        token, _ = await policy.issuer.create("short", ["read"], [], 3.0, "")
    assert token is not None
    assert policy.admit(READ, token.text).expires_s == policy.clock.now_s() + 3.0
    policy.clock.pass_s(2.9)
    assert _admits(policy, READ, token.text)
    policy.clock.pass_s(0.1)
    assert _reason(policy, token.text) == "TOKEN_EXPIRED"


async def test_a_jump_of_wall_time_neither_revives_a_token_nor_freezes_a_session(policy: Policy) -> None:
    """B7: caches live by the monotonic clock, expiry by the wall clock."""
    account, token = await policy.new_account()
    assert _admits(policy, READ, token)
    for jump_s in (3600, -3600, 365 * 86_400, -365 * 86_400):
        policy.clock.wall_s += jump_s
        policy.clock.pass_s(5.1)
        context = policy.admit(READ, token)
        assert context.issued_s == policy.clock.now_s()
    with acting(ADMIN_METHOD, account):
        await policy.issuer.revoke(token.split("_")[2])
    policy.clock.wall_s -= 10 * 365 * 86_400
    assert _reason(policy, token) == "TOKEN_REVOKED"


async def test_revocation_holds_in_the_same_instant(policy: Policy) -> None:
    account, token = await policy.new_account()
    assert _admits(policy, READ, token)
    with acting(ADMIN_METHOD, account):
        await policy.issuer.revoke(token.split("_")[2])
    assert _reason(policy, token) == "TOKEN_REVOKED"


async def test_revocation_without_dropping_the_session_would_come_late(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin of the test above; the session's age is then the bound."""
    account, token = await policy.new_account()
    assert _admits(policy, READ, token)
    monkeypatch.setattr(policy.sessions, "drop_token", lambda token_id: None)
    with acting(ADMIN_METHOD, account):
        await policy.issuer.revoke(token.split("_")[2])
    assert _admits(policy, READ, token)
    policy.clock.pass_s(sessions_module.HELD_S)
    assert _reason(policy, token) == "TOKEN_REVOKED"


async def test_a_suspended_accounts_tokens_are_refused_at_once_and_work_again_after(policy: Policy) -> None:
    """B16."""
    account, token = await policy.new_account()
    assert _admits(policy, READ, token)
    with acting(OPERATOR_METHOD):
        await policy.accounts.update(account, LimitChange(), True)
    assert _reason(policy, token) == "ACCOUNT_SUSPENDED"
    with acting(OPERATOR_METHOD):
        await policy.accounts.update(account, LimitChange(), False)
    assert _admits(policy, READ, token)


async def test_a_deleted_accounts_tokens_are_refused_like_unknown_ones(policy: Policy) -> None:
    """B16."""
    account, token = await policy.new_account()
    assert _admits(policy, READ, token)
    with acting(OPERATOR_METHOD):
        await policy.accounts.delete(account, account)
    assert _reason(policy, token) == "TOKEN_INVALID"


async def test_a_token_for_some_collections_carries_their_names_inside(policy: Policy) -> None:
    account, _ = await policy.new_account()
    _, token = await policy.new_token(account, "read", collections=("honey", "wax"))
    header = f"Bearer {token}".encode()
    assert policy.authorizer.admit(READ, header, "192.0.2.1") is None
    grant = await policy.authorizer.admit_slowly(READ, header, "192.0.2.1")
    assert policy.verifier.verify(grant.context).collections == ("honey", "wax")
    # Opened once, it is admitted at once.
    assert policy.admit(READ, token).collections == ("honey", "wax")


async def test_a_token_for_some_collections_fails_closed_while_they_cannot_be_opened(policy: Policy) -> None:
    account, _ = await policy.new_account()
    _, token = await policy.new_token(account, "read", collections=("honey",))
    policy.profiles.drop_all()
    policy.keyvault.disabled.add(account)
    with pytest.raises(SealcombError) as refused:
        await policy.authorizer.admit_slowly(READ, f"Bearer {token}".encode(), "192.0.2.1")
    assert refused.value.reason == "KEY_DISABLED"
    policy.keyvault.failing.add("release")
    with pytest.raises(SealcombError) as refused:
        await policy.authorizer.admit_slowly(READ, f"Bearer {token}".encode(), "192.0.2.1")
    assert refused.value.reason == "UNAVAILABLE"


class _FarStore:
    """A database elsewhere, which answers after a while; how often it was asked."""

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.look_ups = self.under_way = self.most = 0
        # Look-ups go on while it is set.
        self.answers = asyncio.Event()
        self.answers.set()
        self.read = policy.sessions._read
        policy.store.is_local = False
        monkeypatch.setattr(policy.sessions, "_read_elsewhere", self.read_elsewhere)

    async def read_elsewhere(self, token_id: str, digest: bytes) -> object:
        self.look_ups += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.01)
        await self.answers.wait()
        self.under_way -= 1
        return self.read(token_id, digest)


async def _reasons(policy: Policy, tokens: list[str], address: str = "192.0.2.1") -> Counter[str]:
    async def one(token: str) -> str:
        header = f"Bearer {token}".encode()
        try:
            grant = policy.authorizer.admit(READ, header, address)
            if grant is None:
                await policy.authorizer.admit_slowly(READ, header, address)
        except SealcombError as error:
            return error.reason
        return "OK"

    return Counter(await asyncio.gather(*map(one, tokens)))


def _forged(policy: Policy, count: int) -> list[str]:
    return [make_token(Kind.ACCOUNT, policy.random_bytes).text for _ in range(count)]


async def test_tokens_that_come_at_once_are_looked_up_no_more_often_than_they_may_fail(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B1, B10: each look-up takes a while, and all are asked for before the first is found wrong."""
    store = _FarStore(policy, monkeypatch)
    reasons = await _reasons(policy, _forged(policy, 300))
    assert reasons == {"TOKEN_INVALID": FAILURE_LIMITS.burst, "TOO_MANY_FAILURES": 300 - FAILURE_LIMITS.burst}
    assert store.look_ups == FAILURE_LIMITS.burst
    assert not policy.guard._looking


async def test_without_a_place_for_each_look_up_the_database_would_see_them_all(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the test above."""
    store = _FarStore(policy, monkeypatch)

    async def at_once(address: str) -> None:
        policy.guard.check(address)

    monkeypatch.setattr(policy.guard, "enter", at_once)
    monkeypatch.setattr(policy.guard, "leave", lambda address: None)
    await _reasons(policy, _forged(policy, 300))
    assert store.look_ups == 300


async def test_valid_tokens_that_come_at_once_are_all_admitted_a_few_at_a_time(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a balancer all clients are one address, and after a start nobody's token is known."""
    account, _ = await policy.new_account()
    tokens = [(await policy.new_token(account))[1] for _ in range(40)]
    store = _FarStore(policy, monkeypatch)
    assert await _reasons(policy, [*tokens, *tokens]) == {"OK": 80}
    assert (store.look_ups, store.most) == (40, FAILURE_LIMITS.burst)
    assert not policy.guard._looking


async def test_who_stops_waiting_keeps_its_place_until_the_look_up_has_ended(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B1: a call that is abandoned, and one that never came to its turn."""
    store = _FarStore(policy, monkeypatch)
    store.answers.clear()
    calls = [asyncio.create_task(_reasons(policy, [token])) for token in _forged(policy, 20)]
    await asyncio.sleep(0.05)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert store.under_way == FAILURE_LIMITS.burst
    later = asyncio.create_task(_reasons(policy, _forged(policy, 3)))
    await asyncio.sleep(0.05)
    assert store.under_way == FAILURE_LIMITS.burst
    store.answers.set()
    assert await later == {"TOO_MANY_FAILURES": 3}
    assert store.look_ups == FAILURE_LIMITS.burst
    assert not policy.guard._looking


async def test_a_restricted_token_whose_sealed_part_is_gone_reaches_nothing(policy: Policy) -> None:
    account, _ = await policy.new_account()
    token = make_token(Kind.ACCOUNT, policy.random_bytes)
    digest = policy.pepper.digest(token.text.encode())
    policy.store.add_token(TokenRow(token.id, account, digest, ("read",), True, None, 0))
    with pytest.raises(Unauthenticated):
        await policy.authorizer.admit_slowly(READ, f"Bearer {token.text}".encode(), "192.0.2.1")


async def test_a_token_revoked_while_its_collections_are_opened_is_not_kept(policy: Policy) -> None:
    account, _ = await policy.new_account()
    token_id, token = await policy.new_token(account, "read", collections=("honey",))
    policy.profiles.drop_all()
    release = policy.keyvault.get_data_key

    async def revoke_meanwhile(resource: str, purpose: str, key_id: str) -> object:
        key = await release(resource, purpose, key_id)
        policy.store.revoke_token(token_id, 1)
        policy.sessions.drop_token(token_id)
        return key

    policy.keyvault.get_data_key = revoke_meanwhile  # type: ignore[method-assign, assignment]
    with pytest.raises(Unauthenticated) as refused:
        await policy.authorizer.admit_slowly(READ, f"Bearer {token}".encode(), "192.0.2.1")
    assert refused.value.reason == "TOKEN_REVOKED"
    assert not policy.sessions._held


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "TOKEN_MISSING"),
        (b"", "TOKEN_MALFORMED"),
        (b"Bearer", "TOKEN_MALFORMED"),
        (b"Bearer ", "TOKEN_MALFORMED"),
        (b"Basic dXNlcjpwYXNz", "TOKEN_MALFORMED"),
        (b"Bearer \x00\xff\xfe", "TOKEN_MALFORMED"),
        (b"Bearer ' OR 1=1 --", "TOKEN_MALFORMED"),
        (b"Bearer " + b"A" * 10_000_000, "TOKEN_MALFORMED"),
    ],
)
async def test_naughty_headers_are_refused_without_a_lookup(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, header: bytes | None, reason: str
) -> None:
    """B15."""
    lookups = _count_lookups(policy, monkeypatch)
    with pytest.raises(Unauthenticated) as refused:
        policy.authorizer.admit(READ, header, "192.0.2.1")
    assert refused.value.reason == reason
    assert not lookups


async def test_two_tokens_in_one_header_are_refused(policy: Policy) -> None:
    _, token = await policy.new_account()
    for joined in (f"Bearer {token},Bearer {token}", f"Bearer {token} {token}"):
        with pytest.raises(Unauthenticated):
            policy.authorizer.admit(READ, joined.encode(), "192.0.2.1")


async def test_no_refusal_repeats_what_was_sent(policy: Policy) -> None:
    """B3, A17."""
    account, token = await policy.new_account()
    _, narrow = await policy.new_token(account, "read")
    for sent, path in ((token[:-1], READ), ("canary-token", READ), (narrow, OPERATOR_METHOD)):
        with pytest.raises(SealcombError) as refused:
            policy.admit(path, sent)
        error = refused.value
        shown = repr(error) + str(error) + repr(error.fields) + repr(error.quotas)
        assert sent not in shown
        assert sent[-20:] not in shown


async def test_use_is_noted_to_the_minute(policy: Policy) -> None:
    _, token = await policy.new_account()
    for _ in range(5):
        policy.admit(WHOAMI, token)
    noted = policy.usage.take()
    assert noted == [(token.split("_")[2], int(policy.clock.now_s() // 60) * 60_000)]
    assert policy.usage.take() == []
    policy.store.mark_used(noted)
    row = policy.store.token(noted[0][0])
    assert row is not None
    assert row.used_time_ms == noted[0][1]


def _names(method: PublicMethod, scopes: tuple[str, ...]) -> bool:
    return method.scope.value in scopes or (method.scope is Scope.OPERATOR_OR_ADMIN and "admin" in scopes)


def _admits(policy: Policy, path: str, token: str) -> bool:
    try:
        return policy.authorizer.admit(path, f"Bearer {token}".encode(), "192.0.2.1") is not None
    except (PermissionDenied, ResourceExhausted):
        return False


def _reason(policy: Policy, token: str, address: str = "192.0.2.1") -> str:
    with pytest.raises(SealcombError) as refused:
        policy.admit(READ, token, address)
    return refused.value.reason


def _count_lookups(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lookups: list[str] = []
    read = policy.store.token

    def counted(token_id: str) -> TokenRow | None:
        lookups.append(token_id)
        return read(token_id)

    monkeypatch.setattr(policy.store, "token", counted)
    return lookups


def _first_then(token: str, size: int) -> bytes:
    """The bytes of a token's id, then random ones: a token with this id and another secret."""
    return ids.to_bytes(token.split("_")[2]) if size == 16 else random.SystemRandom().randbytes(size)

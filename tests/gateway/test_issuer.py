"""Tokens of an account: created, listed, rotated, revoked."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    SealcombError,
    Unavailable,
)
from services.gateway import issuer as issuer_module
from tests.gateway.fakes import ADMIN_METHOD, Policy, acting, stored_bytes

READ = "/sealcomb.v1.VectorService/Query"
DAY_S = 86_400.0


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy(tmp_path)


async def test_labels_and_collections_are_sealed(policy: Policy, tmp_path: Path) -> None:
    account, _ = await policy.new_account()
    with acting(ADMIN_METHOD, account):
        token, info = await policy.issuer.create(
            "canary-label", ["write", "read"], ["canary-name"], None, "canary-key"
        )
        infos, _ = await policy.issuer.list(0, "")
    assert token is not None
    assert info.row.scopes == ("read", "write")
    assert infos[-1].profile.label == "canary-label"
    assert infos[-1].profile.collections == ("canary-name",)
    stored = stored_bytes(tmp_path)
    assert b"canary" not in stored
    assert (account, "token.create", token.id) in policy.keyvault.events


async def test_a_token_moved_to_another_row_or_account_does_not_open(policy: Policy) -> None:
    account, _ = await policy.new_account()
    first, _ = await policy.new_token(account)
    second, _ = await policy.new_token(account)
    row = policy.store.token(first)
    assert row is not None
    assert row.sealed is not None
    with acting(ADMIN_METHOD, account):
        await policy.profiles.open_token(first, row.sealed)
        with pytest.raises(SealcombError) as refused:
            await policy.profiles.open_token(second, row.sealed)
    assert refused.value.reason == "OPEN_FAILED"


@pytest.mark.parametrize(
    ("label", "scopes", "collections", "ttl_s", "field"),
    [
        ("x" * 10_000, ["read"], [], None, "label"),
        ("a\n", ["read"], [], None, "label"),
        ("a", [], [], None, "scopes"),
        ("a", ["read", "root"], [], None, "scopes[1]"),
        ("a", ["operator"], [], None, "scopes[0]"),
        ("a", ["any"], [], None, "scopes[0]"),
        ("a", ["read"] * 1000, [], None, "scopes"),
        ("a", ["read"], [""], None, "collections[0]"),
        ("a", ["read"], ["x" * 10_000], None, "collections[0]"),
        ("a", ["read"], ["c"] * 101, None, "collections"),
        ("a", ["read", "admin"], ["c"], None, "scopes"),
        ("a", ["keys"], ["c"], None, "scopes"),
        ("a", ["read"], [], 0.0, "ttl"),
        ("a", ["read"], [], -5.0, "ttl"),
        ("a", ["read"], [], 1e12, "ttl"),
    ],
)
async def test_bad_fields_are_named_and_nothing_is_stored(
    policy: Policy, label: str, scopes: list[str], collections: list[str], ttl_s: float | None, field: str
) -> None:
    account, _ = await policy.new_account()
    with acting(ADMIN_METHOD, account), pytest.raises(InvalidArgument) as refused:
        await policy.issuer.create(label, scopes, collections, ttl_s, "")
    assert [violation.field for violation in refused.value.fields] == [field]
    assert policy.store.count_tokens(account) == 1


async def test_a_token_that_cannot_be_recorded_is_not_issued(policy: Policy) -> None:
    account, _ = await policy.new_account()
    policy.keyvault.failing.add("record")
    with acting(ADMIN_METHOD, account), pytest.raises(Unavailable):
        await policy.issuer.create("a", ["read"], [], None, "")
    assert policy.store.count_tokens(account) == 1


async def test_a_revocation_that_cannot_be_recorded_holds_all_the_same(policy: Policy) -> None:
    account, _ = await policy.new_account()
    token_id, token = await policy.new_token(account)
    policy.keyvault.failing.add("record")
    with acting(ADMIN_METHOD, account), pytest.raises(Unavailable):
        await policy.issuer.revoke(token_id)
    with pytest.raises(SealcombError):
        policy.admit(READ, token)


async def test_revoking_again_changes_nothing(policy: Policy) -> None:
    account, _ = await policy.new_account()
    token_id, _ = await policy.new_token(account)
    with acting(ADMIN_METHOD, account):
        await policy.issuer.revoke(token_id)
        first = policy.store.token(token_id)
        policy.clock.pass_s(60)
        await policy.issuer.revoke(token_id)
    assert policy.store.token(token_id) == first


async def test_rotation_keeps_what_the_token_was_and_lets_both_work_for_the_overlap(policy: Policy) -> None:
    account, _ = await policy.new_account()
    with acting(ADMIN_METHOD, account):
        old, _ = await policy.issuer.create("a label", ["read", "write"], [], 10 * DAY_S, "")
        assert old is not None
        policy.clock.pass_s(DAY_S)
        new, info = await policy.issuer.rotate(old.id, 60.0)
    assert (info.row.scopes, info.profile.label) == (("read", "write"), "a label")
    assert info.row.expire_time_ms == int((policy.clock.now_s() + 10 * DAY_S) * 1000)
    for token in (old.text, new.text):
        assert policy.admit(READ, token).account == account
    policy.clock.pass_s(59.9)
    policy.admit(READ, old.text)
    policy.clock.pass_s(0.1)
    with pytest.raises(SealcombError) as refused:
        policy.admit(READ, old.text)
    assert refused.value.reason == "TOKEN_EXPIRED"
    policy.admit(READ, new.text)


async def test_rotation_without_an_overlap_ends_the_old_token_at_once(policy: Policy) -> None:
    account, _ = await policy.new_account()
    token_id, token = await policy.new_token(account)
    policy.admit(READ, token)
    with acting(ADMIN_METHOD, account):
        await policy.issuer.rotate(token_id, 0.0)
        with pytest.raises(SealcombError):
            policy.admit(READ, token)
        with pytest.raises(FailedPrecondition):
            await policy.issuer.rotate(token_id, 0.0)


async def test_an_overlap_never_prolongs_the_old_token(policy: Policy) -> None:
    account, _ = await policy.new_account()
    with acting(ADMIN_METHOD, account):
        old, info = await policy.issuer.create("a", ["read"], [], 100.0, "")
        assert old is not None
        await policy.issuer.rotate(old.id, 30 * DAY_S)
        row = policy.store.token(old.id)
        assert row is not None
        assert row.expire_time_ms == info.row.expire_time_ms
        with pytest.raises(InvalidArgument):
            await policy.issuer.rotate(old.id, 30 * DAY_S + 1)
        with pytest.raises(InvalidArgument):
            await policy.issuer.rotate(old.id, -1.0)


async def test_another_accounts_token_answers_like_one_that_does_not_exist(policy: Policy) -> None:
    """D2: for every verb."""
    mine, _ = await policy.new_account("mine")
    theirs, _ = await policy.new_account("theirs")
    foreign, token = await policy.new_token(theirs)
    operator = policy.operator_token.split("_")[2]
    answers = set()
    with acting(ADMIN_METHOD, mine):
        for token_id in (foreign, operator, "0" * 26, "x" * 10_000, ""):
            for work in (policy.issuer.revoke(token_id), policy.issuer.rotate(token_id, 0.0)):
                with pytest.raises(NotFound) as refused:
                    await work
                answers.add((refused.value.reason, refused.value.message, refused.value.fields))
    assert len(answers) == 1
    assert policy.admit(READ, token).account == theirs


async def test_pages_show_the_accounts_own_tokens_once(policy: Policy) -> None:
    account, _ = await policy.new_account()
    other, _ = await policy.new_account()
    made = {(await policy.new_token(account))[0] for _ in range(5)}
    await policy.new_token(other)
    seen: list[str] = []
    token = ""
    with acting(ADMIN_METHOD, account):
        while not seen or token:
            infos, token = await policy.issuer.list(2, token)
            seen += [info.row.id for info in infos]
        _, foreign = await policy.issuer.list(2, "")
    assert len(seen) == len(set(seen)) == 6
    assert made < set(seen)
    with acting(ADMIN_METHOD, other), pytest.raises(InvalidArgument):
        await policy.issuer.list(2, foreign)


async def test_lists_work_without_labels_while_the_key_is_off(policy: Policy) -> None:
    account, _ = await policy.new_account()
    await policy.new_token(account)
    policy.profiles.drop_all()
    policy.keyvault.disabled.add(account)
    with acting(ADMIN_METHOD, account):
        infos, _ = await policy.issuer.list(0, "")
    assert [info.profile.label for info in infos] == ["", ""]


async def test_a_repeated_idempotency_key_shows_the_token_once(policy: Policy) -> None:
    account, _ = await policy.new_account()
    other, _ = await policy.new_account()
    with acting(ADMIN_METHOD, account):
        _, first = await policy.issuer.create("a", ["read"], [], None, "key")
        token, again = await policy.issuer.create("a", ["read"], [], None, "key")
        assert (token, again.row.id) == (None, first.row.id)
        with pytest.raises(AlreadyExists):
            await policy.issuer.create("a", ["write"], [], None, "key")
    with acting(ADMIN_METHOD, other):
        token, info = await policy.issuer.create("a", ["read"], [], None, "key")
    assert token is not None
    assert info.row.id != first.row.id


async def test_the_number_of_tokens_is_bounded_and_long_ended_ones_make_room(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_module, "_TOKENS_MAX", 4)
    account, _ = await policy.new_account()
    made = [(await policy.new_token(account))[0] for _ in range(3)]
    with acting(ADMIN_METHOD, account):
        await policy.issuer.revoke(made[0])
        with pytest.raises(ResourceExhausted):
            await policy.issuer.create("a", ["read"], [], None, "")
        policy.clock.pass_s(91 * DAY_S)
        await policy.issuer.create("a", ["read"], [], None, "")
    assert policy.store.token(made[0]) is None

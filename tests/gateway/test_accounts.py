"""Accounts: whole or not at all, keys first on the way out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.common.errors import AlreadyExists, InvalidArgument, NotFound, SealcombError, Unavailable
from services.gateway.limits import LimitChange
from services.gateway.records import CREATING, DELETING
from tests.gateway.fakes import OPERATOR_METHOD, Policy, acting, stored_bytes

NONE = LimitChange()


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy(tmp_path)


async def test_a_new_account_has_a_key_a_sealed_name_and_a_token(policy: Policy, tmp_path: Path) -> None:
    with acting(OPERATOR_METHOD):
        account, token = await policy.accounts.create("canary-name-of-an-account", LimitChange(5.0, 7), "")
        assert await policy.accounts.get(account.id) == account
    assert token is not None
    assert account.id in policy.keyvault.accounts
    assert (account.limits.calls_per_second, account.limits.burst) == (5.0, 7)
    assert (account.id, "account.create", account.id) in policy.keyvault.events
    stored = stored_bytes(tmp_path)
    assert b"canary-name" not in stored


@pytest.mark.parametrize("failing", ["provision", "release", "record"])
async def test_a_failure_while_making_an_account_leaves_nothing(policy: Policy, failing: str) -> None:
    policy.keyvault.failing.add(failing)
    with acting(OPERATOR_METHOD):
        with pytest.raises(Unavailable):
            await policy.accounts.create("a", NONE, "key")
        assert await policy.accounts.list(0, "") == ([], "")
        assert policy.store.unfinished_accounts(10) == []
        assert policy.keyvault.destroyed == policy.keyvault.accounts
        policy.keyvault.failing.clear()
        account, token = await policy.accounts.create("a", NONE, "key")
    assert token is not None
    assert [row.id for row in policy.store.list_accounts((-1, ""), 10)] == [account.id]


async def test_what_a_crash_left_half_made_is_never_seen_and_is_removed(policy: Policy) -> None:
    policy.keyvault.failing |= {"release", "destroy"}
    with acting(OPERATOR_METHOD):
        with pytest.raises(Unavailable):
            await policy.accounts.create("a", NONE, "")
        (row,) = policy.store.unfinished_accounts(10)
        assert row.state == CREATING
        with pytest.raises(NotFound):
            await policy.accounts.get(row.id)
        with pytest.raises(NotFound):
            await policy.accounts.delete(row.id, row.id)
    policy.keyvault.failing.clear()
    await policy.accounts.finish_interrupted()
    assert policy.store.unfinished_accounts(10) == [row], "it may belong to a call in progress"
    policy.clock.pass_s(60)
    await policy.accounts.finish_interrupted()
    assert policy.store.unfinished_accounts(10) == []
    assert row.id in policy.keyvault.destroyed


async def test_an_account_that_keyvault_never_heard_of_is_removed_too(policy: Policy) -> None:
    policy.keyvault.failing.add("provision")
    with acting(OPERATOR_METHOD), pytest.raises(Unavailable):
        await policy.accounts.create("a", NONE, "")
    assert policy.store.unfinished_accounts(10) == []


async def test_a_caller_who_goes_away_leaves_nothing_behind(policy: Policy) -> None:
    asked = asyncio.Event()

    async def never() -> None:
        policy.keyvault.accounts.add("x")
        asked.set()
        await asyncio.sleep(60)

    policy.keyvault.provision_account = never  # type: ignore[method-assign]
    with acting(OPERATOR_METHOD):
        task = asyncio.create_task(policy.accounts.create("a", NONE, ""))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert policy.store.unfinished_accounts(10) == []


async def test_a_repeated_idempotency_key_returns_the_first_account_without_a_token(policy: Policy) -> None:
    with acting(OPERATOR_METHOD):
        first, _ = await policy.accounts.create("a", NONE, "key")
        again, token = await policy.accounts.create("a", NONE, "key")
        assert (again, token) == (first, None)
        with pytest.raises(AlreadyExists) as refused:
            await policy.accounts.create("b", NONE, "key")
    assert refused.value.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_twenty_calls_with_one_key_make_one_account(policy: Policy) -> None:
    async def create() -> str:
        with acting(OPERATOR_METHOD):
            return (await policy.accounts.create("a", NONE, "key"))[0].id

    results = await asyncio.gather(*(create() for _ in range(20)), return_exceptions=True)
    made = {result for result in results if isinstance(result, str)}
    others = [result for result in results if not isinstance(result, str)]
    assert len(made) == 1
    assert all(isinstance(error, SealcombError) and error.reason == "CONFLICT" for error in others)
    assert len(policy.store.list_accounts((-1, ""), 10)) == 1


@pytest.mark.parametrize(
    ("name", "limits", "key", "field"),
    [
        ("", NONE, "", "name"),
        ("x" * 10_000, NONE, "", "name"),
        ("a\0b", NONE, "", "name"),
        ("a", LimitChange(0.0, None), "", "limits.calls_per_second"),
        ("a", LimitChange(float("nan"), None), "", "limits.calls_per_second"),
        ("a", LimitChange(float("inf"), None), "", "limits.calls_per_second"),
        ("a", LimitChange(-1.0, None), "", "limits.calls_per_second"),
        ("a", LimitChange(None, 0), "", "limits.burst"),
        ("a", LimitChange(None, 2_000_000), "", "limits.burst"),
        ("a", NONE, "k" * 129, "idempotency_key"),
    ],
)
async def test_bad_fields_are_named_and_nothing_is_stored(
    policy: Policy, name: str, limits: LimitChange, key: str, field: str
) -> None:
    with acting(OPERATOR_METHOD), pytest.raises(InvalidArgument) as refused:
        await policy.accounts.create(name, limits, key)
    assert [violation.field for violation in refused.value.fields] == [field]
    assert policy.store.list_accounts((-1, ""), 10) == policy.store.unfinished_accounts(10) == []


async def test_pages_give_every_account_once_in_order_of_creation(policy: Policy) -> None:
    made = []
    for number in range(7):
        policy.clock.pass_s(number % 2)
        made.append((await policy.new_account(f"account {number}"))[0])
    seen: list[str] = []
    token, pages = "", 0
    with acting(OPERATOR_METHOD):
        while pages == 0 or token:
            page, token = await policy.accounts.list(3, token)
            seen += [account.id for account in page]
            pages += 1
    assert pages == 3
    assert sorted(seen) == sorted(made)
    rows = [policy.store.account(account) for account in seen]
    times = [row.create_time_ms for row in rows if row is not None]
    assert times == sorted(times)
    with acting(OPERATOR_METHOD), pytest.raises(InvalidArgument):
        await policy.accounts.list(3, "nonsense")


async def test_limits_change_field_by_field(policy: Policy) -> None:
    account, _ = await policy.new_account(limits=LimitChange(5.0, 7))
    with acting(OPERATOR_METHOD):
        changed = await policy.accounts.update(account, LimitChange(calls_per_second=9.0), None)
    assert (changed.limits.calls_per_second, changed.limits.burst, changed.suspended) == (9.0, 7, False)
    assert (account, "account.limits", account) in policy.keyvault.events


async def test_a_suspension_holds_here_even_while_keyvault_is_down(policy: Policy) -> None:
    account, _ = await policy.new_account()
    policy.keyvault.failing.add("suspend")
    with acting(OPERATOR_METHOD):
        with pytest.raises(Unavailable):
            await policy.accounts.update(account, NONE, True)
        row = policy.store.account(account)
        assert row is not None
        assert row.suspended
        # And a resumption that keyvault did not confirm does not.
        with pytest.raises(Unavailable):
            await policy.accounts.update(account, NONE, False)
    row = policy.store.account(account)
    assert row is not None
    assert row.suspended


async def test_names_are_empty_while_the_key_is_off_and_lists_still_work(policy: Policy) -> None:
    account, _ = await policy.new_account("honey")
    policy.profiles.drop_all()
    policy.keyvault.disabled.add(account)
    with acting(OPERATOR_METHOD):
        (listed,), _ = await policy.accounts.list(0, "")
        assert (listed.id, listed.name) == (account, "")
        policy.keyvault.disabled.clear()
        assert (await policy.accounts.get(account)).name == "honey"


async def test_deletion_destroys_the_keys_before_the_rows(policy: Policy) -> None:
    account, _ = await policy.new_account()
    policy.keyvault.failing.add("destroy")
    with acting(OPERATOR_METHOD):
        with pytest.raises(Unavailable):
            await policy.accounts.delete(account, account)
        row = policy.store.account(account)
        assert row is not None
        assert row.state == DELETING
        with pytest.raises(NotFound):
            await policy.accounts.get(account)
        policy.keyvault.failing.clear()
        await policy.accounts.delete(account, account)
        with pytest.raises(NotFound):
            await policy.accounts.delete(account, account)
    assert policy.store.account(account) is None
    assert policy.store.count_tokens(account) == 0
    assert account in policy.keyvault.destroyed


async def test_an_interrupted_deletion_is_finished_without_a_caller(policy: Policy) -> None:
    account, _ = await policy.new_account()
    policy.keyvault.failing.add("destroy")
    with acting(OPERATOR_METHOD), pytest.raises(Unavailable):
        await policy.accounts.delete(account, account)
    await policy.accounts.finish_interrupted()
    assert policy.store.account(account) is not None
    policy.keyvault.failing.clear()
    await policy.accounts.finish_interrupted()
    assert policy.store.account(account) is None


async def test_deletion_wants_the_id_twice(policy: Policy) -> None:
    account, _ = await policy.new_account()
    with acting(OPERATOR_METHOD), pytest.raises(InvalidArgument) as refused:
        await policy.accounts.delete(account, "yes")
    assert refused.value.fields[0].field == "confirm"


@pytest.mark.parametrize("account", ["", "x", "0" * 26, "0" * 10_000, "'; DROP TABLE accounts; --"])
async def test_unknown_and_malformed_ids_answer_alike(policy: Policy, account: str) -> None:
    with acting(OPERATOR_METHOD):
        for work in (
            policy.accounts.get(account),
            policy.accounts.update(account, NONE, True),
            policy.accounts.delete(account, account),
        ):
            with pytest.raises(NotFound) as refused:
                await work
            assert (refused.value.reason, refused.value.message) == ("ACCOUNT_NOT_FOUND", "no such account")

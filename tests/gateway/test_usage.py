"""What accounts use, their quotas, and what calls cost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.common import ids
from services.common.errors import InvalidArgument, NotFound, ResourceExhausted, SealcombError
from services.common.methods import EDGE_METHODS, PUBLIC_METHODS
from services.gateway.buckets import AddressBuckets, Limits
from services.gateway.limits import LimitChange
from services.gateway.store import GatewayStore
from services.gateway.usage.amounts import QUOTAS, Amounts, date_of, day_of, end_of, first_of_month
from services.gateway.usage.report import Usage, UsageReports
from services.gateway.usage.store import Deltas
from tests.gateway.fakes import OPERATOR_METHOD, Policy, acting

READ = "/sealcomb.v1.VectorService/Query"
UPSERT = "/sealcomb.v1.VectorService/Upsert"
UPLOAD = "/sealcomb.v1.DocumentService/UploadDocument"
USAGE = "/sealcomb.v1.AccountService/GetUsage"
CREATE = "/sealcomb.v1.AccountService/CreateAccount"
GENEROUS = Limits(1e6, 1_000_000)


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy(tmp_path, GENEROUS)


def reports(policy: Policy) -> UsageReports:
    return UsageReports(policy.store, policy.store.usage(), policy.meters, policy.clock)


async def usage(policy: Policy, account: str, caller: str = "", days: int = 0) -> Usage:
    with acting(USAGE, caller):
        return await reports(policy).of(account, days)


def refusal(policy: Policy, path: str, token: str) -> SealcombError | None:
    try:
        policy.admit(path, token)
    except SealcombError as error:
        return error
    return None


def reason(policy: Policy, path: str, token: str) -> str:
    error = refusal(policy, path, token)
    return "" if error is None else error.reason


async def report(policy: Policy, account: str, sequence: int = 1, **amounts: int) -> None:
    await reports(policy).take("0" * 26, sequence, [(account, Amounts(**amounts))])
    await policy.meters.flush()


async def test_calls_and_refusals_are_counted_by_the_day(policy: Policy) -> None:
    account, token = await policy.new_account()
    _, narrow = await policy.new_token(account, "read")
    for _ in range(3):
        policy.admit(READ, token)
    assert reason(policy, UPSERT, narrow) == "SCOPE_MISSING"
    today = date_of(day_of(policy.clock.now_s()))
    seen = await usage(policy, account)
    assert seen.days == [(today, Amounts(calls=3, refusals=1))]
    assert seen.month[1] == Amounts(calls=3, refusals=1)
    policy.clock.pass_s(86_400)
    policy.admit(READ, token)
    seen = await usage(policy, account)
    assert [amounts.calls for _, amounts in seen.days] == [1, 3]
    assert [amounts.calls for _, amounts in (await usage(policy, account, days=1)).days] == [1]


async def test_a_token_that_is_not_valid_is_nobodys_refusal(policy: Policy) -> None:
    account, token = await policy.new_account()
    assert reason(policy, READ, token[:-1]) == "TOKEN_MALFORMED"
    assert (await usage(policy, account)).days == []


async def test_an_account_sees_its_own_usage_and_nobody_elses(policy: Policy) -> None:
    mine, token = await policy.new_account()
    other, _ = await policy.new_account()
    policy.admit(READ, token)
    assert (await usage(policy, "", mine)).days == (await usage(policy, mine, mine)).days != []
    for foreign in (other, ids.new_id(), "nonsense"):
        with pytest.raises(NotFound) as refused:
            await usage(policy, foreign, mine)
        assert refused.value.reason == "ACCOUNT_NOT_FOUND"
    with pytest.raises(NotFound):
        await usage(policy, ids.new_id())
    with pytest.raises(InvalidArgument):
        await usage(policy, "")
    with pytest.raises(InvalidArgument):
        await usage(policy, mine, days=401)


async def test_usage_wants_an_operator_or_an_administrator(policy: Policy) -> None:
    """B14."""
    account, admin = await policy.new_account()
    _, narrow = await policy.new_token(account, "read", "write", "audit")
    assert reason(policy, USAGE, admin) == reason(policy, USAGE, policy.operator_token) == ""
    assert reason(policy, USAGE, narrow) == "SCOPE_MISSING"


async def test_a_quota_of_calls_ends_with_its_day_and_says_so(policy: Policy) -> None:
    account, token = await policy.new_account(limits=LimitChange(quotas={"calls_per_day": 3}))
    for _ in range(3):
        assert reason(policy, READ, token) == ""
    error = refusal(policy, READ, token)
    assert isinstance(error, ResourceExhausted)
    assert error.reason == "QUOTA_EXCEEDED"
    assert [(one.subject, one.description) for one in error.quotas] == [("account", "3 calls per day")]
    assert error.retry_after_s is not None
    policy.clock.pass_s(error.retry_after_s)
    # Whoever obeys is admitted.
    assert reason(policy, READ, token) == ""
    assert [amounts.calls for _, amounts in (await usage(policy, account)).days] == [1, 3]


async def test_a_quota_of_a_month_outlasts_the_day(policy: Policy) -> None:
    policy.clock.wall_s = datetime(2027, 2, 27, 12, tzinfo=UTC).timestamp()
    _, token = await policy.new_account(limits=LimitChange(quotas={"calls_per_month": 2}))
    assert reason(policy, READ, token) == reason(policy, READ, token) == ""
    for _ in range(2):
        assert reason(policy, READ, token) == "QUOTA_EXCEEDED"
        await policy.meters.flush()
        policy.clock.pass_s(86_400)
    # The first of March.
    assert reason(policy, READ, token) == ""


@pytest.mark.parametrize("what", ["points", "documents", "bytes"])
async def test_quotas_of_what_is_written_refuse_writes_alone(policy: Policy, what: str) -> None:
    account, token = await policy.new_account(limits=LimitChange(quotas={f"{what}_per_day": 100}))
    await report(policy, account, **{what: 99})
    assert reason(policy, UPSERT, token) == reason(policy, UPLOAD, token) == ""
    await report(policy, account, 2, **{what: 1})
    assert reason(policy, READ, token) == ""
    assert reason(policy, UPLOAD, token) == "QUOTA_EXCEEDED"
    assert reason(policy, UPSERT, token) == ("" if what == "documents" else "QUOTA_EXCEEDED")


async def test_without_the_meter_a_quota_would_bound_nothing(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin of the tests above."""
    _, token = await policy.new_account(limits=LimitChange(quotas={"calls_per_day": 1}))
    monkeypatch.setattr("services.gateway.usage.meter.Meter._check", lambda *_: None)
    assert [reason(policy, READ, token) for _ in range(5)] == [""] * 5


async def test_a_quota_that_the_operator_changes_holds_for_the_next_call(policy: Policy) -> None:
    account, token = await policy.new_account()
    for _ in range(5):
        policy.admit(READ, token)
    await policy.meters.flush()
    for quota, expected in ((5, "QUOTA_EXCEEDED"), (6, ""), (0, "")):
        with acting(OPERATOR_METHOD):
            shown = await policy.accounts.update(account, LimitChange(quotas={"calls_per_day": quota}), None)
        assert shown.quotas == ({"calls_per_day": quota} if quota else {})
        assert reason(policy, READ, token) == expected


async def test_what_another_process_counted_is_seen_with_the_next_reading(tmp_path: Path) -> None:
    here, there = Policy(tmp_path, GENEROUS), Policy(tmp_path, GENEROUS, seed=1_000_000)
    _, token = await here.new_account(limits=LimitChange(quotas={"calls_per_day": 4}))
    for _ in range(2):
        assert reason(here, READ, token) == reason(there, READ, token) == ""
    for _ in range(2):
        await here.meters.flush()
        await there.meters.flush()
    assert reason(here, READ, token) == reason(there, READ, token) == "QUOTA_EXCEEDED"


async def test_a_process_that_meets_an_account_anew_knows_what_it_used(tmp_path: Path) -> None:
    """B8: a restart fills no quota."""
    here = Policy(tmp_path, GENEROUS)
    _, token = await here.new_account(limits=LimitChange(quotas={"calls_per_day": 2}))
    assert [reason(here, READ, token) for _ in range(3)] == ["", "", "QUOTA_EXCEEDED"]
    await here.meters.flush()
    assert reason(Policy(tmp_path, GENEROUS, seed=1_000_000), READ, token) == "QUOTA_EXCEEDED"


async def test_nothing_is_lost_or_counted_twice_when_the_database_fails(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, token = await policy.new_account()
    policy.admit(READ, token)

    def fail(*_: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(policy.meters._store, "add", fail)
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await policy.meters.flush()
    policy.admit(READ, token)
    assert [amounts.calls for _, amounts in (await usage(policy, account)).days] == [2]
    assert [amounts.calls for _, amounts in (await usage(policy, account)).days] == [2]


async def test_who_leaves_while_usage_is_written_counts_nothing_twice(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B11: a caller that asks and hangs up would use up everybody's quotas."""
    account, token = await policy.new_account()
    policy.admit(READ, token)
    store = policy.store.usage()
    began, goes_on = threading.Event(), threading.Event()

    def add(deltas: Deltas) -> None:
        began.set()
        assert goes_on.wait(30)
        store.add(deltas)

    with monkeypatch.context() as patch:
        patch.setattr(policy.meters, "_store", SimpleNamespace(add=add))
        asking = asyncio.create_task(usage(policy, account))
        assert await asyncio.to_thread(began.wait, 30)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        goes_on.set()
        await policy.meters.write()
    assert (await usage(policy, account)).days[0][1] == Amounts(calls=1)


async def test_meters_of_accounts_that_are_gone_take_no_memory(policy: Policy) -> None:
    """B10."""
    for number in range(6000):
        policy.meters.of(f"{number:026}", {}, None)
    policy.clock.pass_s(61)
    policy.meters.of("a" * 26, {}, None)
    await policy.meters.flush()
    assert len(policy.meters._meters) == 1


@pytest.fixture
def store(url: str) -> Iterator[GatewayStore]:
    opened = GatewayStore(url)
    opened.migrate()
    yield opened
    opened.close()


def test_a_report_is_counted_once_however_often_it_comes(store: GatewayStore) -> None:
    kept, day = store.usage(), 20_000
    deltas = [("a" * 26, day, Amounts(points=5)), ("b" * 26, day, Amounts(bytes=1 << 40))]
    assert kept.add_report("r" * 26, 1, day, deltas)
    assert not kept.add_report("r" * 26, 1, day, deltas)
    assert kept.add_report("s" * 26, 1, day, deltas)
    assert kept.add_report("r" * 26, 2, day, [])
    assert not kept.add_report("r" * 26, 1, day, deltas)
    assert kept.used("a" * 26, day).day == Amounts(points=10)
    assert kept.used("b" * 26, day).day == Amounts(bytes=1 << 41)


def test_days_add_up_to_their_month_and_old_ones_go(store: GatewayStore) -> None:
    kept, today = store.usage(), day_of(datetime(2027, 3, 2, tzinfo=UTC).timestamp())
    for ago in (0, 0, 1, 2, 401):
        kept.add([("a" * 26, today - ago, Amounts(1, 2, 3, 4, 5))])
    assert kept.used("a" * 26, today).day == Amounts(2, 4, 6, 8, 10)
    assert kept.used("a" * 26, today).month == Amounts(3, 6, 9, 12, 15)
    assert [day for day, _ in kept.days("a" * 26, today - 2)] == [today, today - 1, today - 2]
    kept.forget(today)
    assert kept.days("a" * 26, 0) == [], "it belongs to no account"


def test_periods_end_when_the_calendar_says() -> None:
    day = day_of(datetime(2028, 2, 29, 23, 59, 59, tzinfo=UTC).timestamp())
    assert date_of(day) == "2028-02-29"
    assert date_of(first_of_month(day)) == "2028-02-01"
    for period in ("day", "month"):
        assert datetime.fromtimestamp(end_of(period, day), UTC) == datetime(2028, 3, 1, tzinfo=UTC)
    december = day_of(datetime(2027, 12, 5, tzinfo=UTC).timestamp())
    assert datetime.fromtimestamp(end_of("month", december), UTC) == datetime(2028, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("quotas", [{"calls_per_day": -1}, {"bytes_per_month": 1 << 54}])
async def test_a_quota_that_is_none_is_refused_by_its_field(policy: Policy, quotas: dict[str, int]) -> None:
    account, _ = await policy.new_account()
    with acting(OPERATOR_METHOD), pytest.raises(InvalidArgument) as refused:
        await policy.accounts.update(account, LimitChange(quotas=quotas), None)
    what, period = next(iter(quotas)).split("_per_")
    assert refused.value.fields[0].field == f"limits.per_{period}.{what}"


def test_every_use_that_a_method_names_has_quotas() -> None:
    for method in PUBLIC_METHODS.values():
        for what in method.uses:
            assert {f"{what}_per_day", f"{what}_per_month"} <= set(QUOTAS)


async def test_a_heavier_call_costs_more_than_a_light_one(tmp_path: Path) -> None:
    """B8: by the table of methods."""
    policy = Policy(tmp_path, Limits(1.0, 10))
    _, token = await policy.new_account()
    heavy = "/sealcomb.v1.VectorService/QueryBatch"
    assert EDGE_METHODS[heavy].cost == 5.0
    assert [reason(policy, heavy, token) for _ in range(3)] == ["", "", "RATE_LIMITED"]
    policy.clock.pass_s(1.0)
    assert [reason(policy, READ, token) for _ in range(2)] == ["", "RATE_LIMITED"]


async def test_calls_of_an_address_are_bounded_before_anything_is_looked_at(policy: Policy) -> None:
    """B10: valid or not, known or not; other addresses are not touched."""
    _, token = await policy.new_account()
    addresses = AddressBuckets(Limits(10.0, 20), policy.clock, bytes(32))
    policy.authorizer._addresses = addresses
    outcomes = [reason(policy, READ, token) for _ in range(25)]
    assert outcomes == [""] * 20 + ["ADDRESS_LIMITED"] * 5
    error = refusal(policy, READ, "nonsense")
    assert error is not None
    assert (error.reason, error.retry_after_s) == ("ADDRESS_LIMITED", 0.1)
    assert policy.authorizer.admit(READ, f"Bearer {token}".encode(), "192.0.2.77") is not None
    policy.clock.pass_s(0.1)
    assert [reason(policy, READ, token) for _ in range(2)] == ["", "ADDRESS_LIMITED"]


async def test_without_the_addresses_bound_they_would_all_be_looked_at(policy: Policy) -> None:
    """The twin of the test above."""
    _, token = await policy.new_account()
    assert [reason(policy, READ, token) for _ in range(25)] == [""] * 25


async def test_what_was_made_without_quotas_is_repeated_by_its_key(policy: Policy) -> None:
    with acting(CREATE):
        first, _ = await policy.accounts.create("a", LimitChange(), "key")
        again, token = await policy.accounts.create("a", LimitChange(), "key")
        assert (again.id, token) == (first.id, None)
        with pytest.raises(SealcombError) as refused:
            await policy.accounts.create("a", LimitChange(quotas={"calls_per_day": 1}), "key")
    assert refused.value.reason == "IDEMPOTENCY_KEY_REUSED"

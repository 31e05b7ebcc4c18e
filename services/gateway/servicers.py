"""AccountService and TokenService: validate, ask the domain, build the response."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from sealcomb.internal.v1 import edge_service_pb2 as edge_pb
from sealcomb.internal.v1 import edge_service_pb2_grpc as edge_stubs
from sealcomb.v1 import account_service_pb2 as accounts_pb
from sealcomb.v1 import account_service_pb2_grpc as accounts_stubs
from sealcomb.v1 import token_service_pb2 as tokens_pb
from sealcomb.v1 import token_service_pb2_grpc as tokens_stubs
from services.common.context import current_caller
from services.gateway.accounts import Account, Accounts
from services.gateway.issuer import TokenInfo, TokenIssuer
from services.gateway.limits import LimitChange
from services.gateway.standing import Standing
from services.gateway.usage.amounts import BOUNDED, Amounts
from services.gateway.usage.report import UsageReports

_Context = grpc.aio.ServicerContext[Any, Any]


class AccountServicer(accounts_stubs.AccountServiceServicer):
    """The operator's methods, and the usage that an account sees of its own."""

    def __init__(self, accounts: Accounts, usage: UsageReports) -> None:
        self._accounts = accounts
        self._usage = usage

    async def CreateAccount(
        self, request: accounts_pb.CreateAccountRequest, context: _Context
    ) -> accounts_pb.CreateAccountResponse:
        """Creates an account and shows its first token."""
        account, token = await self._accounts.create(
            request.name, _limits(request.limits), request.idempotency_key
        )
        return accounts_pb.CreateAccountResponse(account=_account(account), token=token.text if token else "")

    async def GetAccount(
        self, request: accounts_pb.GetAccountRequest, context: _Context
    ) -> accounts_pb.GetAccountResponse:
        """Returns one account."""
        return accounts_pb.GetAccountResponse(account=_account(await self._accounts.get(request.id)))

    async def ListAccounts(
        self, request: accounts_pb.ListAccountsRequest, context: _Context
    ) -> accounts_pb.ListAccountsResponse:
        """Lists accounts."""
        found, next_page_token = await self._accounts.list(request.page_size, request.page_token)
        return accounts_pb.ListAccountsResponse(
            accounts=[_account(account) for account in found], next_page_token=next_page_token
        )

    async def UpdateAccount(
        self, request: accounts_pb.UpdateAccountRequest, context: _Context
    ) -> accounts_pb.UpdateAccountResponse:
        """Changes limits, suspends, resumes."""
        suspended = request.suspended if request.HasField("suspended") else None
        account = await self._accounts.update(request.id, _limits(request.limits), suspended)
        return accounts_pb.UpdateAccountResponse(account=_account(account))

    async def DeleteAccount(
        self, request: accounts_pb.DeleteAccountRequest, context: _Context
    ) -> accounts_pb.DeleteAccountResponse:
        """Deletes an account for good."""
        receipt = await self._accounts.delete(request.id, request.confirm)
        return accounts_pb.DeleteAccountResponse(receipt=receipt)

    async def GetUsage(
        self, request: accounts_pb.GetUsageRequest, context: _Context
    ) -> accounts_pb.GetUsageResponse:
        """Says what an account used."""
        usage = await self._usage.of(request.id, request.days)
        return accounts_pb.GetUsageResponse(
            days=[_day_usage(*day) for day in usage.days], month=_day_usage(*usage.month)
        )


class TokenServicer(tokens_stubs.TokenServiceServicer):
    """The methods upon the calling account's tokens."""

    def __init__(self, issuer: TokenIssuer) -> None:
        self._issuer = issuer

    async def CreateToken(
        self, request: tokens_pb.CreateTokenRequest, context: _Context
    ) -> tokens_pb.CreateTokenResponse:
        """Creates a token and shows it."""
        ttl_s = _seconds(request.ttl) if request.HasField("ttl") else None
        token, info = await self._issuer.create(
            request.label, request.scopes, request.collections, ttl_s, request.idempotency_key
        )
        return tokens_pb.CreateTokenResponse(token=token.text if token else "", info=_info(info))

    async def ListTokens(
        self, request: tokens_pb.ListTokensRequest, context: _Context
    ) -> tokens_pb.ListTokensResponse:
        """Lists tokens."""
        found, next_page_token = await self._issuer.list(request.page_size, request.page_token)
        return tokens_pb.ListTokensResponse(
            tokens=[_info(info) for info in found], next_page_token=next_page_token
        )

    async def RotateToken(
        self, request: tokens_pb.RotateTokenRequest, context: _Context
    ) -> tokens_pb.RotateTokenResponse:
        """Makes a successor and shows it."""
        token, info = await self._issuer.rotate(request.id, _seconds(request.overlap))
        return tokens_pb.RotateTokenResponse(token=token.text, info=_info(info))

    async def RevokeToken(
        self, request: tokens_pb.RevokeTokenRequest, context: _Context
    ) -> tokens_pb.RevokeTokenResponse:
        """Ends a token."""
        await self._issuer.revoke(request.id)
        return tokens_pb.RevokeTokenResponse()

    async def WhoAmI(self, request: tokens_pb.WhoAmIRequest, context: _Context) -> tokens_pb.WhoAmIResponse:
        """Says whose token the call carries."""
        caller = current_caller().context
        response = tokens_pb.WhoAmIResponse(
            account_id=caller.account,
            token_id=caller.token_id,
            scopes=caller.scopes,
            collections=caller.collections,
        )
        _set_time(response.expire_time, await self._issuer.expire_time_ms(caller.token_id))
        return response


class EdgeServicer(edge_stubs.EdgeServiceServicer):
    """What the services behind the edge ask and tell."""

    def __init__(self, standing: Standing, usage: UsageReports) -> None:
        self._standing = standing
        self._usage = usage

    async def ReportUsage(
        self, request: edge_pb.ReportUsageRequest, context: _Context
    ) -> edge_pb.ReportUsageResponse:
        """Counts what accounts used."""
        amounts = [
            (one.account, Amounts(points=one.points, documents=one.documents, bytes=one.bytes))
            for one in request.accounts
        ]
        await self._usage.take(request.reporter, request.sequence, amounts)
        return edge_pb.ReportUsageResponse()

    async def CheckTokens(
        self, request: edge_pb.CheckTokensRequest, context: _Context
    ) -> edge_pb.CheckTokensResponse:
        """Says which tokens have ended."""
        return edge_pb.CheckTokensResponse(ended=await self._standing.ended(request.token_ids))


def _limits(limits: accounts_pb.Limits) -> LimitChange:
    quotas = {
        f"{what}_per_{period}": getattr(quota, what)
        for period, quota in (("day", limits.per_day), ("month", limits.per_month))
        for what in BOUNDED
        if quota.HasField(what)  # type: ignore[arg-type]
    }
    return LimitChange(
        limits.calls_per_second if limits.HasField("calls_per_second") else None,
        limits.burst if limits.HasField("burst") else None,
        limits.calls_in_flight if limits.HasField("calls_in_flight") else None,
        quotas,
    )


def _account(account: Account) -> accounts_pb.Account:
    limits = accounts_pb.Limits(
        calls_per_second=account.limits.calls_per_second,
        burst=account.limits.burst,
        calls_in_flight=account.calls_in_flight,
    )
    for name, value in account.quotas.items():
        what, period = name.split("_per_")
        setattr(limits.per_day if period == "day" else limits.per_month, what, value)
    message = accounts_pb.Account(
        id=account.id, name=account.name, limits=limits, suspended=account.suspended
    )
    _set_time(message.create_time, account.create_time_ms)
    return message


def _day_usage(date: str, amounts: Amounts) -> accounts_pb.DayUsage:
    return accounts_pb.DayUsage(date=date, **asdict(amounts))


def _info(info: TokenInfo) -> tokens_pb.TokenInfo:
    row, profile = info.row, info.profile
    message = tokens_pb.TokenInfo(
        id=row.id, label=profile.label, scopes=row.scopes, collections=profile.collections
    )
    _set_time(message.create_time, row.create_time_ms)
    _set_time(message.expire_time, row.expire_time_ms)
    _set_time(message.revoke_time, row.revoke_time_ms)
    _set_time(message.last_used_time, row.used_time_ms)
    return message


def _set_time(target: Timestamp, time_ms: int | None) -> None:
    if time_ms is not None:
        target.FromMilliseconds(time_ms)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9

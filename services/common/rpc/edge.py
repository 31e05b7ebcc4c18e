"""The services' client of the gateway: what accounts used, and which tokens have ended.

Usage is gathered in memory and reported every two seconds. A report whose answer was lost is sent
again under its number, so that it is counted once. What a process that is killed had not reported is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import grpc.aio
import structlog

from sealcomb.internal.v1 import edge_service_pb2 as pb
from sealcomb.internal.v1 import edge_service_pb2_grpc as stubs
from services.common import ids
from services.common.errors import SealcombError
from services.common.rpc.channel import call

REPORT_EVERY_S = 2.0
_TIMEOUT_S = 5.0
# Accounts in one report; the others wait for the next.
_ACCOUNTS_MAX = 1000
# Accounts whose usage is kept while the gateway does not answer.
_KEPT_MAX = 100_000
_log = structlog.get_logger("edge-client")


class EdgeClient:
    """Calls the gateway's inner service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = stubs.EdgeServiceStub(channel)

    async def ended_tokens(self, tokens: Collection[str]) -> Collection[str]:
        """The tokens among these that no longer let anybody in."""
        request = pb.CheckTokensRequest(token_ids=tokens)
        response = await call(self._stub.CheckTokens, request, timeout_s=_TIMEOUT_S)
        return list(response.ended)

    async def report(self, request: pb.ReportUsageRequest) -> None:
        """Has a report counted, once however often it is sent."""
        await call(self._stub.ReportUsage, request, timeout_s=_TIMEOUT_S)


class UsageReporter:
    """Gathers what accounts use in this process, and reports it."""

    def __init__(self, client: EdgeClient | None) -> None:
        self._client = client
        self._reporter = ids.new_id()
        self._sequence = 0
        self._gathered: dict[str, pb.AccountUsage] = {}
        self._unanswered: pb.ReportUsageRequest | None = None

    def add(self, account: str, *, points: int = 0, documents: int = 0, size_bytes: int = 0) -> None:
        """Counts what an account used."""
        usage = self._gathered.get(account)
        if usage is None:
            if self._client is None or len(self._gathered) >= _KEPT_MAX:
                return
            usage = self._gathered[account] = pb.AccountUsage(account=account)
        usage.points += points
        usage.documents += documents
        usage.bytes += size_bytes

    async def run(self) -> None:
        """Reports until cancelled."""
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            try:
                await self.report()
            except SealcombError as error:
                _log.warning("usage not reported", reason=error.reason)

    async def report_last(self) -> None:
        """Reports what is left, if it can, before the process ends."""
        try:
            await self.report()
        except SealcombError as error:
            _log.warning("the last usage is lost", reason=error.reason)

    async def report(self) -> None:
        """Reports what was gathered. Raises SealcombError; the same is then reported the next time."""
        while self._client is not None and (self._unanswered or self._gathered):
            if self._unanswered is None:
                self._sequence += 1
                names = list(self._gathered)[:_ACCOUNTS_MAX]
                accounts = [self._gathered.pop(name) for name in names]
                self._unanswered = pb.ReportUsageRequest(
                    reporter=self._reporter, sequence=self._sequence, accounts=accounts
                )
            await self._client.report(self._unanswered)
            self._unanswered = None

"""The services' client of keyvault: data keys, permits, account acts, and the watch for key events."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
import structlog

from sealcomb.internal.v1 import keyvault_service_pb2 as pb
from sealcomb.internal.v1 import keyvault_service_pb2_grpc as stubs
from services.common.rpc.channel import call
from services.common.sealing import DataKey

_log = structlog.get_logger("keyvault-client")
_SILENCE_S = 6.0
_RETRY_S = 0.2


class KeyEvent(enum.Enum):
    """What happened to an account's keys. RECONNECTED: events may have been missed; drop everything."""

    RECONNECTED = 1
    DISABLED = 2
    ENABLED = 3
    SUSPENDED = 4
    RESUMED = 5
    RESOURCE_DESTROYED = 6
    ACCOUNT_DESTROYED = 7


# Account and resource; empty where the event has none.
OnKeyEvent = Callable[[KeyEvent, str, str], Awaitable[None]]


class KeyvaultClient:
    """Calls keyvault under the current caller's context."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = stubs.KeyReleaseServiceStub(channel)

    async def get_data_key(self, resource: str, purpose: str, key_id: str) -> DataKey:
        """A data key of the current account; see KeySource."""
        request = pb.GetDataKeyRequest(resource=resource, purpose=purpose, key_id=key_id)
        response = await call(self._stub.GetDataKey, request, timeout_s=10.0)
        return DataKey(response.key_id, response.secret)

    async def destroy_resource(self, resource: str) -> None:
        """Destroys all data keys of a resource, for good."""
        await self.destroy_collection(resource)

    async def destroy_collection(self, resource: str) -> str:
        """Destroys all data keys of a collection, for good; the signed receipt of it."""
        response = await call(self._stub.DestroyResource, pb.DestroyResourceRequest(resource=resource))
        return response.receipt

    async def provision_account(self) -> None:
        """Makes the account's KMS key if there is none."""
        await call(self._stub.ProvisionAccount, pb.ProvisionAccountRequest(), timeout_s=30.0)

    async def set_account_suspended(self, suspended: bool) -> None:
        """Suspends or resumes key release for the account."""
        await call(self._stub.SetAccountSuspended, pb.SetAccountSuspendedRequest(suspended=suspended))

    async def destroy_account(self) -> str:
        """Destroys the account's KMS key and its data keys, for good; the signed receipt of it."""
        response = await call(self._stub.DestroyAccount, pb.DestroyAccountRequest(), timeout_s=30.0)
        return response.receipt

    async def record_event(self, action: str, resource: str) -> None:
        """Adds an administrative act to the account's audit chain."""
        await call(self._stub.RecordEvent, pb.RecordEventRequest(action=action, resource=resource))

    async def issue_permit(self, job_id: str, ttl_s: int) -> str:
        """A permit for work that outlives this call."""
        response = await call(self._stub.IssuePermit, pb.IssuePermitRequest(job_id=job_id, ttl_s=ttl_s))
        return response.permit

    async def issue_grant(self, job_id: str, collection_id: str) -> str:
        """A grant for standing work on one collection; see `renew_permit`."""
        request = pb.IssuePermitRequest(job_id=job_id, ttl_s=1, collection_id=collection_id, standing=True)
        response = await call(self._stub.IssuePermit, request)
        return response.grant

    async def renew_permit(self, grant: str, ttl_s: int) -> str:
        """A fresh permit of a grant's job; needs no caller. Refused once the job has ended."""
        response = await call(self._stub.RenewPermit, pb.RenewPermitRequest(grant=grant, ttl_s=ttl_s))
        return response.permit

    async def end_permit(self, job_id: str) -> None:
        """Ends the job's permit."""
        await call(self._stub.EndPermit, pb.EndPermitRequest(job_id=job_id))

    async def watch(self, on_event: OnKeyEvent) -> None:
        """Delivers key events until cancelled; reconnects by itself and says RECONNECTED each time."""
        while True:
            try:
                await self._watch_once(on_event)
            except (grpc.RpcError, TimeoutError):
                _log.debug("key event watch lost")
            await asyncio.sleep(_RETRY_S)

    async def _watch_once(self, on_event: OnKeyEvent) -> None:
        stream = self._stub.WatchKeyEvents(pb.WatchKeyEventsRequest())
        try:
            first = True
            while True:
                message = await asyncio.wait_for(stream.read(), _SILENCE_S)
                if not isinstance(message, pb.WatchKeyEventsResponse):
                    return  # grpc.aio.EOF: keyvault ended the stream
                if first:
                    first = False
                    await on_event(KeyEvent.RECONNECTED, "", "")
                if message.event != pb.KEY_EVENT_HEARTBEAT:
                    await on_event(KeyEvent(message.event), message.account, message.resource)
        finally:
            stream.cancel()

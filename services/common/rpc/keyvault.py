"""The services' client of keyvault: data keys, permits, account acts, and the watch for key events."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Iterable

import grpc
import grpc.aio
import structlog

from sealcomb.internal.v1 import keyvault_service_pb2 as pb
from sealcomb.internal.v1 import keyvault_service_pb2_grpc as stubs
from services.common.datakeys import AgedKeys
from services.common.errors import SealcombError
from services.common.resealing import Reseal
from services.common.rpc.channel import call
from services.common.sealing import DataKey

_log = structlog.get_logger("keyvault-client")
_SILENCE_S = 6.0
_RETRY_S = 0.2
_CATCH_UP_S = 10.0


class KeyEvent(enum.Enum):
    """What happened to an account's keys. RECONNECTED: events may have been missed; drop everything."""

    RECONNECTED = 1
    DISABLED = 2
    ENABLED = 3
    SUSPENDED = 4
    RESUMED = 5
    RESOURCE_DESTROYED = 6
    ACCOUNT_DESTROYED = 7
    # Other keys are sealed with from now on.
    NEW_DATA_KEYS = 8


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

    async def report_data_keys(
        self, resource: str, purpose: str, in_use: Iterable[str], looked_s: float
    ) -> AgedKeys:
        """Says which keys of a resource a look that began at `looked_s` found; others can be destroyed."""
        request = pb.ReportDataKeysRequest(
            resource=resource,
            purpose=purpose,
            key_ids_in_use=sorted(in_use),
            looked_us=int(looked_s * 1e6),
        )
        response = await call(self._stub.ReportDataKeys, request, timeout_s=10.0)
        return AgedKeys(response.aged_data_keys, response.destroyable_us / 1e6)

    async def list_reseals(self) -> list[Reseal]:
        """What this service is to seal anew now; needs no caller. Nothing where keyvault cannot say."""
        try:
            response = await self._stub.ListReseals(pb.ListResealsRequest(), timeout=10.0)
        except grpc.RpcError:
            _log.debug("keyvault does not say what to seal anew")
            return []
        return [Reseal(one.account, tuple(one.resources), one.permit) for one in response.reseals]

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

    async def watch(self, on_event: OnKeyEvent, *, removes: bool = False) -> None:
        """Delivers key events until cancelled; reconnects by itself and says RECONNECTED each time.

        With `removes` what was destroyed meanwhile is delivered too, until `on_event` returns without an
        error from each: for a service that keeps data of its own.
        """
        while True:
            try:
                await self._watch_once(on_event, removes)
            except (grpc.RpcError, TimeoutError):
                _log.debug("key event watch lost")
            except Exception:  # noqa: BLE001  (the outermost loop: without it nothing is ever told again)
                _log.exception("key event watch failed")
            await asyncio.sleep(_RETRY_S)

    async def _watch_once(self, on_event: OnKeyEvent, removes: bool) -> None:
        stream = self._stub.WatchKeyEvents(pb.WatchKeyEventsRequest())
        # Beside the watch, since removing takes its time and the next event may be a disable.
        catching_up: asyncio.Task[None] | None = None
        try:
            first = True
            while True:
                # Not `wait_for`, which forgets that it was cancelled if a message comes just then.
                async with asyncio.timeout(_SILENCE_S):
                    message = await stream.read()
                if not isinstance(message, pb.WatchKeyEventsResponse):
                    return  # grpc.aio.EOF: keyvault ended the stream
                if first:
                    first = False
                    await on_event(KeyEvent.RECONNECTED, "", "")
                    if removes:
                        catching_up = asyncio.create_task(self._catch_up(on_event))
                if message.event != pb.KEY_EVENT_HEARTBEAT:
                    try:
                        await on_event(KeyEvent(message.event), message.account, message.resource)
                    except (SealcombError, OSError, ValueError) as error:
                        # The watch goes on; what was to be removed is listed again at the next connection.
                        _log.warning(
                            "a key event was not carried out", account=message.account, exc_info=error
                        )
        finally:
            stream.cancel()
            if catching_up is not None:
                catching_up.cancel()

    async def _catch_up(self, on_event: OnKeyEvent) -> None:
        removed_up_to = 0
        while True:
            try:
                request = pb.ListDestroyedRequest(removed_up_to=removed_up_to)
                response = await self._stub.ListDestroyed(request, timeout=10.0)
                for destroyed in response.destroyed:
                    event = KeyEvent.RESOURCE_DESTROYED if destroyed.resource else KeyEvent.ACCOUNT_DESTROYED
                    await on_event(event, destroyed.account, destroyed.resource)
                    removed_up_to = destroyed.place
                if not response.destroyed:
                    return
            except Exception as error:  # noqa: BLE001  (the outermost loop of a worker)
                _log.warning("what was destroyed is not removed yet", exc_info=error)
                await asyncio.sleep(_CATCH_UP_S)

"""KeyReleaseService: what the other services ask of keyvault. Translates; decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from sealcomb.internal.v1 import keyvault_service_pb2 as pb
from sealcomb.internal.v1 import keyvault_service_pb2_grpc as stubs
from services.common.context import current_account, current_caller
from services.common.rpc.interceptor import peer_service
from services.keyvault.asker import Asker
from services.keyvault.events import HEARTBEAT_S, KeyChange, KeyEvent, KeyEvents
from services.keyvault.permits import Permits
from services.keyvault.receipts import Receipts
from services.keyvault.release_gate import ReleaseGate
from services.keyvault.releases import Releases
from services.keyvault.resealing import Resealing
from services.keyvault.reseals import Reseals
from services.keyvault.vault import Vault

_Context = grpc.aio.ServicerContext[Any, Any]

_EVENTS = {
    KeyChange.HEARTBEAT: pb.KEY_EVENT_HEARTBEAT,
    KeyChange.DISABLED: pb.KEY_EVENT_DISABLED,
    KeyChange.ENABLED: pb.KEY_EVENT_ENABLED,
    KeyChange.SUSPENDED: pb.KEY_EVENT_SUSPENDED,
    KeyChange.RESUMED: pb.KEY_EVENT_RESUMED,
    KeyChange.RESOURCE_DESTROYED: pb.KEY_EVENT_RESOURCE_DESTROYED,
    KeyChange.ACCOUNT_DESTROYED: pb.KEY_EVENT_ACCOUNT_DESTROYED,
    KeyChange.NEW_DATA_KEYS: pb.KEY_EVENT_NEW_DATA_KEYS,
}


class KeyReleaseServicer(stubs.KeyReleaseServiceServicer):
    """Serves data keys, account acts, permits and key events to the services."""

    def __init__(
        self,
        vault: Vault,
        gate: ReleaseGate,
        releases: Releases,
        permits: Permits,
        events: KeyEvents,
        receipts: Receipts,
        resealing: Resealing,
        reseals: Reseals,
    ) -> None:
        self._vault = vault
        self._gate = gate
        self._releases = releases
        self._permits = permits
        self._events = events
        self._receipts = receipts
        self._resealing = resealing
        self._reseals = reseals

    async def GetDataKey(self, request: pb.GetDataKeyRequest, context: _Context) -> pb.GetDataKeyResponse:
        """Releases a data key."""
        key = await self._gate.release(asker_of(context), request.resource, request.purpose, request.key_id)
        return pb.GetDataKeyResponse(key_id=key.id, secret=key.secret)

    async def DestroyResource(
        self, request: pb.DestroyResourceRequest, context: _Context
    ) -> pb.DestroyResourceResponse:
        """Destroys a resource's data keys."""
        await self._releases.destroy(asker_of(context), request.resource)
        receipt = await self._receipts.of(current_account(), request.resource)
        return pb.DestroyResourceResponse(receipt=receipt)

    async def ProvisionAccount(
        self, request: pb.ProvisionAccountRequest, context: _Context
    ) -> pb.ProvisionAccountResponse:
        """Makes the account's key."""
        await self._vault.provision(asker_of(context))
        return pb.ProvisionAccountResponse()

    async def SetAccountSuspended(
        self, request: pb.SetAccountSuspendedRequest, context: _Context
    ) -> pb.SetAccountSuspendedResponse:
        """Suspends or resumes the account's releases."""
        await self._vault.set_suspended(asker_of(context), request.suspended)
        return pb.SetAccountSuspendedResponse()

    async def DestroyAccount(
        self, request: pb.DestroyAccountRequest, context: _Context
    ) -> pb.DestroyAccountResponse:
        """Destroys the account's keys."""
        await self._vault.destroy(asker_of(context))
        return pb.DestroyAccountResponse(receipt=await self._receipts.of(current_account()))

    async def IssuePermit(self, request: pb.IssuePermitRequest, context: _Context) -> pb.IssuePermitResponse:
        """Exchanges the call's context for a permit."""
        issued = await self._permits.issue(
            asker_of(context),
            request.job_id,
            request.ttl_s,
            collection_id=request.collection_id,
            standing=request.standing,
        )
        return pb.IssuePermitResponse(permit=issued.permit, grant=issued.grant)

    async def RenewPermit(self, request: pb.RenewPermitRequest, context: _Context) -> pb.RenewPermitResponse:
        """Exchanges a grant for a permit."""
        permit = await self._permits.renew(peer_service(context), request.grant, request.ttl_s)
        return pb.RenewPermitResponse(permit=permit)

    async def EndPermit(self, request: pb.EndPermitRequest, context: _Context) -> pb.EndPermitResponse:
        """Ends a job's permit."""
        await self._permits.end(asker_of(context), request.job_id)
        return pb.EndPermitResponse()

    async def RecordEvent(self, request: pb.RecordEventRequest, context: _Context) -> pb.RecordEventResponse:
        """Records an administrative act."""
        await self._vault.record(asker_of(context), request.action, request.resource)
        return pb.RecordEventResponse()

    async def ReportDataKeys(
        self, request: pb.ReportDataKeysRequest, context: _Context
    ) -> pb.ReportDataKeysResponse:
        """Destroys replaced data keys that their service no longer needs."""
        aged = await self._resealing.report(
            asker_of(context), request.resource, request.purpose, request.key_ids_in_use, request.looked_us
        )
        return pb.ReportDataKeysResponse(aged_data_keys=aged.left, destroyable_us=aged.destroyable_us)

    async def ListReseals(self, request: pb.ListResealsRequest, context: _Context) -> pb.ListResealsResponse:
        """Hands out what a service is to seal anew."""
        due = await self._reseals.due(peer_service(context))
        return pb.ListResealsResponse(
            reseals=[pb.Reseal(account=d.account, permit=d.permit, resources=d.resources) for d in due]
        )

    async def ListDestroyed(
        self, request: pb.ListDestroyedRequest, context: _Context
    ) -> pb.ListDestroyedResponse:
        """Lists what a service may have missed."""
        listed = await self._receipts.destroyed(peer_service(context), request.removed_up_to)
        return pb.ListDestroyedResponse(
            destroyed=[pb.Destroyed(place=p, account=account, resource=r) for p, account, r in listed]
        )

    async def WatchKeyEvents(
        self, request: pb.WatchKeyEventsRequest, context: _Context
    ) -> AsyncIterator[pb.WatchKeyEventsResponse]:
        """Streams key events, heartbeats between; ends where the watcher fell behind."""
        with self._events.watch() as watcher:
            event: KeyEvent | None = KeyEvent(KeyChange.HEARTBEAT)
            while event is not None:
                yield pb.WatchKeyEventsResponse(
                    event=_EVENTS[event.change], account=event.account, resource=event.resource
                )
                event = await watcher.next(HEARTBEAT_S)


def asker_of(context: _Context) -> Asker:
    """Who asks; ContextRefused without an account."""
    current_account()
    return Asker(peer_service(context), current_caller().context)

"""KeyService and AuditService: what an account may see and do of its own key. Translates; decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from sealcomb.v1 import audit_service_pb2, audit_service_pb2_grpc, key_service_pb2, key_service_pb2_grpc
from services.common.context import current_account, current_caller
from services.common.errors import invalid
from services.common.rpc.interceptor import peer_service
from services.keyvault.asker import Asker
from services.keyvault.audit import AuditRecord
from services.keyvault.chain import AuditChain
from services.keyvault.checkpoints import Checkpoints
from services.keyvault.deletions import Deletions
from services.keyvault.kms.protocol import KeyReference
from services.keyvault.moves import Moves
from services.keyvault.receipts import Receipts
from services.keyvault.records import AccountRecord, KeyState
from services.keyvault.release_servicer import asker_of
from services.keyvault.resealing import Resealing
from services.keyvault.vault import Vault

# ARNs have at most 200, transit's names and PKCS#11's labels some hundred.
_KEY_NAME_CHARS_MAX = 512
_Context = grpc.aio.ServicerContext[Any, Any]

_STATES = {
    KeyState.ENABLED: key_service_pb2.KEY_STATE_ENABLED,
    KeyState.DISABLED: key_service_pb2.KEY_STATE_DISABLED,
    KeyState.PENDING_DELETION: key_service_pb2.KEY_STATE_PENDING_DELETION,
}


class KeyServicer(key_service_pb2_grpc.KeyServiceServicer):
    """The account's own KMS key."""

    def __init__(
        self, vault: Vault, moves: Moves, deletions: Deletions, receipts: Receipts, resealing: Resealing
    ) -> None:
        self._vault = vault
        self._moves = moves
        self._deletions = deletions
        self._receipts = receipts
        self._resealing = resealing

    async def GetKey(
        self, request: key_service_pb2.GetKeyRequest, context: _Context
    ) -> key_service_pb2.GetKeyResponse:
        """Describes the key."""
        account = await self._vault.describe(asker_of(context))
        return key_service_pb2.GetKeyResponse(key=await self._described(account))

    async def RotateKey(
        self, request: key_service_pb2.RotateKeyRequest, context: _Context
    ) -> key_service_pb2.RotateKeyResponse:
        """Makes a new version."""
        if request.new_data_keys:
            await self._resealing.new_data_keys(asker_of(context))
        account = await self._moves.rotate(asker_of(context))
        return key_service_pb2.RotateKeyResponse(key=await self._described(account))

    async def BindKey(
        self, request: key_service_pb2.BindKeyRequest, context: _Context
    ) -> key_service_pb2.BindKeyResponse:
        """Moves the account to a key that it brings, or back."""
        provider, reference = _wanted(request)
        if reference is not None and not 1 <= len(reference.key) <= _KEY_NAME_CHARS_MAX:
            raise invalid("key", f"must be named by 1 to {_KEY_NAME_CHARS_MAX} characters")
        account = await self._moves.bind(asker_of(context), provider, reference)
        return key_service_pb2.BindKeyResponse(key=await self._described(account))

    async def DisableKey(
        self, request: key_service_pb2.DisableKeyRequest, context: _Context
    ) -> key_service_pb2.DisableKeyResponse:
        """Turns the account's data off."""
        account = await self._vault.disable(asker_of(context))
        return key_service_pb2.DisableKeyResponse(key=await self._described(account))

    async def EnableKey(
        self, request: key_service_pb2.EnableKeyRequest, context: _Context
    ) -> key_service_pb2.EnableKeyResponse:
        """Turns the account's data on."""
        account = await self._vault.enable(asker_of(context))
        return key_service_pb2.EnableKeyResponse(key=await self._described(account))

    async def ScheduleKeyDeletion(
        self, request: key_service_pb2.ScheduleKeyDeletionRequest, context: _Context
    ) -> key_service_pb2.ScheduleKeyDeletionResponse:
        """Destroys the key later, or at once."""
        if request.confirm:
            if request.wait_days:
                raise invalid("wait_days", "must not be set together with confirm")
            await self._deletions.destroy_now(asker_of(context), request.confirm)
            receipt = await self._receipts.of(current_account())
            return key_service_pb2.ScheduleKeyDeletionResponse(receipt=receipt)
        account = await self._deletions.schedule(asker_of(context), request.wait_days)
        return key_service_pb2.ScheduleKeyDeletionResponse(key=await self._described(account))

    async def CancelKeyDeletion(
        self, request: key_service_pb2.CancelKeyDeletionRequest, context: _Context
    ) -> key_service_pb2.CancelKeyDeletionResponse:
        """Calls a scheduled deletion off."""
        account = await self._deletions.cancel(asker_of(context))
        return key_service_pb2.CancelKeyDeletionResponse(key=await self._described(account))

    async def _described(self, account: AccountRecord) -> key_service_pb2.Key:
        key = self._key(account)
        key.aged_data_keys = await self._resealing.count_aged(account.id)
        due_us = await self._deletions.due_us(account.id)
        if due_us:
            key.deletion_time.CopyFrom(_timestamp(due_us))
        brought = await self._vault.adopted_key(account)
        if brought is not None:
            key.adopted_key = brought.key
        move = await self._moves.progress(account.id)
        if move is not None:
            key.move.CopyFrom(
                key_service_pb2.KeyMove(
                    version=move.version,
                    provider=move.provider,
                    start_time=_timestamp(move.start_us),
                    rewrapped_data_keys=move.rewrapped,
                    data_keys=move.data_keys,
                )
            )
        return key

    def _key(self, account: AccountRecord) -> key_service_pb2.Key:
        key = key_service_pb2.Key(
            state=_STATES[account.state],
            version=account.version,
            provider=account.provider,
            create_time=_timestamp(account.create_us),
            data_keys=account.data_keys,
        )
        if account.rotate_us:
            key.rotate_time.CopyFrom(_timestamp(account.rotate_us))
        return key


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """The account's own audit chain; any account's for an operator."""

    def __init__(self, chain: AuditChain, checkpoints: Checkpoints) -> None:
        self._chain = chain
        self._checkpoints = checkpoints

    async def ListEvents(
        self, request: audit_service_pb2.ListEventsRequest, context: _Context
    ) -> audit_service_pb2.ListEventsResponse:
        """Lists records, oldest first."""
        records, token = await self._chain.page(current_account(), request.page_size, request.page_token)
        return audit_service_pb2.ListEventsResponse(
            events=[_event(record) for record in records], next_page_token=token
        )

    async def ExportEvents(
        self, request: audit_service_pb2.ExportEventsRequest, context: _Context
    ) -> AsyncIterator[audit_service_pb2.ExportEventsResponse]:
        """Streams the chain as lines."""
        async for line in self._checkpoints.export(current_account()):
            yield audit_service_pb2.ExportEventsResponse(line=line)

    async def GetCheckpoint(
        self, request: audit_service_pb2.GetCheckpointRequest, context: _Context
    ) -> audit_service_pb2.GetCheckpointResponse:
        """Signs how far the chain goes."""
        checkpoint = await self._checkpoints.of(current_account())
        return audit_service_pb2.GetCheckpointResponse(
            checkpoint=checkpoint, public_key=self._checkpoints.public_pem
        )

    async def ExportAccountEvents(
        self, request: audit_service_pb2.ExportAccountEventsRequest, context: _Context
    ) -> AsyncIterator[audit_service_pb2.ExportAccountEventsResponse]:
        """Streams the chain of the account that an operator names."""
        # The method is in the context, and the edge signs it for operator tokens alone.
        operator = Asker(peer_service(context), current_caller().context)
        async for line in self._checkpoints.export_any(operator, request.account_id):
            yield audit_service_pb2.ExportAccountEventsResponse(line=line)


def _wanted(request: key_service_pb2.BindKeyRequest) -> tuple[str, KeyReference | None]:
    """The provider and the key in its words; no key: one of the installation's own."""
    match request.WhichOneof("key"):
        case "aws":
            return "aws", KeyReference(request.aws.arn, request.aws.role_arn)
        case "transit":
            return "transit", KeyReference(f"{request.transit.mount}/{request.transit.name}")
        case "pkcs11":
            return "pkcs11", KeyReference(request.pkcs11.label)
        case "installation":
            return "", None
        case _:
            raise invalid("key", "is missing")


def _event(record: AuditRecord) -> audit_service_pb2.AuditEvent:
    act = record.act
    return audit_service_pb2.AuditEvent(
        sequence=record.sequence,
        time=_timestamp(act.time_us),
        action=act.action,
        peer=act.peer,
        token_id=act.token_id,
        method=act.method,
        resource=act.resource,
        outcome=act.outcome,
        request_id=act.request_id,
        hash=record.hash,
    )


def _timestamp(micros: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(micros)
    return stamp

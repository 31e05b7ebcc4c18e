"""Tokens, keys, the audit log, and (with an operator token) accounts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from sealcomb.v1 import (
    account_service_pb2 as accounts_pb,
)
from sealcomb.v1 import (
    account_service_pb2_grpc,
    audit_service_pb2_grpc,
    key_service_pb2_grpc,
    token_service_pb2_grpc,
)
from sealcomb.v1 import (
    audit_service_pb2 as audit_pb,
)
from sealcomb.v1 import (
    key_service_pb2 as keys_pb,
)
from sealcomb.v1 import (
    token_service_pb2 as tokens_pb,
)
from sealcomb_client.transport import Transport
from sealcomb_client.values import duration_of

_TIMEOUT_S = 30.0


class Tokens:
    """TokenService."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = token_service_pb2_grpc.TokenServiceStub(transport.channel)

    def create(
        self,
        label: str,
        scopes: Iterable[str],
        *,
        collections: Iterable[str] = (),
        ttl_s: float | None = None,
        idempotency_key: str = "",
        timeout_s: float = _TIMEOUT_S,
    ) -> tokens_pb.CreateTokenResponse:
        """A new token; its text is in the response and nowhere else."""
        request = tokens_pb.CreateTokenRequest(
            label=label,
            scopes=scopes,
            collections=collections,
            ttl=duration_of(ttl_s),
            idempotency_key=idempotency_key,
        )
        return self._transport.unary(self._stub.CreateToken, request, timeout_s=timeout_s, safe=False)

    def list(self, *, page_size: int = 0, timeout_s: float = _TIMEOUT_S) -> Iterator[tokens_pb.TokenInfo]:
        """All tokens, ended ones included, page by page."""
        request = tokens_pb.ListTokensRequest(page_size=page_size)
        while True:
            response = self._transport.unary(self._stub.ListTokens, request, timeout_s=timeout_s)
            yield from response.tokens
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def rotate(
        self,
        id: str,  # noqa: A002  (the API's own word)
        *,
        overlap_s: float | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> tokens_pb.RotateTokenResponse:
        """A successor; the old token works for `overlap_s` longer."""
        request = tokens_pb.RotateTokenRequest(id=id, overlap=duration_of(overlap_s))
        return self._transport.unary(self._stub.RotateToken, request, timeout_s=timeout_s, safe=False)

    def revoke(self, id: str, *, timeout_s: float = _TIMEOUT_S) -> None:  # noqa: A002
        """Ends a token at once."""
        self._transport.unary(
            self._stub.RevokeToken, tokens_pb.RevokeTokenRequest(id=id), timeout_s=timeout_s
        )

    def whoami(self, *, operator: bool = False, timeout_s: float = _TIMEOUT_S) -> tokens_pb.WhoAmIResponse:
        """Whose token this is."""
        return self._transport.unary(
            self._stub.WhoAmI, tokens_pb.WhoAmIRequest(), timeout_s=timeout_s, operator=operator
        )


class Keys:
    """KeyService: the account's own KMS key."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = key_service_pb2_grpc.KeyServiceStub(transport.channel)

    def get(self, *, timeout_s: float = _TIMEOUT_S) -> keys_pb.Key:
        """Describes the key."""
        return self._transport.unary(self._stub.GetKey, keys_pb.GetKeyRequest(), timeout_s=timeout_s).key

    def rotate(self, *, new_data_keys: bool = False, timeout_s: float = _TIMEOUT_S) -> keys_pb.Key:
        """Makes a new version and re-wraps every data key.

        With `new_data_keys` collections and documents get new ones; `collections.reseal` and
        `documents.reseal` then seal what is there under them.
        """
        request = keys_pb.RotateKeyRequest(new_data_keys=new_data_keys)
        return self._transport.unary(self._stub.RotateKey, request, timeout_s=timeout_s, safe=False).key

    def bind(
        self,
        key: keys_pb.AwsKey | keys_pb.TransitKey | keys_pb.Pkcs11Key | keys_pb.InstallationKey,
        *,
        timeout_s: float = _TIMEOUT_S,
    ) -> keys_pb.Key:
        """Moves the account to a key that it brings, or back to the installation's own KMS.

        `adopted_key` of the answer names it; while `move` is set instead, the move goes on (see `get`).
        """
        request = keys_pb.BindKeyRequest()
        match key:
            case keys_pb.AwsKey():
                request.aws.CopyFrom(key)
            case keys_pb.TransitKey():
                request.transit.CopyFrom(key)
            case keys_pb.Pkcs11Key():
                request.pkcs11.CopyFrom(key)
            case keys_pb.InstallationKey():
                request.installation.SetInParent()
        return self._transport.unary(self._stub.BindKey, request, timeout_s=timeout_s, safe=False).key

    def disable(self, *, timeout_s: float = _TIMEOUT_S) -> keys_pb.Key:
        """Turns the account's data off."""
        return self._transport.unary(
            self._stub.DisableKey, keys_pb.DisableKeyRequest(), timeout_s=timeout_s
        ).key

    def enable(self, *, timeout_s: float = _TIMEOUT_S) -> keys_pb.Key:
        """Turns the account's data on again."""
        return self._transport.unary(
            self._stub.EnableKey, keys_pb.EnableKeyRequest(), timeout_s=timeout_s
        ).key

    def schedule_deletion(self, *, wait_days: int = 0, timeout_s: float = _TIMEOUT_S) -> keys_pb.Key:
        """Turns the data off and destroys the key in 7 to 30 days; 0: in 30."""
        request = keys_pb.ScheduleKeyDeletionRequest(wait_days=wait_days)
        return self._transport.unary(
            self._stub.ScheduleKeyDeletion, request, timeout_s=timeout_s, safe=False
        ).key

    def destroy(self, *, confirm: str, timeout_s: float = _TIMEOUT_S) -> str:
        """Destroys the key at once, for good, and gives the receipt; `confirm` is the account's own id."""
        request = keys_pb.ScheduleKeyDeletionRequest(confirm=confirm)
        return self._transport.unary(
            self._stub.ScheduleKeyDeletion, request, timeout_s=timeout_s, safe=False
        ).receipt

    def cancel_deletion(self, *, timeout_s: float = _TIMEOUT_S) -> keys_pb.Key:
        """Calls a scheduled deletion off; the key is disabled after it."""
        request = keys_pb.CancelKeyDeletionRequest()
        return self._transport.unary(
            self._stub.CancelKeyDeletion, request, timeout_s=timeout_s, safe=False
        ).key


class AuditLog:
    """AuditService: the account's own chain of events."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = audit_service_pb2_grpc.AuditServiceStub(transport.channel)

    def list(self, *, page_size: int = 0, timeout_s: float = _TIMEOUT_S) -> Iterator[audit_pb.AuditEvent]:
        """All events, oldest first, page by page."""
        request = audit_pb.ListEventsRequest(page_size=page_size)
        while True:
            response = self._transport.unary(self._stub.ListEvents, request, timeout_s=timeout_s)
            yield from response.events
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def export(self, *, timeout_s: float = 60.0) -> Iterator[str]:
        """The chain as JSON lines, which `sealcomb_client.audit` verifies offline."""
        request = audit_pb.ExportEventsRequest()
        for part in self._transport.download(self._stub.ExportEvents, request, timeout_s=timeout_s):
            yield part.line

    def export_account(self, account_id: str, *, timeout_s: float = 60.0) -> Iterator[str]:
        """The chain of any account, deleted ones included; needs an operator token."""
        request = audit_pb.ExportAccountEventsRequest(account_id=account_id)
        method = self._stub.ExportAccountEvents
        for part in self._transport.download(method, request, timeout_s=timeout_s, operator=True):
            yield part.line

    def checkpoint(self, *, timeout_s: float = _TIMEOUT_S) -> audit_pb.GetCheckpointResponse:
        """A signed statement of how far the chain goes now, and the key that verifies it."""
        request = audit_pb.GetCheckpointRequest()
        return self._transport.unary(self._stub.GetCheckpoint, request, timeout_s=timeout_s)


class Accounts:
    """AccountService; needs an operator token for all but an account's own usage.

    Quotas are written `{"calls_per_day": 1000, "bytes_per_month": 10**9}`: of calls, points, documents
    and bytes, per day and per month; 0 removes one.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = account_service_pb2_grpc.AccountServiceStub(transport.channel)

    def create(
        self,
        name: str,
        *,
        calls_per_second: float | None = None,
        burst: int | None = None,
        calls_in_flight: int | None = None,
        quotas: Mapping[str, int] | None = None,
        idempotency_key: str = "",
        timeout_s: float = _TIMEOUT_S,
    ) -> accounts_pb.CreateAccountResponse:
        """A new account and its first admin token, which is shown only here."""
        request = accounts_pb.CreateAccountRequest(
            name=name,
            limits=_limits(calls_per_second, burst, calls_in_flight, quotas),
            idempotency_key=idempotency_key,
        )
        return self._transport.unary(
            self._stub.CreateAccount, request, timeout_s=timeout_s, safe=False, operator=True
        )

    def get(self, id: str, *, timeout_s: float = _TIMEOUT_S) -> accounts_pb.Account:  # noqa: A002
        """One account."""
        request = accounts_pb.GetAccountRequest(id=id)
        return self._transport.unary(
            self._stub.GetAccount, request, timeout_s=timeout_s, operator=True
        ).account

    def list(self, *, page_size: int = 0, timeout_s: float = _TIMEOUT_S) -> Iterator[accounts_pb.Account]:
        """All accounts in order of creation, page by page."""
        request = accounts_pb.ListAccountsRequest(page_size=page_size)
        while True:
            response = self._transport.unary(
                self._stub.ListAccounts, request, timeout_s=timeout_s, operator=True
            )
            yield from response.accounts
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def update(
        self,
        id: str,  # noqa: A002
        *,
        calls_per_second: float | None = None,
        burst: int | None = None,
        calls_in_flight: int | None = None,
        quotas: Mapping[str, int] | None = None,
        suspended: bool | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> accounts_pb.Account:
        """Changes limits, or suspends and resumes; what is None stays."""
        request = accounts_pb.UpdateAccountRequest(
            id=id, limits=_limits(calls_per_second, burst, calls_in_flight, quotas), suspended=suspended
        )
        return self._transport.unary(
            self._stub.UpdateAccount, request, timeout_s=timeout_s, operator=True
        ).account

    def delete(self, id: str, *, confirm: str, timeout_s: float = _TIMEOUT_S) -> str:  # noqa: A002
        """Destroys an account's keys and data, for good, and gives the receipt; `confirm` repeats the id."""
        request = accounts_pb.DeleteAccountRequest(id=id, confirm=confirm)
        return self._transport.unary(
            self._stub.DeleteAccount, request, timeout_s=timeout_s, safe=False, operator=True
        ).receipt

    def usage(
        self,
        id: str = "",  # noqa: A002
        *,
        days: int = 0,
        timeout_s: float = _TIMEOUT_S,
    ) -> accounts_pb.GetUsageResponse:
        """What an account used by the day, 30 days back if not said; the caller's own without an id."""
        request = accounts_pb.GetUsageRequest(id=id, days=days)
        return self._transport.unary(self._stub.GetUsage, request, timeout_s=timeout_s, operator=bool(id))


def _limits(
    calls_per_second: float | None,
    burst: int | None,
    calls_in_flight: int | None,
    quotas: Mapping[str, int] | None,
) -> accounts_pb.Limits | None:
    if calls_per_second is None and burst is None and calls_in_flight is None and not quotas:
        return None
    limits = accounts_pb.Limits(
        calls_per_second=calls_per_second, burst=burst, calls_in_flight=calls_in_flight
    )
    for name, value in (quotas or {}).items():
        what, _, period = name.partition("_per_")
        if period not in ("day", "month") or what not in accounts_pb.Quota.DESCRIPTOR.fields_by_name:
            raise ValueError(f"there is no quota named {name}")
        setattr(limits.per_day if period == "day" else limits.per_month, what, value)
    return limits

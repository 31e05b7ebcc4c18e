"""AWS KMS as keyvault calls it: bounded, off the event loop, its answers checked, its errors named.

Every call names the key by its ARN and every answer must name the same one, so that no blob and no
alias ever chooses a key. Credentials are found as AWS's SDK finds them (a web identity, an
instance's role, a profile), never by a setting of ours; for an adopted key a role is assumed
with the account's id as external id, so that its owner decides which account may use it.
boto3 repeats nothing here: whoever calls this decides that.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from services.common.clock import Clock
from services.common.sealing import OpenFailed
from services.keyvault.kms.faults import (
    KmsAccessDenied,
    KmsKeyDisabled,
    KmsKeyInvalid,
    KmsThrottled,
    KmsUnavailable,
)

_THREADS = 16
_ROLES_MAX = 256
_ROLE_LIFE_S = 900
_ROLE_MARGIN_S = 120
_ARN = re.compile(
    r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):(?P<account>\d{12}):key/(mrk-)?[0-9a-f-]{32,36}"
)
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]{1,512}")
_DISABLED = frozenset({"DisabledException", "KMSInvalidStateException"})
_NOT_THERE = frozenset(
    {"NotFoundException", "InvalidArnException", "InvalidKeyUsageException", "UnsupportedOperationException"}
)
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "UnrecognizedClientException",
    }
)
_THROTTLED = frozenset(
    {"LimitExceededException", "RequestLimitExceeded", "Throttling", "ThrottlingException"}
)
_NOT_OPENED = frozenset({"InvalidCiphertextException", "IncorrectKeyException"})


@dataclass(frozen=True, slots=True)
class _Role:
    client: Any
    until_s: float


class AwsClient:
    """KMS in one region, for keys of our own AWS account and for adopted ones."""

    def __init__(
        self,
        region: str,
        account_id: str,
        clock: Clock,
        *,
        endpoint_url: str = "",
        ca_file: Path | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self.region = region
        self.account_id = account_id
        self._clock = clock
        self._endpoint_url = endpoint_url or None
        self._verify: str | bool = True if ca_file is None else str(ca_file)
        self._config = Config(
            region_name=region,
            # Room for another try within the whole call's time.
            connect_timeout=timeout_s / 3,
            read_timeout=timeout_s / 2,
            retries={"total_max_attempts": 1},
            max_pool_connections=_THREADS,
            proxies={},
        )
        self._session = boto3.Session(region_name=region)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="aws-kms")
        self._lock = Lock()
        self._own: Any = None
        self._roles: OrderedDict[tuple[str, str], _Role] = OrderedDict()

    def check_own(self, arn: str) -> None:
        """Raises KmsKeyInvalid unless the ARN is a key of our own AWS account and region."""
        if self._place(arn)["account"] != self.account_id:
            raise KmsKeyInvalid("the key is not in keyvault's own AWS account")

    def check_adopted(self, arn: str, role: str) -> None:
        """Raises KmsKeyInvalid unless it is a key's ARN in our region with a role to use it in."""
        self._place(arn)
        if not _ROLE.fullmatch(role):
            raise KmsKeyInvalid("the role is not the ARN of an IAM role")

    async def call(
        self, operation: str, arn: str, *, role: str = "", account: str = "", **values: Any
    ) -> Any:
        """One call on a key. Raises the errors of `faults`, or OpenFailed."""
        answer = await self._run(partial(self._call, operation, role, account, {"KeyId": arn, **values}))
        if operation in {"encrypt", "decrypt"} and answer.get("KeyId") != arn:
            raise OpenFailed
        return answer

    async def create_key(self, **values: Any) -> str:
        """Makes a key of our own; its ARN."""
        answer = await self._run(partial(self._call, "create_key", "", "", values))
        arn = str(answer["KeyMetadata"]["Arn"])
        self.check_own(arn)
        return arn

    async def close(self) -> None:
        """Ends the threads, without waiting for a KMS that keeps silent."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _place(self, arn: str) -> re.Match[str]:
        found = _ARN.fullmatch(arn)
        if found is None:
            raise KmsKeyInvalid("the key is not named by the ARN of a KMS key; aliases are not taken")
        if found["region"] != self.region:
            raise KmsKeyInvalid("the key is in another AWS region than keyvault's")
        return found

    async def _run(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # What follows runs in a thread.

    def _call(self, operation: str, role: str, account: str, values: dict[str, Any]) -> Any:
        try:
            client = self._acting(role, account) if role else self._as_ourselves()
            return getattr(client, operation)(**values)
        except ClientError as error:
            raise _fault(error) from None
        except (NoCredentialsError, PartialCredentialsError):
            raise KmsAccessDenied("keyvault has no AWS credentials") from None
        except BotoCoreError as error:
            unheard = type(error).__name__ in {"EndpointConnectionError", "ConnectTimeoutError", "SSLError"}
            raise KmsUnavailable(unheard=unheard) from None

    def _as_ourselves(self) -> Any:
        with self._lock:
            if self._own is None:
                self._own = self._client("kms", self._session)
            return self._own

    def _acting(self, role: str, account: str) -> Any:
        now_s = self._clock.monotonic_s()
        with self._lock:
            held = self._roles.get((role, account))
            if held is not None and now_s < held.until_s:
                self._roles.move_to_end((role, account))
                return held.client
        answer = self._client("sts", self._session).assume_role(
            RoleArn=role, RoleSessionName="sealcomb", ExternalId=account, DurationSeconds=_ROLE_LIFE_S
        )
        given = answer["Credentials"]
        session = boto3.Session(
            given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], region_name=self.region
        )
        client = self._client("kms", session)
        with self._lock:
            self._roles[role, account] = _Role(client, now_s + _ROLE_LIFE_S - _ROLE_MARGIN_S)
            if len(self._roles) > _ROLES_MAX:
                self._roles.popitem(last=False)
        return client

    def _client(self, service: str, session: Any) -> Any:
        return session.client(
            service, endpoint_url=self._endpoint_url, verify=self._verify, config=self._config
        )


def _fault(error: ClientError) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _NOT_OPENED:
        return OpenFailed()
    if code in _DISABLED:
        return KmsKeyDisabled()
    if code in _NOT_THERE:
        return KmsKeyInvalid()
    if code in _DENIED:
        return KmsAccessDenied()
    if code in _THROTTLED:
        return KmsThrottled()
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # What AWS adds one day is a refusal like any other unless it is the server's own fault.
    return KmsUnavailable() if status >= 500 else KmsKeyInvalid("the KMS refused the call")

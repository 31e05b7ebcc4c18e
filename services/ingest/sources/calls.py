"""Calls of one source's API: authorised, patient within limits, and with the contract's errors.

One request at a time for each source, as vendors ask for. A refused call is tried again only when the same
call may work: after a 401 with a fresh token, once; after a limit or a failure of the server, as
often as RetryLimits says. Never puts a path, a body or a token into an error.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import email.utils
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import quote, urlencode

from services.common.clock import Clock, SystemClock
from services.common.errors import SealcombError
from services.ingest.egress.client import Answer, Egress
from services.ingest.egress.refusals import AnswerTooLarge, EgressUnavailable
from services.ingest.sources.contract import (
    Credential,
    CredentialRefused,
    ItemGone,
    ItemTooLarge,
    SourceAnswerInvalid,
    SourceDenied,
    SourceLimited,
    SourceUnavailable,
)

_RANDOM = secrets.SystemRandom()
_BEARER = re.compile(r"[A-Za-z0-9._~+/=:|-]{1,4096}")
_WAIT_S_MAX = 24 * 3600.0
_LISTING_BYTES_MAX = 32 * 1024 * 1024

# From method, address, headers, body and token to the Authorization header and others beside it.
Authorize: TypeAlias = Callable[[str, str, Mapping[str, str], bytes, str], tuple[str, Mapping[str, str]]]
# What a source's answer means, where its status alone does not say it. None: the status says it.
Explain: TypeAlias = Callable[[Answer], SealcombError | None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Clock, sleep and chance, as injected."""

    clock: Clock = field(default_factory=SystemClock)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = _RANDOM.random


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """How patient one call is. A longer wait than `wait_s_max` is the job's business, not the call's."""

    attempts_max: int = 5
    backoff_s: float = 0.5
    wait_s_max: float = 30.0
    waited_s_max: float = 90.0


def bearer(
    _method: str, _url: str, _headers: Mapping[str, str], _content: bytes, token: str
) -> tuple[str, Mapping[str, str]]:
    """RFC 6750. CredentialRefused when the token holds what tokens do not."""
    if not _BEARER.fullmatch(token):
        raise CredentialRefused("the token holds characters that tokens do not")
    return f"Bearer {token}", {}


def basic(
    _method: str, _url: str, _headers: Mapping[str, str], _content: bytes, token: str
) -> tuple[str, Mapping[str, str]]:
    """RFC 7617, from `user:password`."""
    if ":" not in token:
        raise CredentialRefused("the credential is written USER:PASSWORD")
    return "Basic " + base64.b64encode(token.encode()).decode(), {}


class Calls:
    """The API of one source for one job."""

    def __init__(
        self,
        egress: Egress,
        *,
        name: str,
        hosts: tuple[str, ...] = (),
        credential: Credential | None = None,
        authorize: Authorize = bearer,
        headers: Mapping[str, str] | None = None,
        explain: Explain | None = None,
        timing: Timing | None = None,
        limits: RetryLimits | None = None,
    ) -> None:
        self._egress = egress
        self._name = name
        self._hosts = hosts
        self._credential = credential
        self._authorize = authorize
        self._headers = dict(headers or {})
        self._explain = explain
        self._timing = timing or Timing()
        self._limits = limits or RetryLimits()

    async def send(
        self,
        url: str,
        *,
        method: str = "GET",
        parameters: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        size_bytes_max: int = _LISTING_BYTES_MAX,
    ) -> Answer:
        """The answer of a call that worked (2xx). Raises the contract's errors otherwise."""
        if parameters:
            url += ("&" if "?" in url else "?") + urlencode(parameters, quote_via=quote)
        refused = False
        waited_s = 0.0
        failures = 0
        while True:
            found = await self._once(
                method, url, {**self._headers, **(headers or {})}, content, size_bytes_max, refused
            )
            if isinstance(found, Answer):
                return found
            if isinstance(found, CredentialRefused) and self._credential is not None and not refused:
                refused = True
                continue
            if not isinstance(found, SourceLimited | SourceUnavailable):
                raise found
            failures += 1
            wait_s = self._wait_s(found, failures)
            limits = self._limits
            if (
                failures >= limits.attempts_max
                or wait_s > limits.wait_s_max
                or waited_s + wait_s > limits.waited_s_max
            ):
                raise found
            await self._timing.sleep(wait_s)
            waited_s += wait_s

    async def post_json(self, url: str, body: Mapping[str, object]) -> Answer:
        """`send` of a JSON body."""
        return await self.send(
            url,
            method="POST",
            headers={"content-type": "application/json"},
            content=json.dumps(body).encode(),
        )

    async def download(
        self,
        url: str,
        *,
        parameters: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """An item's content. ItemTooLarge past the egress client's limit."""
        try:
            return await self.send(
                url, parameters=parameters, headers=headers, size_bytes_max=self._egress.limits.body_bytes_max
            )
        except SourceAnswerInvalid as error:
            if isinstance(error.__cause__, AnswerTooLarge):
                raise ItemTooLarge("the item is larger than the limit") from None
            raise

    async def _once(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes, size_max: int, refused: bool
    ) -> Answer | SealcombError:
        authorization = ""
        if self._credential is not None:
            token = await self._credential.token(refused=refused)
            authorization, extra = self._authorize(method, url, headers, content, token)
            headers = {**headers, **extra}
        try:
            answer = await self._egress.send(
                method,
                url,
                headers=headers,
                content=content,
                authorization=authorization,
                authorized_hosts=self._hosts,
                body_bytes_max=size_max,
            )
        except EgressUnavailable:
            return SourceUnavailable(f"{self._name} was not reached, or broke off its answer")
        except AnswerTooLarge as error:
            raise SourceAnswerInvalid(f"{self._name} answered more than the limit") from error
        explained = self._explain(answer) if self._explain is not None else None
        if explained is not None:
            if explained.retry_after_s is None:
                explained.retry_after_s = retry_after_s(answer, self._timing.clock)
            return explained
        if 200 <= answer.status < 300:
            return answer
        return _error_of(answer, self._name, self._timing.clock)

    def _wait_s(self, error: SealcombError, failures: int) -> float:
        if error.retry_after_s is not None:
            return error.retry_after_s
        # Full jitter would let two retries follow at once; half keeps a floor.
        return float(self._limits.backoff_s * 2 ** (failures - 1) * (0.5 + self._timing.random() / 2))


def retry_after_s(answer: Answer, clock: Clock) -> float | None:
    """When the source says to come back, by Retry-After (RFC 9110) or the X-RateLimit headers; or None."""
    text = answer.headers.get("retry-after", "").strip()
    if text:
        if text.isdecimal() and len(text) < 10:
            return min(float(text), _WAIT_S_MAX)
        try:
            when = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=datetime.UTC)
        return min(max(when.timestamp() - clock.now_s(), 0.0), _WAIT_S_MAX)
    reset = answer.headers.get("x-ratelimit-reset", "")
    if answer.headers.get("x-ratelimit-remaining") == "0" and reset.isdecimal() and len(reset) < 12:
        return min(max(float(reset) - clock.now_s(), 0.0) + 1.0, _WAIT_S_MAX)
    return None


def _error_of(answer: Answer, name: str, clock: Clock) -> SealcombError:
    status = answer.status
    after_s = retry_after_s(answer, clock)
    if status == 401:
        return CredentialRefused(f"{name} does not accept the credential; connect again or send a new token")
    if status == 429 or (status == 403 and after_s is not None):
        return SourceLimited(f"{name} asks to come back later", retry_after_s=after_s)
    if status == 403:
        return SourceDenied(f"{name} does not allow this with the credential")
    if status in (404, 410):
        return ItemGone(f"{name} has no such item, or hides it from the credential")
    if status in (408, 425) or status >= 500:
        return SourceUnavailable(f"{name} failed with status {status}", retry_after_s=after_s)
    return SourceAnswerInvalid(f"{name} refused the request with status {status}")

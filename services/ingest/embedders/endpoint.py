"""A model behind an OpenAI-compatible endpoint: POST {base}/embeddings with {model, input}.

What a caller sent leaves the installation here, so the operator must have chosen it: the address
is a setting, TLS is verified, redirects are not followed, and neither proxies nor credentials are
taken from the environment. The answer is the endpoint's word and trusted with nothing: its size,
count, order, dimension and values are all checked.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import secrets
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import numpy.typing as npt

from services.common.clock import Clock
from services.common.errors import FailedPrecondition, Unavailable, invalid

TEXT_CHARS_MAX = 100_000
_BYTES_PER_TOKEN = 3
_ANSWER_BYTES_PER_NUMBER = 64
_ANSWER_BYTES_EXTRA = 1 << 16
_DIMENSION_MAX = 8192
_BACKOFF_S = 0.25
_RANDOM = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where the endpoint is and how far to go for it."""

    base_url: str
    model: str
    api_key_file: Path | None = None
    ca_file: Path | None = None
    max_tokens: int = 256
    texts_per_call_max: int = 32
    attempts_max: int = 3
    connect_timeout_s: float = 3.0
    call_timeout_s: float = 30.0

    @classmethod
    def parse(
        cls, spec: str, *, api_key_file: Path | None = None, ca_file: Path | None = None
    ) -> EndpointSettings:
        """From `https://HOST/v1#MODEL`. ValueError when it is not of that form."""
        parts = urlsplit(spec)
        if not parts.hostname or not parts.fragment or parts.query or parts.username:
            raise ValueError("an embedding endpoint is written https://HOST/v1#MODEL")
        if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
            raise ValueError("an embedding endpoint on another machine must be https")
        base_url = parts._replace(fragment="").geturl().rstrip("/")
        return cls(base_url, parts.fragment, api_key_file=api_key_file, ca_file=ca_file)


class HttpEmbedder:
    """Embeds by an endpoint. See Embedder for the contract.

    Its tokenizer is not known here, so `count_tokens` is an estimate, one for every three bytes,
    which is more than common tokenizers need for prose. The fingerprint covers address, model and
    dimension: whether the weights behind them changed, only the operator can know.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        clock: Clock,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = _RANDOM.random,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Asks the endpoint for one vector to learn its dimension; raises as `embed` does."""
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._client = _open_client(settings, transport)
        self._dimension: int | None = None
        self.name = settings.model
        self.max_tokens = settings.max_tokens
        try:
            self.dimension = int(self._call(["dimension"]).shape[1])
        except BaseException:
            self._client.close()
            raise
        self._dimension = self.dimension
        basis = json.dumps([settings.base_url, settings.model, self.dimension])
        self.fingerprint = hashlib.sha256(basis.encode()).hexdigest()

    def count_tokens(self, text: str) -> int:
        """An estimate from above for prose: the endpoint's tokenizer is not known."""
        return -(-len(text.encode()) // _BYTES_PER_TOKEN) + 2

    def token_starts(self, text: str) -> None:
        """Nobody can say: the endpoint's tokenizer is not known."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [len(texts), dimension], every row of unit length."""
        if any(len(text) > TEXT_CHARS_MAX for text in texts):
            raise invalid("text", f"is longer than {TEXT_CHARS_MAX} characters; split it")
        step = self._settings.texts_per_call_max
        parts = [self._call(texts[at : at + step]) for at in range(0, len(texts), step)]
        return np.concatenate(parts) if parts else np.empty((0, self.dimension), dtype=np.float32)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _call(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One request, repeated while the endpoint is busy or away and the time is not up."""
        deadline_s = self._clock.monotonic_s() + self._settings.call_timeout_s
        for attempt in range(1, self._settings.attempts_max + 1):
            try:
                return _vectors(self._post(texts, deadline_s), len(texts), self._dimension)
            except Unavailable as error:
                pause_s = max(
                    error.retry_after_s or 0.0, _BACKOFF_S * 2**attempt * (0.5 + self._jitter() / 2)
                )
                late = self._clock.monotonic_s() + pause_s >= deadline_s
                if late or attempt == self._settings.attempts_max:
                    raise
            self._sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _post(self, texts: Sequence[str], deadline_s: float) -> bytes:
        body = {"model": self._settings.model, "input": list(texts), "encoding_format": "float"}
        left_s = max(deadline_s - self._clock.monotonic_s(), 0.001)
        timeout = httpx.Timeout(left_s, connect=min(left_s, self._settings.connect_timeout_s))
        size_max = (
            len(texts) * (self._dimension or _DIMENSION_MAX) * _ANSWER_BYTES_PER_NUMBER + _ANSWER_BYTES_EXTRA
        )
        answer = bytearray()
        try:
            with self._client.stream("POST", "embeddings", json=body, timeout=timeout) as response:
                _refuse_status(response)
                for piece in response.iter_bytes():
                    answer += piece
                    if len(answer) > size_max:
                        raise _mismatch("an answer that is too long")
                    # The client's timeout is per read; a slow drip must end as well.
                    if self._clock.monotonic_s() > deadline_s:
                        raise _away()
        except (httpx.HTTPError, ssl.SSLError) as error:
            # The cause is cut off: its text may carry the address with what an operator put in it.
            raise _away() from _bare(error)
        return bytes(answer)


def _open_client(settings: EndpointSettings, transport: httpx.BaseTransport | None) -> httpx.Client:
    # No compression: a small answer must not unfold into a large one.
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    if settings.api_key_file is not None:
        key = settings.api_key_file.read_text(encoding="ascii").strip()
        headers["authorization"] = f"Bearer {key}"
    context = ssl.create_default_context(cafile=settings.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return httpx.Client(
        base_url=settings.base_url + "/",
        headers=headers,
        verify=context,
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=8, max_keepalive_connections=8),
    )


def _refuse_status(response: httpx.Response) -> None:
    if response.status_code == httpx.codes.OK:
        if "content-encoding" in response.headers:
            raise _mismatch("a compressed answer")
        return
    if response.status_code in (408, 429) or response.status_code >= 500:
        raise _away(_retry_after_s(response))
    raise _mismatch(f"status {response.status_code}")


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None


def _vectors(answer: bytes, count: int, dimension: int | None) -> npt.NDArray[np.float32]:
    """The rows in the order asked for, of unit length; FailedPrecondition if anything is amiss."""
    try:
        entries: Any = json.loads(answer)["data"]
        by_index = {entry["index"]: entry["embedding"] for entry in entries}
        if len(entries) != count or by_index.keys() != set(range(count)):
            raise _mismatch("another number of vectors than asked for")
        rows = np.array([by_index[index] for index in range(count)], dtype=np.float64)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise _mismatch("no list of vectors") from _bare(error)
    if rows.ndim != 2 or not 1 <= rows.shape[1] <= _DIMENSION_MAX:
        raise _mismatch("no list of vectors")
    if dimension is not None and rows.shape[1] != dimension:
        raise _mismatch("vectors of another dimension than before")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise _mismatch("vectors that are not finite or are zero")
    return np.asarray(rows / lengths, dtype=np.float32)


def _away(retry_after_s: float | None = None) -> Unavailable:
    return Unavailable(
        "the embedding endpoint does not answer; try again later",
        reason="EMBEDDER_UNAVAILABLE",
        retry_after_s=retry_after_s,
    )


def _mismatch(what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the embedding endpoint gave {what}; tell the operator", reason="EMBEDDER_MISMATCH"
    )


def _bare(error: BaseException) -> Exception:
    """The error's kind without its text, which may quote what was sent."""
    return RuntimeError(type(error).__name__)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""Bodies, taken in under limits: bytes on the wire, bytes unpacked, and the ratio of the two.

Requests ask for no compression, but a server may compress all the same; then gzip and deflate
are unpacked in bounded steps. Anything else is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator

from services.ingest.egress.refusals import AnswerTooLarge, EgressUnavailable

_RATIO_MAX = 100
# Small answers may compress better than that without being an attack.
_RATIO_FREE_BYTES = 1 << 20


async def read_body(chunks: AsyncIterator[bytes], encoding: str, size_bytes_max: int) -> bytes:
    """The whole body, unpacked. AnswerTooLarge past a limit, EgressUnavailable when it is broken."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return await _read_plain(chunks, size_bytes_max)
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise EgressUnavailable("the answer is compressed in a way that was not asked for")
    return await _read_packed(chunks, zlib.decompressobj(zlib.MAX_WBITS | 32), size_bytes_max)


async def _read_plain(chunks: AsyncIterator[bytes], size_bytes_max: int) -> bytes:
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > size_bytes_max:
            raise AnswerTooLarge(f"the answer is larger than {size_bytes_max} bytes")
    return bytes(body)


async def _read_packed(
    chunks: AsyncIterator[bytes], unpacker: zlib._Decompress, size_bytes_max: int
) -> bytes:
    body = bytearray()
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        limit = min(size_bytes_max, max(_RATIO_FREE_BYTES, received * _RATIO_MAX))
        try:
            # One byte more than is left tells a body at the limit from one past it.
            body += unpacker.decompress(chunk, limit - len(body) + 1)
        except zlib.error:
            raise EgressUnavailable("the answer's compression is broken") from None
        if len(body) > limit:
            raise AnswerTooLarge(f"the answer unpacks to more than {limit} bytes")
        if unpacker.unused_data or unpacker.unconsumed_tail:
            raise EgressUnavailable("the answer's compression is broken")
    if not unpacker.eof:
        raise EgressUnavailable("the answer ended too early")
    return bytes(body)

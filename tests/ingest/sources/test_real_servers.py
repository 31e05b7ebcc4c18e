"""S3 and WebDAV against real servers: SeaweedFS and WsgiDAV."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from services.ingest.egress.client import Egress
from services.ingest.sources.calls import Calls, Timing
from services.ingest.sources.contract import CredentialRefused, Item, ItemGone, Source, SourceUnavailable
from services.ingest.sources.s3 import S3Type
from services.ingest.sources.settings import parse_settings
from services.ingest.sources.sigv4 import SigningKey, sign
from services.ingest.sources.webdav import WebDavType
from tests.ingest.sources.opening import Holder, items, listed
from tests.ingest.sources.real_servers import ACCESS_KEY, PASSWORD, SECRET_KEY, USER, seaweed, wsgidav
from tests.ingest.sources.servers.https import Tls, open_egress

KEYS = ("a.txt", "b c+d.txt", "folder/ü%2F&.txt", "folder/deep/é'(1)!*.md", 'x<y>".txt')


@contextlib.asynccontextmanager
async def reaching(tls: Tls, port: int) -> AsyncIterator[tuple[Egress, str]]:
    egress = open_egress(tls, f"localhost:{port}")
    try:
        yield egress, f"https://localhost:{port}"
    finally:
        await egress.close()


def opened_source(
    kind: S3Type | WebDavType, egress: Egress, token: str, settings: dict[str, object]
) -> Source:
    values: Any = parse_settings(kind.settings_model, settings)
    return kind.open(values, Holder([token]), egress)


async def test_s3_lists_and_fetches_from_seaweedfs(tmp_path: Path, tls: Tls) -> None:
    with seaweed(tmp_path, tls) as port:
        async with reaching(tls, port) as (egress, base):
            writer = _writer(egress, base)
            await _until_ready(writer, f"{base}/papers")
            source = opened_source(
                S3Type(), egress, f"{ACCESS_KEY}:{SECRET_KEY}", {"endpoint": base, "bucket": "papers"}
            )
            for key in KEYS:
                # The source's own encoding of keys is what the server has to understand.
                url = source._object_url(key)  # type: ignore[attr-defined]
                await writer.send(url, method="PUT", content=f"words of {key}".encode())
            before = items(await listed(source))
            assert set(before) == set(KEYS)
            for key, item in before.items():
                assert (await source.fetch(item)).content == f"words of {key}".encode()

            url = source._object_url(KEYS[1])  # type: ignore[attr-defined]
            await writer.send(url, method="PUT", content=b"changed words")
            await writer.send(source._object_url(KEYS[0]), method="DELETE")  # type: ignore[attr-defined]
            after = items(await listed(source))
            assert set(after) == set(KEYS[1:])
            assert {key for key in after if after[key].version != before[key].version} == {KEYS[1]}
            with pytest.raises(ItemGone):
                await source.fetch(before[KEYS[0]])
            stranger = opened_source(
                S3Type(), egress, f"{ACCESS_KEY}:wrong-secret", {"endpoint": base, "bucket": "papers"}
            )
            with pytest.raises(CredentialRefused):
                await listed(stranger)


async def test_webdav_lists_and_fetches_from_wsgidav(tmp_path: Path, tls: Tls) -> None:
    folder = tmp_path / "files"
    for key in KEYS:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"words of {key}")
    (folder / "empty").mkdir()
    with wsgidav(folder, tls) as port:
        async with reaching(tls, port) as (egress, base):
            settings: dict[str, object] = {"url": f"{base}/dav"}
            source = opened_source(WebDavType(), egress, f"{USER}:{PASSWORD}", settings)
            batches = await listed(source)
            before = {item.name: item for item in items(batches).values()}
            assert set(before) == set(KEYS)
            for name, item in before.items():
                assert (await source.fetch(item)).content == f"words of {name}".encode()
            # From each cursor the rest is listed.
            rest = items(await listed(source, batches[0].cursor))
            assert items(batches[:1]) | rest == items(batches)

            (folder / KEYS[1]).write_text("changed words, of another length")
            (folder / KEYS[0]).unlink()
            after = {item.name: item for item in items(await listed(source)).values()}
            assert set(after) == set(KEYS[1:])
            assert {name for name in after if after[name].version != before[name].version} == {KEYS[1]}
            with pytest.raises(ItemGone):
                await source.fetch(before[KEYS[0]])
            with pytest.raises(ItemGone):
                await source.fetch(Item("../../etc/passwd", "", "", ""))
            stranger = opened_source(WebDavType(), egress, f"{USER}:wrong", settings)
            with pytest.raises(CredentialRefused):
                await listed(stranger)


def _writer(egress: Egress, base: str) -> Calls:
    netloc = base.removeprefix("https://")

    def authorize(
        method: str, url: str, headers: Mapping[str, str], content: bytes, token: str
    ) -> tuple[str, Mapping[str, str]]:
        return sign(
            SigningKey.parse(token),
            region="us-east-1",
            when=datetime.datetime.now(datetime.UTC),
            method=method,
            url=url,
            host=netloc,
            headers=headers,
            content=content,
        )

    holder = Holder([f"{ACCESS_KEY}:{SECRET_KEY}"])
    return Calls(
        egress, name="seaweed", hosts=(netloc,), credential=holder, authorize=authorize, timing=Timing()
    )


async def _until_ready(writer: Calls, bucket_url: str) -> None:
    """The S3 port opens before the filer behind it answers."""
    for _ in range(20):
        try:
            await writer.send(bucket_url, method="PUT")
        except SourceUnavailable:
            await asyncio.sleep(0.5)
        else:
            return
    raise RuntimeError("the bucket could not be made")

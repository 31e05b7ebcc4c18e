"""What tests of ingestions share: the calls as a client makes them, and waiting for what becomes of one."""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy as sa

from sealcomb.v1 import ingestion_service_pb2 as pb
from sealcomb.v1 import source_service_pb2 as source_pb
from tests.ingest.rig import ACCOUNT, Rig

SCOPES = {"scopes": ("sources", "write", "read")}
ENDED = (
    pb.INGESTION_STATE_SUCCEEDED,
    pb.INGESTION_STATE_PARTIAL,
    pb.INGESTION_STATE_FAILED,
    pb.INGESTION_STATE_CANCELLED,
    pb.INGESTION_STATE_NEEDS_TOKEN,
)


async def call(rig: Rig, name: str, request: Any, account: str = ACCOUNT, **changes: Any) -> Any:
    """A call with the scopes it needs."""
    return await rig.call(name, request, account, **{**SCOPES, **changes})


async def connect(rig: Rig, secret: str = "good", **settings: Any) -> str:
    """A connection by secret; its id."""
    request = source_pb.BeginConnectionRequest(kind="memory", secret=secret)
    request.settings.update(settings)
    return str((await call(rig, "BeginConnection", request)).connection_id)


async def create(
    rig: Rig, *, collection: str = "notes", account: str = ACCOUNT, **fields: Any
) -> pb.Ingestion:
    """Begins an ingestion."""
    request = pb.CreateIngestionRequest(collection=collection, **fields)
    made: pb.Ingestion = (await call(rig, "CreateIngestion", request, account)).ingestion
    return made


async def create_temporary(rig: Rig, token: str = "good", **fields: Any) -> pb.Ingestion:
    """Begins an ingestion with a temporary token."""
    return await create(rig, temporary_token=token, kind="memory", **fields)


async def get(rig: Rig, id_: str) -> pb.Ingestion:
    """An ingestion as it is now."""
    found: pb.Ingestion = (await call(rig, "GetIngestion", pb.GetIngestionRequest(id=id_))).ingestion
    return found


async def ended(rig: Rig, id_: str, *, run: int = 0, within_s: float = 30.0) -> pb.Ingestion:
    """The ingestion, once it has ended or waits for a token."""
    found = None
    try:
        async with asyncio.timeout(within_s):
            while True:
                found = await get(rig, id_)
                if found.state in ENDED and found.run >= run:
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"did not end: {found}") from None


def texts(rig: Rig, collection: str = "notes") -> dict[str, str]:
    """The documents that can be found, by name, with their text."""
    found = next(made for (_account, name), made in rig.vectorstore.collections.items() if name == collection)
    by_name: dict[str, str] = {}
    for id_, record in found.records.items():
        assert record.name not in by_name, "two visible versions of a document"
        by_name[record.name] = " ".join(passage.text for passage in found.passages[id_])
    return by_name


def sql(rig: Rig, statement: str, **values: Any) -> list[Any]:
    """Runs a statement on ingest's database, as somebody with the file would."""
    engine = sa.create_engine(rig.settings.database_url)
    try:
        with engine.begin() as connection:
            result = connection.execute(sa.text(statement), values)
            return list(result) if result.returns_rows else []
    finally:
        engine.dispose()

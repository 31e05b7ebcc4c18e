"""Every byte of what is on disk cut and flipped: it opens as what was written, or is refused by name.

The log's records, the head, the snapshot and SQLite's own log, changed directly in their files. A state
that never was is wrong; of SQLite's own log an older state that was acknowledged once may come back, since
the whole database is then older (docs/vectorstore.md).
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from services.common.errors import DataLoss, NotFound
from services.vectorstore.node import Limits, Node
from tests.faults.vectors.oracle import Verdict
from tests.faults.vectors.sweep import Row
from tests.vectorstore.fakes import FakeKeyvault, Space, open_node, settle

_NAMED = {"OPEN_FAILED", "LOG_BROKEN", "ROLLBACK_DETECTED", "SNAPSHOT_BROKEN", "DATA_DAMAGED"}
_OWN = "SQLite's own log"
_Contents = dict[str, tuple[bytes, bytes, str]]
# A change of the files below a folder; the state that it may leave besides a refusal.
_Change = tuple[str, Callable[[Path], None]]


async def tails(folder: Path, stride: int) -> list[Row]:
    """All changes, each nth byte, one after another."""
    keyvault = FakeKeyvault()
    whole = folder / "whole"
    whole.mkdir()
    states = await _written(whole, keyvault)
    rows: dict[str, Row] = {}
    for what, change in _changes(whole, stride):
        row = rows.setdefault(what, Row("cut or flipped", what))
        row.times += 1
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        change(copy)
        seen = await _opened(copy, keyvault)
        if isinstance(seen, str):
            # Before the collection was created.
            if seen not in _NAMED and (what != _OWN or seen != "COLLECTION_NOT_FOUND"):
                row.add(Verdict(wrong=1, notes=[f"refused as {seen}"]), what)
        elif seen != states[-1] and (what != _OWN or seen not in states):
            row.add(Verdict(wrong=1, notes=["a state that never was"]), what)
    return list(rows.values())


async def _written(folder: Path, keyvault: FakeKeyvault) -> list[_Contents]:
    """Writes a snapshot and a tail; every state that was acknowledged. Ends as a kill would."""
    node = open_node(folder, keyvault)
    space = Space(node)
    await space.make(dimension=3)
    states = [await space.contents()]
    for number in range(7):
        await space.upsert({f"p{number}": [1.0, float(number), 2.0], "same": [float(number), 1.0, 1.0]})
        states.append(await space.contents())
        if number == 2:
            collection = (await space.use()).collection
            await settle(collection)
            await collection.on_applied.__self__.snapshot()  # type: ignore[attr-defined]
    # With its log beside it, as a process that was killed leaves it.
    killed = folder.with_name("killed")
    shutil.copytree(folder, killed)
    await node.close()
    shutil.rmtree(folder)
    killed.rename(folder)
    return states


async def _opened(folder: Path, keyvault: FakeKeyvault) -> _Contents | str:
    """The contents, or the reason of the refusal."""
    node: Node | None = None
    try:
        node = open_node(folder, keyvault, Limits())
        return await Space(node).contents()
    except (DataLoss, NotFound) as error:
        return error.reason
    except Exception as error:  # noqa: BLE001  (each is a finding)
        return repr(error)
    finally:
        if node is not None:
            await node.close()


def _changes(folder: Path, stride: int) -> Iterator[_Change]:
    database = folder / "vectorstore.db"
    copy = folder.with_name("looked-at")
    shutil.copytree(folder, copy)
    with closing(sqlite3.connect(copy / database.name)) as connection:
        records = connection.execute("SELECT lsn, sealed FROM log ORDER BY lsn").fetchall()
        (head,) = connection.execute("SELECT head FROM collections").fetchone()
    shutil.rmtree(copy)
    for lsn, sealed in records:
        for changed in _changed(sealed, stride):
            yield "record of the log", _update("UPDATE log SET sealed = ? WHERE lsn = ?", (changed, lsn))
    for changed in _changed(head, stride):
        yield "head", _update("UPDATE collections SET head = ?", (changed,))
    for path in sorted(path for path in (folder / "objects").rglob("*") if path.is_file()):
        for changed in _changed(path.read_bytes(), stride):
            yield "snapshot", _write(path.relative_to(folder), changed)
    own = database.with_name(database.name + "-wal")
    # Its pages are large: each 997th byte says as much.
    for changed in _changed(own.read_bytes(), 997 * stride):
        yield _OWN, _write(own.relative_to(folder), changed)


def _changed(raw: bytes, stride: int) -> Iterator[bytes]:
    for place in range(0, len(raw), stride):
        yield raw[:place]
        yield raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


def _update(statement: str, values: tuple[object, ...]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "vectorstore.db")) as connection, connection:
            connection.execute(statement, values)

    return change


def _write(path: Path, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / path).write_bytes(content)

    return change

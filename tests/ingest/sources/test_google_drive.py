"""Google Drive: folders that move, who may see a file, exports, and the many meanings of 403."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from services.common.errors import SealcombError
from services.ingest.sources.contract import (
    CursorExpired,
    ItemTooLarge,
    ItemUnfit,
    Principals,
    SourceDenied,
    SourceLimited,
)
from tests.ingest.sources.opening import Opened, items, listed, opened, removed
from tests.ingest.sources.servers.google_drive import GoogleDriveWorld
from tests.ingest.sources.servers.https import Reply, Tls


@pytest.fixture
async def drive(tls: Tls) -> AsyncIterator[Opened]:
    async with opened(GoogleDriveWorld(), tls) as found:
        found.fill(["a.txt", "b.gdoc"])
        yield found


def world_of(found: Opened) -> GoogleDriveWorld:
    assert isinstance(found.world, GoogleDriveWorld)
    return found.world


async def test_folders_under_the_folder_are_followed_once(drive: Opened) -> None:
    world = world_of(drive)
    world.add_folder("inner", "folder-1")
    # A folder in itself would be followed for ever.
    world.files["inner"]["parents"].append("inner")
    world.put("deep.txt", b"words")
    world.files[world.id_of("deep.txt")]["parents"] = ["inner"]
    world.put("outside.txt", b"words")
    world.files[world.id_of("outside.txt")]["parents"] = ["root"]
    names = {item.name for item in items(await listed(drive.source())).values()}
    assert names == {"a.txt", "b.gdoc", "deep.txt"}
    everything = items(await listed(drive.source(settings={"folders": []})))
    assert {item.name for item in everything.values()} == names | {"outside.txt"}


async def test_a_file_that_leaves_the_folder_is_removed_and_one_that_comes_is_listed(drive: Opened) -> None:
    world = world_of(drive)
    cursor = (await listed(drive.source()))[-1].cursor
    world.files[world.id_of("a.txt")]["parents"] = ["root"]
    world.changes.append({"changeType": "file", "removed": False, "fileId": world.id_of("a.txt")})
    world.put("new.txt", b"words")
    batches = await listed(drive.source(), cursor)
    assert removed(batches) == {world.id_of("a.txt")}
    assert {item.name for item in items(batches).values()} == {"new.txt"}


async def test_a_folder_that_moves_has_everything_listed_anew(drive: Opened) -> None:
    world = world_of(drive)
    cursor = (await listed(drive.source()))[-1].cursor
    world.add_folder("inner", "folder-1")
    world.changes.append({"changeType": "file", "removed": False, "fileId": "inner"})
    with pytest.raises(CursorExpired):
        await listed(drive.source(), cursor)


async def test_a_file_in_the_trash_is_removed(drive: Opened) -> None:
    world = world_of(drive)
    cursor = (await listed(drive.source()))[-1].cursor
    world.files[world.id_of("a.txt")]["trashed"] = True
    world.changes.append({"changeType": "file", "removed": False, "fileId": world.id_of("a.txt")})
    assert removed(await listed(drive.source(), cursor)) == {world.id_of("a.txt")}


@pytest.mark.parametrize(
    ("permissions", "principals"),
    [
        ([{"type": "anyone"}, {"type": "user", "emailAddress": "a@x.test"}], None),
        (
            [
                {"type": "user", "emailAddress": "A@x.test"},
                {"type": "group", "emailAddress": "g@x.test"},
                {"type": "domain", "domain": "X.test"},
                {"type": "user", "emailAddress": "left@x.test", "deleted": True},
            ],
            ("google:domain:x.test", "google:group:g@x.test", "google:user:a@x.test"),
        ),
        ([], ()),
        # Whoever may not share a file is not told: then it is the one who connected.
        (None, ("google:user:me@example.com",)),
    ],
)
async def test_permissions_become_principals(
    drive: Opened, permissions: list[dict[str, object]] | None, principals: Principals
) -> None:
    world_of(drive).permissions["a.txt"] = permissions
    found = {item.name: item for item in items(await listed(drive.source())).values()}
    assert found["a.txt"].principals == principals


async def test_a_changed_permission_comes_with_the_next_changes(drive: Opened) -> None:
    world = world_of(drive)
    first = await listed(drive.source())
    world.permissions["a.txt"] = []
    world.changes.append({"changeType": "file", "removed": False, "fileId": world.id_of("a.txt")})
    (item,) = items(await listed(drive.source(), first[-1].cursor)).values()
    assert item.principals == ()
    assert item.version == items(first)[item.id].version


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("userRateLimitExceeded", SourceLimited),
        ("exportSizeLimitExceeded", ItemTooLarge),
        ("cannotDownloadFile", ItemUnfit),
        ("insufficientFilePermissions", SourceDenied),
    ],
)
async def test_403_means_what_its_reason_says(drive: Opened, reason: str, error: type[SealcombError]) -> None:
    found = {item.name: item for item in items(await listed(drive.source())).values()}
    body = json.dumps({"error": {"code": 403, "errors": [{"domain": "x", "reason": reason}]}}).encode()
    drive.server.faults = [Reply(403, {"content-type": "application/json"}, body)] * 9
    with pytest.raises(error):
        await drive.source().fetch(found["b.gdoc"])


async def test_a_download_that_is_redirected_away_takes_no_token_along(drive: Opened) -> None:
    """E3."""
    found = {item.name: item for item in items(await listed(drive.source())).values()}
    world = world_of(drive)
    row = Reply(200, {}, json.dumps(world.files[world.id_of("a.txt")]).encode())
    drive.server.faults = [row, Reply(302, {"location": "https://elsewhere.test/content"})]
    with pytest.raises(SealcombError):
        await drive.source().fetch(found["a.txt"])
    assert all("elsewhere" not in request.headers["host"] for request in drive.server.requests)

"""The contract of object stores, on a folder and on a real S3 server; and what a bucket can do wrong."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.common import objects as objects_module
from services.common.errors import AlreadyExists, NotFound, Unavailable
from services.common.objects import ObjectStore, claimed, open_store
from services.common.s3 import Bucket, ObjectsRefused, S3Store
from tests.seaweed import READER, SeaweedFs
from tests.tcp_proxy import running_proxy

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def bucket(seaweed: SeaweedFs) -> str:
    """One bucket, of which each test has a part."""
    return seaweed.make_bucket(f"b{secrets.token_hex(6)}")


@pytest.fixture
def part() -> str:
    """A prefix of the test's own."""
    return f"of/{secrets.token_hex(6)}"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, part: str) -> ObjectStore:
    """An empty store of each kind in turn."""
    if request.param == "folder":
        return open_store(f"file:{tmp_path}/objects")
    server: SeaweedFs = request.getfixturevalue("seaweed")
    return open_store(server.url(request.getfixturevalue("bucket"), part))


def test_objects_are_put_replaced_listed_and_deleted(store: ObjectStore) -> None:
    store.put("a/b/c", [b"one ", b"two"])
    store.put("a/b/c", [b"three"])
    store.put("a/d", [bytes(3 * MIB)])
    store.put("ab", [])
    assert store.get("a/b/c") == b"three"
    assert store.get("ab") == b""
    assert max(len(part) for part in store.stream("a/d")) <= MIB
    assert store.list("a/") == ["a/b/c", "a/d"]
    assert store.list("") == ["a/b/c", "a/d", "ab"]
    assert store.list("missing/") == []
    store.delete("a/b/c")
    store.delete("a/b/c")
    store.delete("never/was")
    with pytest.raises(NotFound):
        store.get("a/b/c")


def test_an_object_of_many_parts_is_what_was_put(store: ObjectStore) -> None:
    block = secrets.token_bytes(MIB)
    store.put("large", (block[shift:] for shift in range(19)))
    assert store.get("large") == b"".join(block[shift:] for shift in range(19))
    with pytest.raises(AlreadyExists):
        store.put("large", (block for _ in range(10)), new=True)
    assert len(store.get("large")) > 18 * MIB


def test_a_new_object_replaces_none(store: ObjectStore) -> None:
    store.put("a/b", [b"old"])
    with pytest.raises(AlreadyExists):
        store.put("a/b", [b"new"], new=True)
    assert store.get("a/b") == b"old"
    store.put("a/c", [b"new"], new=True)
    assert store.list("a/") == ["a/b", "a/c"]


def test_f15_of_many_writers_of_a_new_object_one_wins(store: ObjectStore) -> None:
    """F15: the conditional write decides at the store; without the condition all would."""
    gate = threading.Barrier(8)

    def write(number: int) -> bool:
        gate.wait()
        try:
            store.put("raced", [b"%d" % number], new=True)
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert won.count(True) == 1
    assert store.get("raced") == b"%d" % won.index(True)


def test_what_has_a_name_that_is_no_key_is_not_listed(
    store: ObjectStore, tmp_path: Path, request: pytest.FixtureRequest, part: str
) -> None:
    """Whoever may write to the place does not choose where a backup writes, and does not stop it either."""
    store.put("a/b", [b"ours"])
    foreign = ["A.txt", "a/Notes", "a/ b"]
    if isinstance(store, S3Store):
        server: SeaweedFs = request.getfixturevalue("seaweed")
        for name in foreign:
            server.client().put_object(
                Bucket=request.getfixturevalue("bucket"), Key=f"{part}/{name}", Body=b"x"
            )
    else:
        for name in foreign:
            (tmp_path / "objects" / name).write_bytes(b"x")
    assert store.list("") == store.list("a/") == ["a/b"]


@pytest.mark.parametrize("size", [3, 20 * MIB])
def test_a_put_that_fails_half_way_leaves_the_old_object_and_no_part(
    store: ObjectStore, seaweed: SeaweedFs, bucket: str, size: int
) -> None:
    store.put("a/b", [b"old"])

    def parts() -> Iterator[bytes]:
        for _ in range(0, size, MIB):
            yield bytes(min(size, MIB))
        raise RuntimeError("cancelled")

    with pytest.raises(RuntimeError):
        store.put("a/b", parts())
    assert store.get("a/b") == b"old"
    assert store.list("") == ["a/b"]
    assert not seaweed.client().list_multipart_uploads(Bucket=bucket).get("Uploads")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "../a",
        "a/../b",
        "a/./b",
        ".a",
        "a//b",
        "A",
        "a\n",
        "a/b\0",
        "a" * 129,
        "/".join("a" * 9),
        ".put-1",
    ],
)
def test_no_key_leads_out_of_the_store(store: ObjectStore, key: str) -> None:
    for act in (lambda: store.put(key, []), lambda: store.get(key), lambda: store.delete(key)):
        with pytest.raises(ValueError, match="not an object key"):
            act()


def test_two_prefixes_of_a_bucket_are_two_stores(seaweed: SeaweedFs, bucket: str, part: str) -> None:
    one, two = (open_store(seaweed.url(bucket, f"{part}/{name}")) for name in ("one", "two"))
    one.put("a", [b"1"])
    assert two.list("") == []
    with pytest.raises(NotFound):
        two.get("a")


def test_a_bucket_is_one_databases_and_says_so_to_any_other(
    seaweed: SeaweedFs, bucket: str, part: str
) -> None:
    """Two installations on one bucket: the second does not start, and changes nothing."""
    store = open_store(seaweed.url(bucket, part))
    store.claim("first")
    store.claim("first")
    assert store.list("") == []
    with pytest.raises(ObjectsRefused, match="another database's"):
        open_store(seaweed.url(bucket, part)).claim("second")
    open_store(seaweed.url(bucket, part + "/others")).claim("second")


def test_a_missing_bucket_a_missing_permission_and_a_dead_server_have_names(
    seaweed: SeaweedFs, bucket: str
) -> None:
    credentials = str(seaweed.credentials())
    gone = S3Store(Bucket("gone", endpoint="http://127.0.0.1:1", credentials_file=credentials), timeout_s=1)
    cases = {
        "BUCKET_MISSING": open_store(seaweed.url("b-missing")),
        "STORAGE_DENIED": open_store(seaweed.url(bucket, "unmarked", who=READER)),
        "STORAGE_FAILED": gone,
    }
    for reason, store in cases.items():
        with pytest.raises(Unavailable) as refused:
            store.claim("mine")
        assert refused.value.reason == reason
        assert bucket not in refused.value.message


async def test_a_service_waits_for_its_bucket_and_goes_on_by_itself(
    seaweed: SeaweedFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects_module, "_CLAIM_WAIT_S", 0.02)
    name = f"b{secrets.token_hex(6)}"
    waiting = asyncio.create_task(claimed(open_store(seaweed.url(name)), "mine", asyncio.Event()))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await asyncio.to_thread(seaweed.make_bucket, name)
    assert await asyncio.wait_for(waiting, 60)
    stopping = asyncio.Event()
    waiting = asyncio.create_task(claimed(open_store(seaweed.url("b-missing")), "mine", stopping))
    await asyncio.sleep(0.05)
    stopping.set()
    assert not await asyncio.wait_for(waiting, 60)


def test_a_reading_that_is_cut_goes_on_where_it_was(seaweed: SeaweedFs, bucket: str, part: str) -> None:
    content = secrets.token_bytes(12 * MIB)
    open_store(seaweed.url(bucket, part)).put("large", [content])
    with running_proxy(seaweed.port) as proxy:
        cut = open_store(seaweed.url(bucket, part).replace(f":{seaweed.port}", f":{proxy.port}"))
        reading = cut.stream("large")
        first = next(reading)
        proxy.cut()
        assert first + b"".join(reading) == content


def test_an_object_that_changes_while_it_is_read_is_no_mixture(
    seaweed: SeaweedFs, bucket: str, part: str
) -> None:
    store = open_store(seaweed.url(bucket, part))
    store.put("large", [bytes(12 * MIB)])
    with running_proxy(seaweed.port) as proxy:
        cut = open_store(seaweed.url(bucket, part).replace(f":{seaweed.port}", f":{proxy.port}"))
        reading = cut.stream("large")
        next(reading)
        store.put("large", [b"\1" * 12 * MIB])
        proxy.cut()
        with pytest.raises(Unavailable) as refused:
            b"".join(reading)
    assert refused.value.reason == "OBJECT_CHANGED"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3:", "must be s3"),
        ("s3://", "must be s3"),
        ("s3://key:secret@bucket/", "must be s3"),
        ("s3://bucket?endpoint=http://s3.example", "https"),
        ("s3://bucket?colour=red", "unknown option: colour"),
        ("s3://bucket?credentials_file=/nowhere/at/all", "credentials_file"),
    ],
)
def test_a_bucket_that_would_be_unsafe_is_refused_in_words(url: str, why: str) -> None:
    """G10: credentials and requests go in clear to this machine alone, unless it is said."""
    with pytest.raises(ObjectsRefused, match=why):
        open_store(url)


def test_a_bucket_in_clear_elsewhere_is_taken_where_it_is_said() -> None:
    """The twin of the refusal."""
    assert Bucket.from_url("s3://bucket/a/b/?endpoint=http://s3.example&insecure=1") == Bucket(
        "bucket", "a/b/", "http://s3.example"
    )

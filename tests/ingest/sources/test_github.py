"""GitHub: large trees, who may see a repository, discussions, and what ends an incremental listing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.ingest.sources.contract import CursorExpired, SourceLimited
from tests.ingest.sources.opening import NOW_S, Opened, items, listed, opened, unread
from tests.ingest.sources.servers.github import NAME, GitHubWorld
from tests.ingest.sources.servers.https import Reply, Request, Tls


@pytest.fixture
async def github(tls: Tls) -> AsyncIterator[Opened]:
    async with opened(GitHubWorld(), tls) as found:
        found.fill(["README.md", "docs/a.md", "docs/deep/b.md", "src/code.py", "issue 1"])
        yield found


def world_of(found: Opened) -> GitHubWorld:
    assert isinstance(found.world, GitHubWorld)
    return found.world


async def test_a_tree_too_large_for_one_answer_is_listed_folder_by_folder(github: Opened) -> None:
    whole = items(await listed(github.source()))
    world_of(github).truncated = True
    world_of(github).remove("docs/deep/b.md")
    world_of(github).put("docs/b.md", b"words")
    found = items(await listed(github.source()))
    assert set(found) == (set(whole) - {f"file:{NAME}:docs/deep/b.md"}) | {f"file:{NAME}:docs/b.md"}


async def test_only_documents_are_taken_unless_other_files_are_asked_for(github: Opened) -> None:
    assert f"file:{NAME}:src/code.py" not in items(await listed(github.source()))
    every = items(await listed(github.source(settings={"extensions": []})))
    assert f"file:{NAME}:src/code.py" in every
    # Links and other repositories' commits are no files.
    assert f"file:{NAME}:link" not in every
    assert f"file:{NAME}:module" not in every
    docs = items(await listed(github.source(settings={"paths": ["docs/"], "issues": False})))
    assert set(docs) == {f"file:{NAME}:docs/a.md", f"file:{NAME}:docs/deep/b.md"}


async def test_a_private_repository_is_its_collaborators_and_a_public_one_everybodys(github: Opened) -> None:
    readers = f"github:repository:{NAME}"
    people = ("github:user:ann", "github:user:bob", "github:user:cy")
    assert {item.principals for item in items(await listed(github.source())).values()} == {(readers, *people)}
    world_of(github).collaborators = None
    assert {item.principals for item in items(await listed(github.source())).values()} == {(readers,)}
    world_of(github).private = False
    assert {item.principals for item in items(await listed(github.source())).values()} == {None}


async def test_a_lost_permission_is_honoured_at_the_next_sync(github: Opened) -> None:
    """E29: nothing was committed, but a collaborator has left."""
    cursor = (await listed(github.source()))[-1].cursor
    world_of(github).collaborators = ["ann"]
    with pytest.raises(CursorExpired):
        await listed(github.source(), cursor)


async def test_a_repository_that_is_gone_takes_its_documents_along(github: Opened) -> None:
    cursor = (await listed(github.source()))[-1].cursor
    settings: dict[str, object] = {"repositories": [NAME, "acme/gone"]}
    batches = await listed(github.source(settings=settings))
    assert [problem.id for problem in unread(batches)] == ["acme/gone"]
    assert batches[-1].full
    github.server.faults = [Reply(404)]
    with pytest.raises(CursorExpired):
        await listed(github.source(), cursor)


async def test_rewritten_history_is_listed_anew(github: Opened) -> None:
    cursor = (await listed(github.source()))[-1].cursor
    world_of(github).commits = [{"README.md": b"rewritten"}]
    with pytest.raises(CursorExpired):
        await listed(github.source(), cursor)


async def test_a_pull_request_comes_with_both_kinds_of_comments(github: Opened) -> None:
    issue = world_of(github).issues[1]
    issue["pull_request"] = {"url": "x"}
    issue["comments"] = [
        {"user": {"login": "bo"}, "body": f"comment {n}", "created_at": "t"} for n in range(5)
    ]
    issue["review"] = [{"user": None, "body": "a review", "created_at": "t"}]
    found = items(await listed(github.source()))[f"issue:{NAME}:1"]
    text = (await github.source().fetch(found)).content.decode()
    assert text.startswith("# issue 1")
    assert [f"comment {n}" in text for n in range(5)] == [True] * 5
    assert "a review" in text
    without = items(await listed(github.source(settings={"pull_requests": False})))
    assert f"issue:{NAME}:1" not in without


async def test_the_primary_limit_names_its_end_in_another_header(github: Opened) -> None:
    reset = str(int(NOW_S) + 20)
    limited = Reply(403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": reset})
    github.server.faults = [limited]
    await listed(github.source())
    assert github.clock.slept == [21.0]
    later = str(int(github.clock.seconds) + 3000)
    github.server.faults = [Reply(403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": later})]
    with pytest.raises(SourceLimited) as caught:
        await listed(github.source())
    assert caught.value.retry_after_s == 3001.0


async def test_a_next_page_elsewhere_gets_no_token(github: Opened) -> None:
    """E3: a hostile server names the next page on another host."""
    github.server.faults = [
        Reply(200, {"content-type": "application/json"}, b'{"private": false, "default_branch": "main"}'),
        Reply(200, {"link": '<https://elsewhere.test/steal>; rel="next"'}, b"[]"),
    ]
    source = github.source(settings={"files": False})
    with pytest.raises(Exception, match="credential is not for elsewhere"):
        await listed(source)


async def test_an_issue_that_changes_while_it_is_listed_hides_no_other(github: Opened) -> None:
    world = world_of(github)
    github.fill([f"issue {number}" for number in range(2, 8)])
    touched = False

    def meddling(request: Request) -> Reply:
        nonlocal touched
        reply = world.handle(request)
        if request.path.endswith("/issues") and not touched:
            # The first of the first page moves to the end, so the third one moves over the page's edge.
            touched = True
            world.put("issue 1", b"changed meanwhile")
        return reply

    github.server.handler = meddling
    found = items(await listed(github.source(settings={"files": False})))
    assert set(found) == {f"issue:{NAME}:{number}" for number in range(1, 8)}

"""Searches that take long run in a thread, hold nobody up, and answer what is there when they answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.common.errors import ResourceExhausted
from services.vectorstore import searching
from services.vectorstore.filters import OneOf
from services.vectorstore.index import Found
from services.vectorstore.node import Node
from services.vectorstore.searching import Mode, Wanted, WantedPassages
from tests.vectorstore.fakes import FakeKeyvault, Space, open_node, vector_of


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """A node that runs every search in a thread."""
    monkeypatch.setattr(searching, "_INLINE_MS", -1.0)
    made = open_node(tmp_path, FakeKeyvault())
    yield made
    await made.close()


class Gate:
    """Holds searches in their thread after they have found, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found = 0
        self.open = threading.Event()
        self.threads: set[str] = set()
        true_quietly = searching._quietly

        def held(search: Callable[[], list[Found]]) -> list[Found]:
            answer = true_quietly(search)
            self.found += 1
            self.threads.add(threading.current_thread().name)
            assert self.open.wait(10)
            return answer

        monkeypatch.setattr(searching, "_quietly", held)

    async def reached(self, count: int = 1) -> None:
        """Returns once so many searches have found."""
        while self.found < count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A closed gate."""
    return Gate(monkeypatch)


async def _things(node: Node, count: int = 20) -> Space:
    space = Space(node)
    await space.make()
    await space.upsert({f"p{n:02d}": [1, 0.01 * n, 0, 0] for n in range(count)}, {"p00": {"colour": "red"}})
    return space


async def test_a_long_search_holds_no_other_call_up(node: Node, gate: Gate) -> None:
    space = await _things(node)
    search = asyncio.create_task(space.nearest([1, 0, 0, 0], 3))
    await gate.reached()
    # Writes and reads go on while it runs.
    assert await space.upsert({"late": [0, 1, 0, 0]}) == 1
    assert len(await space.contents()) == 21
    assert not search.done()
    gate.open.set()
    assert await search == ["p00", "p01", "p02"]
    assert all(name.startswith("search") for name in gate.threads)


async def test_what_is_deleted_during_a_search_is_not_answered_and_leaves_no_gap(
    node: Node, gate: Gate
) -> None:
    space = await _things(node)
    search = asyncio.create_task(space.nearest([1, 0, 0, 0], 3))
    await gate.reached()
    await space.delete("p01")
    gate.open.set()
    assert await search == ["p00", "p02", "p03"]
    assert gate.found == 2


async def test_twin_without_the_second_look_a_deleted_point_would_be_answered(
    node: Node, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: were only the first look trusted, the answer would hold a row without a point."""
    space = await _things(node)
    monkeypatch.setattr(searching.Finder, "_found", _first_look_only)
    search = asyncio.create_task(space.nearest([1, 0, 0, 0], 3))
    await gate.reached()
    await space.delete("p01")
    gate.open.set()
    assert await search == ["p00", "", "p02"]


async def _first_look_only(self: Any, use: Any, plan: Any) -> Any:
    state = use.collection.state
    return state, await self._elsewhere(plan(state)[0])


async def test_a_search_that_is_overtaken_again_and_again_ends(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = await _things(node)
    use, loop = await space.use(), asyncio.get_running_loop()
    true_quietly = searching._quietly
    overtaken = []

    def overtake(search: Callable[[], list[Found]]) -> list[Found]:
        answer = true_quietly(search)
        id_ = use.collection.state.point(int(answer[0].rows[0])).id
        overtaken.append(id_)
        asyncio.run_coroutine_threadsafe(space.delete(id_), loop).result(10)
        return answer

    monkeypatch.setattr(searching, "_quietly", overtake)
    assert await space.nearest([1, 0, 0, 0], 2) == ["p03", "p04"]
    assert overtaken == ["p00", "p01", "p02"]


async def test_waiting_searches_are_bounded(node: Node, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "_WAITING_MAX", 3)
    space = await _things(node)
    running = [asyncio.create_task(space.nearest([1, 0, 0, 0], 3)) for _ in range(3)]
    await gate.reached(2)
    with pytest.raises(ResourceExhausted) as caught:
        await space.nearest([1, 0, 0, 0], 3)
    assert caught.value.reason == "SEARCH_QUEUE_FULL"
    gate.open.set()
    assert all(await asyncio.gather(*running))
    assert await space.nearest([1, 0, 0, 0], 1) == ["p00"]


async def test_filters_words_and_counts_are_the_same_in_a_thread(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = await _things(node)
    red = OneOf("colour", ("red",))
    await space.make("papers", 8, text=True)
    for number in range(5):
        await space.put(
            f"d{number}", [f"wax and honey {number}", "bees"], "papers", principals=["a"] * (number % 2)
        )
    answers = []
    for inline_ms in (1e9, -1.0):
        monkeypatch.setattr(searching, "_INLINE_MS", inline_ms)
        points = await node.finder.query(await space.use(), Wanted(vector_of("q", 4), 5, 0, red, True))
        _state, mask = await node.finder.matching(await space.use(), red)
        assert mask is not None
        found = [(hit.point.id, hit.score) for hit in points.hits], np.flatnonzero(mask).tolist()
        passages = []
        for mode in Mode:
            for principals in ([], ["a"]):
                wanted = WantedPassages(mode, vector_of("q", 8), "honey bees", 6, None, principals)
                hits = await node.finder.search_passages(await space.use("papers"), wanted)
                passages.append([(hit.document.id, hit.passage.index, hit.score) for hit in hits])
        answers.append((found, passages))
    assert answers[0] == answers[1]
    assert answers[0][0][0][0][0] == "p00"


async def test_words_are_added_while_a_search_reads_them(node: Node) -> None:
    """An array that is being read cannot grow, so a search reads a copy."""
    space = Space(node)
    await space.make("papers", 8, text=True)
    await space.put("first", ["wax"] * 50, "papers")
    wanted = WantedPassages(Mode.LEXICAL, None, "wax", 10, None, [])

    async def search() -> None:
        for _ in range(60):
            assert len(await node.finder.search_passages(await space.use("papers"), wanted)) == 10

    async def write() -> None:
        for number in range(60):
            await space.put(f"d{number}", ["wax"] * 3, "papers")

    await asyncio.gather(search(), write(), search())


async def test_short_searches_stay_on_the_loop(
    node: Node, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "_INLINE_MS", 1.0)
    space = await _things(node)
    assert len(await space.nearest([1, 0, 0, 0], 3)) == 3
    assert gate.found == 0

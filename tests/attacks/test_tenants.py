"""Near-identical accounts never see one another: a part of `make attack-tenants`."""

from __future__ import annotations

from pathlib import Path

from tests.attacks.tenants import ask


async def test_f11_fifty_accounts_with_near_identical_vectors_find_their_own_alone(tmp_path: Path) -> None:
    """F11, with writes, deletions and closings between the queries."""
    seen = await ask(tmp_path, 5_000)
    assert seen.queries >= 5_000
    assert seen.ids == 10 * seen.queries
    assert seen.foreign == 0


async def test_f11_twin_with_one_index_for_all_most_of_what_is_found_is_foreign(tmp_path: Path) -> None:
    """F11's twin: the count sees a foreign id where there is one."""
    seen = await ask(tmp_path, 1_000, shared=True, accounts=5)
    assert seen.foreign > seen.queries

"""A1, A2, A3, A4: floods and bombs on one connection end that connection, and nobody else's calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.attacks.edge_floods import ATTACKS, Attack, Figure, Target, unguarded
from tests.gateway.load import Kind, load
from tests.gateway.rig import Edge, running_edge
from tests.gateway.weakened import weakened

_IDS = [f"{attack.row} {attack.name}" for attack in ATTACKS]


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("floods")) as running:
        yield running


@pytest.fixture(scope="module")
def target(edge: Edge) -> Target:
    return Target(edge.port, edge.installation.edge_ca_file, edge.create_account("mallory").token)


@pytest.fixture(scope="module")
def figures(edge: Edge, target: Target) -> dict[str, Figure]:
    """What became of all attacks, made at once, while another account's calls went on unharmed."""
    pids = edge.envoy_pids()
    with load(edge, Kind(edge.create_account("a neighbour").token, callers=1, connections=1)) as neighbour:
        found = all_at_once(lambda attack: attack.run(target, attack.size))
    assert not neighbour.failures, neighbour.details
    assert neighbour.good > 10
    assert edge.envoy_pids() == pids
    assert edge.health() == "SERVING"
    return found


@pytest.fixture(scope="module")
def twins(edge: Edge, target: Target) -> dict[str, Figure]:
    """The same without the controls; or legal traffic, where the codec is the control."""
    with weakened(edge, unguarded) as twin:
        unprotected = Target(twin.port, target.ca_file, target.token)

        def run(attack: Attack) -> Figure:
            if attack.legal is not None:
                return attack.legal(target, attack.size)
            return attack.run(unprotected, attack.size)

        return all_at_once(run)


@pytest.mark.parametrize("attack", ATTACKS, ids=_IDS)
def test_a_flood_ends_its_own_connection(figures: dict[str, Figure], attack: Attack) -> None:
    """A1, A2, A3, A4."""
    assert attack.holds(figures[attack.name]), figures[attack.name]


@pytest.mark.parametrize("attack", ATTACKS, ids=_IDS)
def test_without_the_control_it_goes_on(twins: dict[str, Figure], attack: Attack) -> None:
    """Twin of the test above; where the codec is the control, legal traffic of the kind lives."""
    assert twins[attack.name].lived


def test_a_rapid_reset_starts_next_to_no_work(edge: Edge, target: Target) -> None:
    """A1: of the calls that were reset at once, few reach a service, and none is left behind."""
    before = len(edge.backends.seen)
    for _ in range(4):
        ATTACKS[0].run(target, 900)
    assert len(edge.backends.seen) - before <= 4 * 100
    assert edge.backends.held == 0


def all_at_once(run: Callable[[Attack], Figure]) -> dict[str, Figure]:
    with ThreadPoolExecutor(len(ATTACKS)) as pool:
        return dict(zip([attack.name for attack in ATTACKS], pool.map(run, ATTACKS), strict=True))

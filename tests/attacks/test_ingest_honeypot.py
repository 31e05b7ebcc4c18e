"""E14, E15, E16, E17: inner addresses answer in a network of their own; nothing of ours arrives there."""

from __future__ import annotations

from tests.attacks.ingest import honeypot

ROUNDS = 100


def test_no_address_redirect_or_name_leads_to_an_inner_address() -> None:
    """Each address in every spelling, by itself and by a redirect; names that change between two look-ups."""
    figures = honeypot.run(ROUNDS, checked=True)
    assert figures["corpus"]["hits"] == 0
    assert figures["corpus"]["redirects"] > figures["corpus"]["tries"] / 3, "the redirects were not tried"
    rebinding = figures["rebinding"]
    assert rebinding["hits"] == 0
    # Half of the answers are public, and those work: it is the address that decides, not the name.
    assert rebinding["answered"] == ROUNDS / 2
    # One look-up for each connection, so there is none between the check and the connection.
    assert rebinding["questions"] == ROUNDS


def test_without_the_check_of_addresses_the_honeypot_is_reached() -> None:
    """The twin: the same requests, with every address taken for a public one."""
    figures = honeypot.run(20, checked=False)
    assert figures["corpus"]["hits"] > 10
    assert figures["rebinding"]["hits"] == 10

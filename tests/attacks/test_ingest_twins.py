"""The twins of ingest's rows: with one control taken away, the attack that it stops goes through.

Each names the row and the test that it is the twin of; a control whose twin stays green proves nothing.
"""

from __future__ import annotations

import re
import socket
import xml.sax
import xml.sax.handler
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa

from sealcomb.v1 import ingestion_service_pb2 as ingestion
from services.common import ids
from services.ingest.connections import redirects, service
from services.ingest.connections.oauth import OAuth
from services.ingest.connections.records import Client
from services.ingest.connections.store import ConnectionStore, FlowRow, hash_of
from services.ingest.egress import client as egress_client
from services.ingest.extract import formats
from services.ingest.extract.formats import Format
from services.ingest.ingestions import fetching
from services.ingest.ingestions.items import ItemStore
from services.ingest.ingestions.store import IngestionStore
from services.ingest.ingestions.worker import Worker
from services.ingest.schema import FLOWS, INGESTIONS
from services.ingest.sources.contract import ItemUnfit
from services.ingest.store import Store
from tests.certificates import TestCa
from tests.ingest.jobs.rig import call, connect, create, ended, texts
from tests.ingest.memory_source import MemorySourceType
from tests.ingest.oauth.dance import begin, clients_file, complete
from tests.ingest.oauth.providers import GuardedSourceType, User, provider
from tests.ingest.rig import OTHER_ACCOUNT, Rig, eventually, running
from tests.ingest.sources.servers.https import HttpsServer, Reply, Request, make_tls, open_egress

REDIRECT = "http://127.0.0.1:53682/callback/guarded"


@pytest.fixture
def source() -> MemorySourceType:
    made = MemorySourceType()
    for number in range(3):
        made.put(f"item {number}", f"Text of item {number}.")
    return made


@pytest.fixture
async def rig(tmp_path: Path, source: MemorySourceType) -> AsyncIterator[Rig]:
    """A running ingest with a source in memory."""
    async with running(tmp_path, source_types=[source], ingestion_lease_s=2, extract_workers=1) as made:
        made.collection()
        yield made


async def test_headers_that_go_along_give_the_token_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E3, twin of no redirect carrying a token to another origin."""
    monkeypatch.setattr(egress_client, "_HEADERS_FOR_ANY_ORIGIN", frozenset({"authorization"}))
    tls = make_tls(tmp_path, ("good.test", "other.test"))
    other = HttpsServer(lambda _: Reply(200), tls.server)

    def redirect(_request: Request) -> Reply:
        return Reply(302, {"location": f"https://other.test:{other.port}/"})

    good = HttpsServer(redirect, tls.server)
    async with good.running(), other.running():
        netlocs = (f"good.test:{good.port}", f"other.test:{other.port}")
        egress = open_egress(tls, ",".join(netlocs))
        await egress.send(
            "GET", f"https://{netlocs[0]}/", authorization="Bearer t", authorized_hosts=netlocs[:1]
        )
        await egress.close()
    assert other.requests[0].headers["authorization"] == "Bearer t"


def test_a_header_that_is_written_as_it_comes_begins_another(tmp_path: Path) -> None:
    """E4, twin of a header that cannot end its line: what a client without the check sends."""
    ours, theirs = socket.socketpair()
    token = "t\r\nx-evil: 1"
    ours.sendall(f"GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\n\r\n".encode())
    lines = theirs.recv(4096).split(b"\r\n")
    ours.close()
    theirs.close()
    assert b"x-evil: 1" in lines


async def test_a_state_that_is_not_of_an_account_is_found_by_everybody(tmp_path: Path) -> None:
    """E5, E9, twin of a flow being of the account that began it."""
    store = Store.open(f"sqlite:///{tmp_path}/x.db")
    flows = ConnectionStore(store.database)
    state_hash = hash_of("state")
    flows.add_flow(FlowRow(state_hash, ids.new_id(), ids.new_id(), 10_000, b"sealed"), 0)
    assert flows.find_flow(ids.new_id(), state_hash, 1) is None
    with store.database.reading() as connection:
        by_state_alone = sa.select(FLOWS).where(FLOWS.c.state_hash == state_hash)
        assert connection.execute(by_state_alone).one_or_none() is not None
    store.close()


async def test_without_challenge_and_verifier_a_stolen_code_is_redeemed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E6, E12, twins of the verifier of another flow, and of scopes that are compared."""
    ca = TestCa.make()
    ask = OAuth._ask

    async def without_verifier(self: OAuth, profile: Any, client: Client, url: str, form: Any) -> Any:
        form = {name: value for name, value in form.items() if name != "code_verifier"}
        return await ask(self, profile, client, url, form)

    with provider(tmp_path / "provider", ca, ("guarded",), pkce=False) as one:
        (tmp_path / "ca.pem").write_bytes(ca.issue([]).ca)
        kind, user = GuardedSourceType(one), User(ca, tmp_path)
        async with running(
            tmp_path / "ingest",
            source_types=[kind],
            extract_workers=1,
            oauth_clients_file=clients_file(tmp_path, guarded=one),
            egress_allow=one.netloc,
            egress_ca_file=tmp_path / "ca.pem",
        ) as rig:
            monkeypatch.setattr(OAuth, "_ask", without_verifier)
            stolen_from, attackers = await begin(rig), await begin(rig)
            url = stolen_from.authorization_url.replace("code_challenge", "x_challenge")
            stolen = await user.grant(url, REDIRECT)
            state = parse_qs(urlsplit(attackers.authorization_url).query)["state"][0]
            # E12: less is granted than is asked for by now, and nobody looks.
            kind.oauth = one.profile(scopes=("openid", "offline_access", "docs.read", "docs.write"))
            monkeypatch.setattr(service, "_SCOPES_UNSAID", frozenset(kind.oauth.scopes))
            made = await complete(rig, stolen, state=state)
            assert made.id == attackers.connection_id
            assert "docs.write" not in made.scopes_granted


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:80@evil.example/callback/guarded", "http://127.0.0.1:1/callback/guarded/../x"],
)
def test_a_redirect_that_is_compared_by_its_beginning_leads_anywhere(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E8, twin of comparing the whole string."""
    with pytest.raises(Exception, match="not registered"):
        redirects.Redirects().check(address, "guarded")
    loose = re.compile(r"http://(127\.0\.0\.1):([1-9]\d{0,4}).*/callback/([a-z]+).*")
    monkeypatch.setattr(redirects, "_LOOPBACK", loose)
    assert redirects.Redirects().check(address, "guarded") == address


async def test_an_ingestion_that_is_found_by_its_id_alone_is_everybodys(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E11, twin of another account seeing nothing: the row would be found, and stays sealed all the same."""
    begun = await create(rig, connection_id=await connect(rig))

    def any_account(self: IngestionStore, _account: str, id_: str) -> Any:
        return self._one(INGESTIONS.c.id == id_)

    monkeypatch.setattr(IngestionStore, "get", any_account)
    found = await call(rig, "GetIngestion", ingestion.GetIngestionRequest(id=begun.id), OTHER_ACCOUNT)
    assert found.ingestion.id == begun.id


def test_a_parser_that_resolves_entities_brings_a_file_in(tmp_path: Path) -> None:
    """E22, twin of external entities bringing nothing in: the same document in a parser that fetches."""
    (tmp_path / "secret").write_text("canary")
    found: list[str] = []

    class Handler(xml.sax.handler.ContentHandler):
        def characters(self, content: str) -> None:
            found.append(content)

    parser = xml.sax.make_parser()
    parser.setFeature(xml.sax.handler.feature_external_ges, True)
    parser.setContentHandler(Handler())
    document = f'<!DOCTYPE x [<!ENTITY a SYSTEM "file://{tmp_path}/secret">]><x>&a;</x>'
    (tmp_path / "document.xml").write_text(document)
    parser.parse(str(tmp_path / "document.xml"))
    assert "".join(found) == "canary"


def test_a_format_that_is_believed_is_a_programs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """E23, twin of the content deciding: an executable under a text's name would be taken."""
    program = b"\x7fELF\x02\x01\x01\x00" + bytes(64)
    with pytest.raises(Exception, match="not of a supported format"):
        formats.sniff("text/plain", "a.txt", program)
    monkeypatch.setattr(formats, "_BINARY", re.compile(rb"(?!)"))
    assert formats.sniff("text/plain", "a.txt", program) is Format.TEXT


async def test_a_name_that_is_taken_as_it_comes_commands_a_terminal(
    rig: Rig, source: MemorySourceType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E24, twin of no name being more than a name."""
    monkeypatch.setattr(fetching, "_name", lambda item: item.name)
    source.put("item 0", "text", name="a\x1b[31m\r\nb")
    await ended(rig, (await create(rig, connection_id=await connect(rig))).id)
    assert any("\x1b[31m\r\n" in name for name in texts(rig))


async def test_a_document_without_an_id_of_its_own_is_there_twice(
    rig: Rig, source: MemorySourceType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E27, twin of each item being there once: a new version would stand beside the old one."""
    source.things["item 2"].error = ItemUnfit("for the retry")
    begun = await create(rig, connection_id=await connect(rig))
    await ended(rig, begun.id)
    monkeypatch.setattr(fetching, "document_id", lambda _tag: ids.new_id())
    source.put("item 0", "Text of item 0, changed.")
    await call(rig, "RetryIngestion", ingestion.RetryIngestionRequest(id=begun.id))
    await ended(rig, begun.id, run=2)
    with pytest.raises(AssertionError, match="two visible versions"):
        texts(rig)


async def test_a_listing_that_removes_nothing_keeps_what_is_gone(
    rig: Rig, source: MemorySourceType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E29, twin of a deleted item vanishing at the next run."""
    record = ItemStore.record_batch

    def never_full(self: ItemStore, *arguments: Any, **fields: Any) -> None:
        record(self, *arguments, **(fields | {"full": False}))

    source.things["item 2"].error = ItemUnfit("for the retry")
    begun = await create(rig, connection_id=await connect(rig))
    await ended(rig, begun.id)
    monkeypatch.setattr(ItemStore, "record_batch", never_full)
    del source.things["item 0"]
    await call(rig, "RetryIngestion", ingestion.RetryIngestionRequest(id=begun.id))
    await ended(rig, begun.id, run=2)
    assert "item 0.txt" in texts(rig)


async def test_starts_that_are_not_counted_go_on_for_ever(
    rig: Rig, source: MemorySourceType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E26, twin of an item that kills its worker being set aside after three starts."""
    monkeypatch.setattr(ItemStore, "start", lambda *_arguments, **_fields: None)
    monkeypatch.setattr(Worker, "_later", _at_once)
    starts = 0

    def die(item: Any) -> None:
        nonlocal starts
        starts += item.id == "item 1"
        if item.id == "item 1" and starts < 6:
            # As far as the row can tell, the worker is gone: the run begins anew.
            raise RuntimeError("dies")

    source.before_fetch = die
    await create(rig, connection_id=await connect(rig))
    # With the count on, there is no fourth.
    await eventually(lambda: starts >= 5, within_s=90.0)


def _at_once(self: Any, row: Any, reason: str, _retry_after_s: float) -> dict[str, Any]:
    return {"state": "queued", "reason": reason, "next_run_ms": None, "not_before_ms": 0, "lease_until_ms": 0}

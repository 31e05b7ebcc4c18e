"""Traces of a whole installation: a search is one trace, and nothing that anybody wrote is in it."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import grpc

from sealcomb.v1 import search_service_pb2, search_service_pb2_grpc
from tests.attacks.canary import Canaries
from tests.common.collector import Collector, collecting
from tests.system.installation import Account, Installation, running

_FOREIGN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_SEARCH = "sealcomb.v1.SearchService/Search"


def _search_with_a_traceparent(installation: Installation, account: Account) -> None:
    credentials = grpc.ssl_channel_credentials(Path(str(account.connection.ca_file)).read_bytes())
    metadata = (("authorization", f"Bearer {account.connection.token}"), ("traceparent", _FOREIGN))
    with grpc.secure_channel(f"localhost:{installation.edge_port}", credentials) as channel:
        request = search_service_pb2.SearchRequest(collection="notes", query="what seals a cell?")
        search_service_pb2_grpc.SearchServiceStub(channel).Search(request, metadata=metadata, timeout=30)


def _services_of_the_search(collector: Collector) -> set[str]:
    spans = collector.spans
    traces = {span.trace_id for _, span in spans if span.name == _SEARCH}
    return {service for service, span in spans if span.trace_id in traces}


def test_a_search_is_one_trace_of_listed_attributes(tmp_path: Path) -> None:
    """B3, G14: the canary scan over all that the collector got; A9 for the client's traceparent."""
    canaries = Canaries()
    with collecting() as collector:
        with running(tmp_path, environ={"SEALCOMB_OTLP_ENDPOINT": collector.endpoint}) as installation:
            account = installation.new_account(canaries.text("account name", secrets.token_hex(20)))
            account.client.collections.create("notes", embedder="default")
            text = f"The wax cap seals each cell. {canaries.text('text', secrets.token_hex(20))}"
            account.client.documents.upload(
                "notes", text.encode(), name=canaries.text("file name", secrets.token_hex(20))
            )
            _search_with_a_traceparent(installation, account)
            end = time.monotonic() + 30
            wanted = {"sealcomb-gateway", "sealcomb-ingest", "sealcomb-vectorstore"}
            while not wanted <= _services_of_the_search(collector) and time.monotonic() < end:
                time.sleep(0.2)
            assert wanted <= _services_of_the_search(collector)
            canaries.text("token", account.connection.token)
        # It begins at the edge.
        (first,) = (one for service, one in collector.spans if one.name == _SEARCH and not one.parent_span_id)
        assert first in [one for service, one in collector.spans if service == "sealcomb-gateway"]
        assert bytes.fromhex(_FOREIGN.split("-")[1]) not in {span.trace_id for _, span in collector.spans}
        assert not any(account.id.encode() in body for body in collector.requests)
        # The twin: what is planted is seen.
        assert canaries.find(text.encode(), "planted") != []
        for body in collector.requests:
            assert canaries.find(body, "collector") == []

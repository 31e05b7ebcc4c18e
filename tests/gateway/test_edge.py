"""The edge end to end: clients, Envoy, policy and services behind them."""

from __future__ import annotations

import grpc

from tests.gateway.rig import Edge


def test_an_account_calls_a_service_through_the_edge(edge: Edge) -> None:
    created = edge.create_account("honey")
    answer = edge.call("/sealcomb.v1.CollectionService/ListCollections", created.token)
    assert answer.code is grpc.StatusCode.OK
    assert edge.backends.seen[-1].account == created.account.id

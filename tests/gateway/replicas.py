"""Acts upon a cluster of policy processes, and how long each of them goes on as before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import grpc
import sqlalchemy as sa

from sealcomb.v1 import account_service_pb2 as accounts_pb
from sealcomb.v1 import account_service_pb2_grpc as accounts_stubs
from sealcomb.v1 import token_service_pb2 as tokens_pb
from sealcomb.v1 import token_service_pb2_grpc as tokens_stubs
from tests.gateway.cluster import QUERY, Cluster
from tests.gateway.rig import Edge, bearer, call


def revoke(cluster: Cluster, admin: str, token_id: str) -> None:
    """By the API, at the first process."""
    with cluster.edges[0].channel() as channel:
        tokens_stubs.TokenServiceStub(channel).RevokeToken(
            tokens_pb.RevokeTokenRequest(id=token_id), metadata=bearer(admin), timeout=10
        )


def revoke_silently(cluster: Cluster, _admin: str, token_id: str) -> None:
    """As the API does it but without NOTIFY, as if the push were lost."""
    engine = sa.create_engine(cluster.postgres.url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE tokens SET revoke_time_ms = 1 WHERE id = :id"), {"id": token_id})
        bump = "UPDATE change_counter SET sequence = sequence + 1 RETURNING sequence"
        sequence = connection.execute(sa.text(bump)).scalar_one()
        connection.execute(
            sa.text("INSERT INTO changes VALUES (:sequence, 'token', :id)"),
            {"sequence": sequence, "id": token_id},
        )
    engine.dispose()


def update(edge: Edge, account: str, **fields: object) -> None:
    """UpdateAccount as the operator."""
    with edge.channel() as channel:
        accounts_stubs.AccountServiceStub(channel).UpdateAccount(
            accounts_pb.UpdateAccountRequest(id=account, **fields),  # type: ignore[arg-type]
            metadata=bearer(edge.operator_token),
            timeout=10,
        )


def last_accepted_after(
    edges: list[Edge], token: str, act: Callable[[], None], watch_s: float
) -> list[float]:
    """How long after an act was done each edge still let the token in; 0 if it did not."""
    done = threading.Event()
    done_at = [0.0]
    last = [0.0] * len(edges)

    def watch(number: int) -> None:
        with edges[number].channel() as channel:
            while not done.is_set() or time.monotonic() < done_at[0] + watch_s:
                began_s = time.monotonic()
                if call(channel, QUERY, token).code is grpc.StatusCode.OK:
                    # It was decided no earlier than this.
                    last[number] = began_s

    threads = [threading.Thread(target=watch, args=(number,)) for number in range(len(edges))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while not all(last) and time.monotonic() < deadline:
        time.sleep(0.02)
    accepted = all(last)
    act()
    done_at[0] = time.monotonic()
    done.set()
    for thread in threads:
        thread.join()
    assert accepted, "every edge let the token in before"
    return [max(0.0, at_s - done_at[0]) for at_s in last]

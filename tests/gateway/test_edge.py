"""The edge end to end: gRPC clients, Envoy, policy, and services that echo."""

from __future__ import annotations

import json
import os
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from sealcomb.v1 import account_service_pb2 as accounts_pb
from sealcomb.v1 import account_service_pb2_grpc as accounts_stubs
from sealcomb.v1 import token_service_pb2 as tokens_pb
from sealcomb.v1 import token_service_pb2_grpc as tokens_stubs
from services.common.methods import PUBLIC_METHODS, REFLECTION_METHODS
from services.common.tls import TlsFiles
from services.gateway.reflection import PUBLIC_FILES, public_pool
from services.standalone.pki import ensure_installation
from tests.gateway.raw_http2 import EMPTY_MESSAGE, grpc_headers, raw_connection
from tests.gateway.rig import TOKEN_TEXT, Edge, bearer, call, running_edge
from tests.gateway.weakened import Json, manager, routes, weakened

QUERY = "/sealcomb.v1.VectorService/Query"
UPSERT = "/sealcomb.v1.VectorService/Upsert"
WHOAMI = "/sealcomb.v1.TokenService/WhoAmI"
CREATE_TOKEN = "/sealcomb.v1.TokenService/CreateToken"


def who_am_i(edge: Edge, token: str) -> tokens_pb.WhoAmIResponse:
    with edge.channel() as channel:
        response = tokens_stubs.TokenServiceStub(channel).WhoAmI(
            tokens_pb.WhoAmIRequest(), metadata=bearer(token), timeout=10
        )
    assert isinstance(response, tokens_pb.WhoAmIResponse)
    return response


def test_an_account_calls_a_service_through_the_edge(edge: Edge) -> None:
    created = edge.create_account("honey")
    assert (
        edge.call("/sealcomb.v1.CollectionService/ListCollections", created.token).code is grpc.StatusCode.OK
    )
    assert edge.backends.seen[-1].account == created.account.id


def test_who_am_i_says_whose_token_it_is(edge: Edge) -> None:
    created = edge.create_account()
    mine = who_am_i(edge, created.token)
    assert mine.account_id == created.account.id
    assert "admin" in mine.scopes
    operator = who_am_i(edge, edge.operator_token)
    assert (operator.account_id, list(operator.scopes)) == ("", ["operator"])


def test_clients_see_the_right_status_and_reason(edge: Edge) -> None:
    created = edge.create_account()
    narrow = edge.create_token(created.token, label="r", scopes=["read"]).token
    cases = [
        (edge.call(QUERY, None), grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"),
        (edge.call(QUERY, "nonsense"), grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MALFORMED"),
        (edge.call(UPSERT, narrow), grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"),
    ]
    for answer, code, reason in cases:
        assert (answer.code, answer.reason) == (code, reason)
        assert answer.status is not None
        assert (answer.status.code, answer.status.message) == (code.value[0], answer.message)


def test_a_refused_call_carries_retry_info_that_holds(edge: Edge) -> None:
    created = edge.create_account(calls_per_second=2.0, burst=1)
    with edge.channel() as channel:
        assert call(channel, QUERY, created.token).code is grpc.StatusCode.OK
        refused = call(channel, QUERY, created.token)
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert refused.trailers["retry-after"] == "1"
        assert refused.retry_s is not None
        assert 0 < refused.retry_s <= 0.5
        time.sleep(refused.retry_s)
        assert call(channel, QUERY, created.token).code is grpc.StatusCode.OK


@pytest.mark.parametrize(("connections", "tokens"), [(1, 1), (12, 1), (12, 6)])
def test_many_connections_and_tokens_get_no_more_than_the_limit(
    edge: Edge, connections: int, tokens: int
) -> None:
    """B8: one policy process, real clients.

    However slowly the machine calls: a refusal says that all there was had been let in when it was asked for.
    """
    rate, burst, seconds = 20.0, 100, 2.0
    created = edge.create_account()
    texts = [edge.create_token(created.token, label="t", scopes=["read"]).token for _ in range(tokens)]
    update_limits(edge, created.account.id, rate, burst)
    # When calls were sent that came back refused.
    refused: list[float] = []
    # When each connection had its first answer.
    begun: list[float] = []
    started = time.monotonic()

    def hammer(number: int) -> tuple[int, float]:
        admitted = 0
        with edge.channel() as channel:
            while not refused or time.monotonic() < refused[0] + seconds:
                sent = time.monotonic()
                answer = call(channel, QUERY, texts[number % tokens])
                if not admitted:
                    begun.append(time.monotonic())
                admitted += answer.code is grpc.StatusCode.OK
                assert answer.code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)
                if answer.code is not grpc.StatusCode.OK:
                    refused.append(sent)
                assert time.monotonic() < started + 60, "the limit was never reached"
        return admitted, time.monotonic()

    with ThreadPoolExecutor(connections) as pool:
        results = list(pool.map(hammer, range(connections)))
    admitted = sum(count for count, _ in results)
    last = max(ended for _, ended in results)
    assert admitted <= (burst + rate * (last - started)) * 1.01 + 1
    # Less than a call was left in the bucket, which was full until the first call came.
    assert admitted >= burst + rate * (max(refused) - min(begun)) - 1


def test_new_limits_hold_for_the_very_next_call(edge: Edge) -> None:
    created = edge.create_account()
    with edge.channel() as channel:
        assert call(channel, QUERY, created.token).code is grpc.StatusCode.OK
        update_limits(edge, created.account.id, 0.001, 1)
        codes = [call(channel, QUERY, created.token).code for _ in range(3)]
    assert codes == [grpc.StatusCode.OK, *[grpc.StatusCode.RESOURCE_EXHAUSTED] * 2]


def test_a_revoked_token_is_refused_on_open_connections_at_once(edge: Edge) -> None:
    created = edge.create_account()
    made = edge.create_token(created.token, label="r", scopes=["read"])
    with edge.channel() as channel, edge.channel() as admin:
        assert call(channel, QUERY, made.token).code is grpc.StatusCode.OK
        stub = tokens_stubs.TokenServiceStub(admin)
        stub.RevokeToken(
            tokens_pb.RevokeTokenRequest(id=made.info.id), metadata=bearer(created.token), timeout=10
        )
        answer = call(channel, QUERY, made.token)
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")


def test_a_suspended_accounts_calls_stop_and_go_on_when_it_is_resumed(edge: Edge) -> None:
    """B16."""
    created = edge.create_account()
    with edge.channel() as channel, edge.channel() as operator:
        stub = accounts_stubs.AccountServiceStub(operator)
        for suspended, expected in ((True, "ACCOUNT_SUSPENDED"), (False, "")):
            request = accounts_pb.UpdateAccountRequest(id=created.account.id, suspended=suspended)
            stub.UpdateAccount(request, metadata=bearer(edge.operator_token), timeout=10)
            assert call(channel, QUERY, created.token).reason == expected
            assert (created.account.id in edge.backends.keyvault.suspended) is suspended


def test_a_deleted_accounts_tokens_stop_and_its_keys_are_gone(edge: Edge) -> None:
    """B16."""
    created = edge.create_account()
    with edge.channel() as operator:
        request = accounts_pb.DeleteAccountRequest(id=created.account.id, confirm=created.account.id)
        stub = accounts_stubs.AccountServiceStub(operator)
        stub.DeleteAccount(request, metadata=bearer(edge.operator_token), timeout=10)
    assert edge.call(QUERY, created.token).reason == "TOKEN_INVALID"
    assert created.account.id in edge.backends.keyvault.destroyed


def test_disabling_a_key_reaches_a_token_for_some_collections_within_a_second(edge: Edge) -> None:
    created = edge.create_account()
    token = edge.create_token(created.token, label="c", scopes=["read"], collections=["honey"]).token
    with edge.channel() as channel:
        assert call(channel, QUERY, token).code is grpc.StatusCode.OK
        edge.backends.keyvault.disable(created.account.id)
        deadline = time.monotonic() + 1.0
        while (answer := call(channel, QUERY, token)).code is grpc.StatusCode.OK:
            assert time.monotonic() < deadline
    assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_DISABLED")


def test_a_fault_inside_tells_nothing_of_the_inside(edge: Edge) -> None:
    """A17: faults of services, of keyvault, and services that are not there."""
    created = edge.create_account()
    backends = edge.backends
    answers = []
    backends.failure = lambda: RuntimeError(
        "SELECT secret FROM /var/lib/x; arn:aws:kms:eu:1:key/2; Traceback"
    )
    answers.append(edge.call(QUERY, created.token))
    backends.failure = None
    backends.keyvault.down = True
    with edge.channel() as channel:
        stub = accounts_stubs.AccountServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.CreateAccount(
                accounts_pb.CreateAccountRequest(name="x"), metadata=bearer(edge.operator_token), timeout=10
            )
    backends.keyvault.down = False
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    backends.set_ready("vectorstore", False)
    wait_for(lambda: edge.call(QUERY, created.token).code is grpc.StatusCode.UNAVAILABLE, 5)
    answers.append(edge.call(QUERY, created.token))
    backends.set_ready("vectorstore", True)
    wait_for(lambda: edge.call(QUERY, created.token).code is grpc.StatusCode.OK, 5)
    shown = str(answers) + str(refused.value.details()) + str(refused.value.trailing_metadata())
    for leak in ("Traceback", "SELECT", "arn:", "/var", "127.0.0.1", "10.0.0.7", "upstream", "envoy", ".py"):
        assert leak not in shown, leak
    assert answers[0].code is grpc.StatusCode.INTERNAL
    assert (answers[1].reason, answers[1].retry_s) == ("UNAVAILABLE", 1.0)


def test_with_envoys_own_words_a_reply_would_tell(edge: Edge) -> None:
    """Twin of the test above."""
    created = edge.create_account()

    def weaken(config: Json) -> None:
        manager(config).pop("local_reply_config")
        for cluster in config["static_resources"]["clusters"]:
            if cluster["name"] == "vectorstore":
                cluster.pop("health_checks")
                cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"][
                    "socket_address"
                ]["port_value"] = 1

    with weakened(edge, weaken) as twin:
        answer = twin.call(QUERY, created.token)
    assert answer.code is grpc.StatusCode.UNAVAILABLE
    assert "upstream" in answer.message


def test_health_needs_no_token_and_follows_every_service(edge: Edge) -> None:
    assert edge.health() == "SERVING"
    for service in ("keyvault", "vectorstore", "ingest"):
        edge.backends.set_ready(service, False)
        wait_for(lambda: edge.health() == "NOT_SERVING", 4)
        edge.backends.set_ready(service, True)
        wait_for(lambda: edge.health() == "SERVING", 4)


def test_health_is_bounded_though_nobody_is_known(edge: Edge) -> None:
    """A16: the one method without a token has a limit of its own."""
    headers = grpc_headers("/grpc.health.v1.Health/Check")
    ca_file = edge.installation.edge_ca_file
    statuses: list[str] = []
    with raw_connection(edge.port, ca_file) as one, raw_connection(edge.port, ca_file) as other:
        # All at once, so that the outcome does not depend on how fast one answer follows another.
        sent = [(side, side.send(headers, EMPTY_MESSAGE)) for side in (one, other) for _ in range(95)]
        statuses += [side.reply(stream).grpc_status for side, stream in sent]
    assert set(statuses) == {"0", "8"}
    time.sleep(1.1)
    assert edge.health() == "SERVING"


@pytest.mark.parametrize("path", sorted(REFLECTION_METHODS))
def test_reflection_wants_a_token_and_shows_public_services_only(edge: Edge, path: str) -> None:
    """A15: any token will do, even one that may do nothing else; nothing inner can be asked for by name."""
    created = edge.create_account()
    narrow = edge.create_token(created.token, label="a", scopes=["audit"]).token
    assert edge.call(path, None).code is grpc.StatusCode.UNAUTHENTICATED
    with edge.channel() as channel:
        method = channel.stream_stream(
            path,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services="*"),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="sealcomb.v1.SearchService"),
            reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="sealcomb.internal.v1.KeyReleaseService"
            ),
            reflection_pb2.ServerReflectionRequest(
                file_by_filename="sealcomb/internal/v1/keyvault_service.proto"
            ),
        ]
        listed, public, inner, inner_file = method(iter(requests), metadata=bearer(narrow), timeout=10)
    names = {service.name for service in listed.list_services_response.service}
    assert names == {one.strip("/").split("/")[0] for one in PUBLIC_METHODS} | {"grpc.health.v1.Health"}
    assert public.file_descriptor_response.file_descriptor_proto
    assert not any(b"internal" in raw for raw in public.file_descriptor_response.file_descriptor_proto)
    assert inner.error_response.error_code == inner_file.error_response.error_code == 5


def test_grpcurl_prints_what_is_wrong_by_reflection_alone(edge: Edge) -> None:
    created = edge.create_account()
    narrow = edge.create_token(created.token, label="a", scopes=["audit"]).token
    refused = grpcurl(edge, narrow, "{}", QUERY)
    assert refused.returncode != 0
    assert '"reason":"SCOPE_MISSING"' in compact(refused.stderr)
    assert "is not recognized" not in refused.stderr
    wrong = grpcurl(edge, created.token, '{"label": "b", "scopes": ["no-such-scope"]}', CREATE_TOKEN)
    assert '"field_violations":[{"field":"scopes' in compact(wrong.stderr)
    assert "is not recognized" not in wrong.stderr


@pytest.mark.parametrize("name", ["ErrorInfo", "BadRequest", "RetryInfo", "QuotaFailure"])
def test_without_their_descriptors_details_could_not_be_named(name: str) -> None:
    """The twin: the public services alone do not import the details of errors."""
    assert public_pool().FindMessageTypeByName(f"google.rpc.{name}").full_name == f"google.rpc.{name}"
    services = [file for file in PUBLIC_FILES if file.services_by_name]
    with pytest.raises(KeyError):
        public_pool(services).FindMessageTypeByName(f"google.rpc.{name}")


def grpcurl(edge: Edge, token: str, body: str, path: str) -> subprocess.CompletedProcess[str]:
    """One call by the real program, which has no proto files."""
    return subprocess.run(
        [
            str(Path(sys.executable).parent / "grpcurl"),
            "-cacert", str(edge.installation.edge_ca_file),
            "-H", f"authorization: Bearer {token}",
            "-d", body,
            f"127.0.0.1:{edge.port}", path.strip("/"),
        ],
        capture_output=True,
        text=True,
        timeout=20,
    )  # fmt: skip


def compact(text: str) -> str:
    """The text without its white space."""
    return "".join(text.split())


def test_no_log_line_has_a_token_or_a_header_of_a_client(edge: Edge) -> None:
    """B3: after all kinds of calls, malformed ones included."""
    created = edge.create_account("canary-account-name")
    for token in (created.token, created.token[:-1], "canary-token", created.token.upper()):
        edge.call(QUERY, token, metadata=(("x-canary", "canary-header"),))
        edge.call("/canary.Service/Method", token)
        edge.call(WHOAMI, token, b"\xffcanary-malformed-body")
    with edge.channel() as channel:
        call(channel, QUERY, None, metadata=(("authorization", f"basic {created.token}"),))
        call(channel, QUERY, None, metadata=(("x-authorization", f"Bearer {created.token}"),))
    log = edge.log()
    assert "gateway started" in log
    assert "canary" not in log
    assert not TOKEN_TEXT.search(log)
    assert created.token.rsplit("_", 1)[1] not in log


def test_no_file_has_a_token_but_the_operators_own(edge: Edge) -> None:
    """B4: database, configuration, sockets' folder."""
    created = edge.create_account("canary-account-name")
    edge.create_token(created.token, label="canary-label", scopes=["read"], collections=["canary-collection"])
    for path in edge.folder.rglob("*"):
        if path.is_file() and path.name != "operator.token":
            content = path.read_bytes()
            assert created.token.encode() not in content, path
            assert edge.operator_token.encode() not in content, path
            assert b"canary-" not in content, path


def test_private_files_are_private(edge: Edge) -> None:
    assert stat.S_IMODE(edge.run_dir.stat().st_mode) == 0o700
    for path in [*edge.run_dir.iterdir(), edge.folder / "operator.token"]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert edge.process is not None
    environment = Path(f"/proc/{edge.process.pid}/environ").read_bytes()
    assert b"sealcomb_op_" not in environment
    assert b"PRIVATE KEY" not in environment


def test_no_policy_no_entry(edge: Edge) -> None:
    """While the policy process does not answer, every call is refused; then all is well again."""
    created = edge.create_account()
    assert edge.process is not None
    os.kill(edge.process.pid, signal.SIGSTOP)
    try:
        answer = edge.call(QUERY, created.token)
        assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    finally:
        os.kill(edge.process.pid, signal.SIGCONT)
    wait_for(lambda: edge.call(QUERY, created.token).code is grpc.StatusCode.OK, 5)


def test_with_failing_open_the_call_would_go_in(edge: Edge) -> None:
    """Twin of the test above: it would reach the service, whose own guard is the second lock."""
    created = edge.create_account()

    def weaken(config: Json) -> None:
        for one in manager(config)["http_filters"]:
            if one["name"] == "ext_authz":
                one["typed_config"]["failure_mode_allow"] = True

    with weakened(edge, weaken) as twin:
        assert edge.process is not None
        os.kill(edge.process.pid, signal.SIGSTOP)
        try:
            answer = twin.call(QUERY, created.token)
        finally:
            os.kill(edge.process.pid, signal.SIGCONT)
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CONTEXT_REFUSED")
    wait_for(lambda: edge.call(QUERY, created.token).code is grpc.StatusCode.OK, 5)


def test_the_running_configuration_routes_every_method_under_policy(edge: Edge) -> None:
    config = json.loads((edge.run_dir / "envoy.json").read_text())
    without = [
        route["match"]
        for route in routes(config)
        if route.get("typed_per_filter_config", {}).get("ext_authz", {}).get("disabled")
    ]
    assert [match.get("path", match.get("prefix")) for match in without] == [
        "/",
        "/",
        "/grpc.health.v1.Health/Check",
        "/",
    ]
    pipe = config["admin"]["address"]["pipe"]
    assert Path(pipe["path"]).parent == edge.run_dir
    assert stat.S_IMODE(Path(pipe["path"]).stat().st_mode) == 0o600


def test_renewed_certificates_are_served_without_a_restart(tmp_path: Path) -> None:
    """The edge's certificate and the gateway's own, replaced by rename, while calls go on."""
    with running_edge(tmp_path) as edge:
        created = edge.create_account()
        pids = edge.envoy_pids()
        before = served_certificate(edge)
        for folder in (edge.installation.edge_tls_dir, edge.installation.tls_dir("gateway")):
            (folder / "cert.pem").unlink()
        ensure_installation(edge.installation.keys_dir)
        wait_for(lambda: served_certificate(edge) != before, 5)
        assert edge.call(QUERY, created.token).code is grpc.StatusCode.OK
        assert edge.envoy_pids() == pids
        # The key and the certificate that are there now fit each other.
        TlsFiles(edge.installation.tls_dir("gateway")).read()


def served_certificate(edge: Edge) -> str:
    return ssl.get_server_certificate(("127.0.0.1", edge.port), ca_certs=str(edge.installation.edge_ca_file))


def update_limits(edge: Edge, account: str, rate: float, burst: int) -> None:
    limits = accounts_pb.Limits(calls_per_second=rate, burst=burst)
    with edge.channel() as channel:
        stub = accounts_stubs.AccountServiceStub(channel)
        request = accounts_pb.UpdateAccountRequest(id=account, limits=limits)
        stub.UpdateAccount(request, metadata=bearer(edge.operator_token), timeout=10)


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)

"""Embedders keep their contract, and name nothing of what they were given when they fail."""

from __future__ import annotations

import contextlib
import json
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from services.common.errors import FailedPrecondition, InvalidArgument, SealcombError, Unavailable
from services.ingest.embed import Embedder, open_embedder
from services.ingest.embedders.endpoint import EndpointSettings, HttpEmbedder
from services.ingest.embedders.local import OnnxEmbedder
from services.ingest.prepare_model import default_folder
from tests.certificates import TestCa, address, write_files
from tests.ingest.hash_embedder import HashEmbedder

CANARY = "canary text of a caller"
Answer = Callable[[httpx.Request], httpx.Response]


class SettableClock:
    """A clock that moves when it is slept on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slept: list[float] = []

    def now_s(self) -> float:
        return self.seconds

    def monotonic_s(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


def vector_of(text: str) -> list[float]:
    row: list[float] = (HashEmbedder(dimension=8).embed([text])[0] * 3.0).tolist()
    return row


def honest(request: httpx.Request) -> httpx.Response:
    texts = json.loads(request.content)["input"]
    data = [{"index": index, "embedding": vector_of(text)} for index, text in enumerate(texts)]
    return httpx.Response(200, json={"data": data[::-1]})


def endpoint(answer: Answer, clock: SettableClock | None = None, **settings: Any) -> HttpEmbedder:
    clock = clock or SettableClock()
    return HttpEmbedder(
        EndpointSettings("https://embedder.test/v1", "small", **settings),
        clock=clock,
        sleep=clock.sleep,
        jitter=lambda: 1.0,
        transport=httpx.MockTransport(answer),
    )


def after_first(then: Answer) -> Answer:
    """Honest for the question of the dimension, `then` afterwards."""
    asked = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return honest(request) if asked == 1 else then(request)

    return answer


@pytest.fixture(scope="module")
def minilm() -> OnnxEmbedder:
    return OnnxEmbedder(default_folder())


@pytest.fixture(params=["onnx", "http", "hash"])
def embedder(request: pytest.FixtureRequest, minilm: OnnxEmbedder) -> Embedder:
    made: dict[str, Embedder] = {"onnx": minilm, "http": endpoint(honest), "hash": HashEmbedder()}
    return made[request.param]


# --- the contract, for every kind ---------------------------------------------------------------


def test_vectors_are_float32_of_unit_length_in_the_order_asked(embedder: Embedder) -> None:
    texts = ["wax seals a cell", "bees", "wax seals a cell", ""]
    vectors = embedder.embed(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, embedder.dimension)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert (vectors[0] == vectors[2]).all()
    assert (embedder.embed(["bees"])[0] == vectors[1]).all()


def test_no_texts_give_no_rows(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, embedder.dimension)


def test_an_embedder_says_who_it_is_and_how_much_it_takes(embedder: Embedder) -> None:
    assert embedder.name
    assert len(embedder.fingerprint) == 64
    assert 0 < embedder.count_tokens("one two three") <= embedder.max_tokens


def test_several_threads_may_embed_at_once(embedder: Embedder) -> None:
    texts = [f"text number {number}" for number in range(12)]
    wanted = embedder.embed(texts)
    found: dict[int, np.ndarray[Any, Any]] = {}
    threads = [
        threading.Thread(target=lambda at=at: found.__setitem__(at, embedder.embed(texts))) for at in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all((vectors == wanted).all() for vectors in found.values())


@pytest.mark.parametrize("kind", ["onnx", "http"])
def test_a_text_that_is_too_long_is_refused_before_any_work(kind: str, minilm: OnnxEmbedder) -> None:
    embedder: Embedder = minilm if kind == "onnx" else endpoint(honest)
    with pytest.raises(InvalidArgument) as caught:
        embedder.embed(["x" * 100_001])
    assert caught.value.fields[0].field == "text"


# --- the model in this process ------------------------------------------------------------------


def test_near_meanings_are_near(minilm: OnnxEmbedder) -> None:
    cat, kitten, invoice = minilm.embed(["a cat sleeps", "the kitten is napping", "unpaid invoice of March"])
    assert cat @ kitten > cat @ invoice + 0.3


def test_tokens_past_the_limit_do_not_count_and_those_before_do(minilm: OnnxEmbedder) -> None:
    """The tokenizer's own file would cut at 128."""
    base = "word " * 506
    assert minilm.count_tokens(base) == 508
    assert minilm.count_tokens(base * 4) == 2026
    long, longer, changed = minilm.embed(
        [base + "a b c d", base + "a b c d e f", "word " * 400 + "zebra " * 110]
    )
    assert (long == longer).all()
    assert long @ changed < 0.99


def test_a_changed_graph_is_refused(tmp_path: Path) -> None:
    shutil.copytree(default_folder(), tmp_path / "model")
    with (tmp_path / "model" / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(ValueError, match="is not the file"):
        OnnxEmbedder(tmp_path / "model")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model\.onnx"):
        OnnxEmbedder(tmp_path)


@pytest.mark.parametrize(("pooling", "rows"), [("mean", slice(None)), ("cls", slice(0, 1))])
def test_a_foreign_graph_with_a_vector_a_token_is_pooled_here(
    tmp_path: Path, pooling: str, rows: slice
) -> None:
    table = np.random.default_rng(3).normal(size=(30522, 8)).astype(np.float32)
    write_token_model(tmp_path, table, {"pooling": pooling, "max_tokens": 16})
    embedder = OnnxEmbedder(tmp_path)
    ids = embedder._tokenizer.encode("wax and honey").ids
    wanted = table[ids][rows].mean(axis=0)
    assert embedder.dimension == 8
    assert np.abs(embedder.embed(["wax and honey"])[0] - wanted / np.linalg.norm(wanted)).max() < 1e-5


def test_the_fingerprint_of_a_foreign_folder_follows_weights_and_pooling(tmp_path: Path) -> None:
    table = np.ones((30522, 8), dtype=np.float32)
    prints = set()
    for weight, pooling in ((1.0, "mean"), (2.0, "mean"), (2.0, "cls")):
        write_token_model(tmp_path, table * np.float32(weight), {"pooling": pooling})
        prints.add(OnnxEmbedder(tmp_path).fingerprint)
    assert len(prints) == 3


def test_a_model_that_gives_nothing_usable_is_a_typed_error(tmp_path: Path) -> None:
    table = np.full((30522, 8), np.nan, dtype=np.float32)
    write_token_model(tmp_path, table, {})
    with pytest.raises(FailedPrecondition) as caught:
        OnnxEmbedder(tmp_path)
    assert caught.value.reason == "EMBEDDER_MISMATCH"


def write_token_model(folder: Path, table: np.ndarray[Any, Any], manifest: dict[str, Any]) -> None:
    """A model that looks each token up in `table`, with the inputs an exported BERT has."""
    shape = ["batch", "length"]
    names = ("input_ids", "attention_mask", "token_type_ids")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "table",
        [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in names],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, table.shape[1]])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    shutil.copy(default_folder() / "tokenizer.json", folder / "tokenizer.json")
    (folder / "model.json").write_text(json.dumps(manifest))


# --- the endpoint -------------------------------------------------------------------------------


def test_the_endpoint_is_asked_as_the_protocol_says() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return honest(request)

    embedder = endpoint(answer, texts_per_call_max=2)
    assert embedder.embed(["a", "b", "c"]).shape == (3, 8)
    assert [json.loads(request.content)["input"] for request in seen] == [["dimension"], ["a", "b"], ["c"]]
    assert str(seen[0].url) == "https://embedder.test/v1/embeddings"
    assert json.loads(seen[0].content)["model"] == "small"
    assert seen[0].headers["accept-encoding"] == "identity"
    assert "authorization" not in seen[0].headers


def test_the_key_comes_from_its_file_and_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret-key\n")
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return honest(request)

    embedder = endpoint(answer, api_key_file=tmp_path / "key")
    assert seen == ["Bearer secret-key"]
    assert "secret-key" not in repr(embedder)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_endpoint_is_asked_again_a_bounded_number_of_times(status: int) -> None:
    clock = SettableClock()
    asked = 0

    def busy(_request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return httpx.Response(status, headers={"retry-after": "2"}, text=CANARY)

    embedder = endpoint(after_first(busy), clock)
    with pytest.raises(Unavailable) as caught:
        embedder.embed([CANARY])
    assert asked == 3
    assert clock.slept == [2.0, 2.0]
    assert caught.value.reason == "EMBEDDER_UNAVAILABLE"
    assert caught.value.retry_after_s == 2.0


def test_a_passing_fault_is_not_seen_by_the_caller() -> None:
    faults = iter([httpx.ConnectError(CANARY), httpx.ReadTimeout(CANARY)])

    def answer(request: httpx.Request) -> httpx.Response:
        fault = next(faults, None)
        if fault is not None:
            raise fault
        return honest(request)

    assert endpoint(after_first(answer)).embed(["a"]).shape == (1, 8)


def test_no_attempt_begins_after_the_deadline() -> None:
    clock = SettableClock()
    asked = 0

    def slow(_request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        clock.seconds += 20.0
        raise httpx.ReadTimeout("slow")

    embedder = endpoint(after_first(slow), clock, attempts_max=10)
    with pytest.raises(Unavailable):
        embedder.embed(["a"])
    assert asked == 2


def test_an_answer_that_drips_ends_at_the_deadline() -> None:
    """The client's own timeout begins anew with every read."""
    clock = SettableClock()
    pieces = 0

    def drip() -> Iterator[bytes]:
        nonlocal pieces
        while pieces < 1000:
            pieces += 1
            clock.seconds += 1.0
            yield b" "

    embedder = endpoint(after_first(lambda _request: httpx.Response(200, content=drip())), clock)
    with pytest.raises(Unavailable):
        embedder.embed(["a"])
    assert pieces == 31


def test_a_refusal_is_not_repeated_and_a_redirect_not_followed() -> None:
    for status in (301, 307, 400, 401, 404):
        asked = 0

        def refuse(_request: httpx.Request, status: int = status) -> httpx.Response:
            nonlocal asked
            asked += 1
            return httpx.Response(status, headers={"location": "https://elsewhere.test/"}, text=CANARY)

        with pytest.raises(FailedPrecondition) as caught:
            endpoint(after_first(refuse)).embed([CANARY])
        assert asked == 1
        assert CANARY not in str(caught.value)


ROW = [1.0] * 8
BAD_ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"<html>" + CANARY.encode(),
    "no data": b'{"error": "x"}',
    "a list": b"[]",
    "too few": json.dumps({"data": []}).encode(),
    "too many": json.dumps({"data": [{"index": at, "embedding": ROW} for at in range(3)]}).encode(),
    "twice the same": json.dumps({"data": [{"index": 0, "embedding": ROW}] * 2}).encode(),
    "an odd index": json.dumps(
        {"data": [{"index": 0, "embedding": ROW}, {"index": [], "embedding": ROW}]}
    ).encode(),
    "another dimension": json.dumps(
        {"data": [{"index": at, "embedding": ROW[:7]} for at in range(2)]}
    ).encode(),
    "ragged rows": json.dumps(
        {"data": [{"index": at, "embedding": ROW[: 8 - at]} for at in range(2)]}
    ).encode(),
    "words": json.dumps({"data": [{"index": at, "embedding": ["w"] * 8} for at in range(2)]}).encode(),
    "no numbers": json.dumps({"data": [{"index": at, "embedding": None} for at in range(2)]}).encode(),
    "NaN": json.dumps({"data": [{"index": at, "embedding": [float("nan")] * 8} for at in range(2)]}).encode(),
    "zero": json.dumps({"data": [{"index": at, "embedding": [0.0] * 8} for at in range(2)]}).encode(),
    "a number past all floats": json.dumps(
        {"data": [{"index": at, "embedding": [10**400] * 8} for at in range(2)]}
    ).encode(),
    "a deep nest": b"[" * 60_000,
    "too long": b" " * 200_000,
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_an_answer_that_is_amiss_is_refused_and_not_quoted(name: str) -> None:
    embedder = endpoint(after_first(lambda _request: httpx.Response(200, content=BAD_ANSWERS[name])))
    with pytest.raises(FailedPrecondition) as caught:
        embedder.embed(["a", "b"])
    assert caught.value.reason == "EMBEDDER_MISMATCH"
    assert CANARY not in printed(caught.value)


def test_a_compressed_answer_is_refused_so_that_it_cannot_unfold() -> None:
    packed = httpx.Response(200, headers={"content-encoding": "identity"}, content=b"{}")
    with pytest.raises(FailedPrecondition, match="compressed"):
        endpoint(after_first(lambda _request: packed)).embed(["a"])


def test_a_failure_names_neither_text_nor_address() -> None:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError(f"{CANARY} https://embedder.test")

    with pytest.raises(Unavailable) as caught:
        endpoint(after_first(fail)).embed([CANARY])
    assert CANARY not in printed(caught.value)
    assert "embedder.test" not in printed(caught.value)


def printed(error: SealcombError) -> str:
    """What of an error and its stated cause a traceback would print."""
    return f"{error} {error.__cause__!r}"


class Handler(BaseHTTPRequestHandler):
    """The honest endpoint behind a real socket."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = honest(httpx.Request("POST", "http://x", content=body)).content
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing to the terminal."""


class QuietServer(ThreadingHTTPServer):
    """A handshake that the client broke off is what some tests are about."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing to the terminal."""


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """The endpoint on a free port of this machine, over TLS where a context is given."""
    with QuietServer(("127.0.0.1", 0), Handler) as listener:
        if context is not None:
            listener.socket = context.wrap_socket(
                listener.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield listener.server_port
        finally:
            listener.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[str]:
    with serving() as port:
        yield f"http://127.0.0.1:{port}/v1"


def test_a_real_server_is_asked_without_the_environments_proxy(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    embedder = open_embedder(f"{server}#small")
    assert np.abs(embedder.embed(["bees"])[0] - HashEmbedder(dimension=8).embed(["bees"])[0]).max() < 1e-6
    embedder.close()


def test_the_environments_proxy_would_have_been_used(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: a client that trusts the environment goes to the proxy, which is not there."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with httpx.Client() as client, pytest.raises(httpx.ConnectError):
        client.post(f"{server}/embeddings", json={"input": ["a"]})


def test_only_a_certificate_of_a_known_authority_is_accepted(tmp_path: Path) -> None:
    """With the authority's file the same server answers, so it is the check that refuses it."""
    write_files(tmp_path, TestCa.make().issue([address("127.0.0.1")]))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with serving(context) as port:
        spec = f"https://127.0.0.1:{port}/v1#small"
        settings = EndpointSettings.parse(spec)
        with pytest.raises(Unavailable):
            HttpEmbedder(settings, clock=SettableClock(), sleep=lambda _seconds: None)
        opened = open_embedder(spec, ca_file=tmp_path / "ca.pem")
        assert opened.dimension == 8
        opened.close()


# --- the factory --------------------------------------------------------------------------------


def test_the_factory_opens_a_folder(minilm: OnnxEmbedder) -> None:
    opened = open_embedder(f"onnx:{default_folder()}")
    assert (opened.name, opened.fingerprint) == (minilm.name, minilm.fingerprint)


@pytest.mark.parametrize(
    "spec",
    ["", "onnx:", "openai", "https://host/v1", "https:///v1#m", "http://host.test/v1#m", "https://u:p@host/v1#m",
     "https://host/v1?key=1#m", "file:///etc/passwd#m", "http://127.0.0.1.host.test/v1#m"],
)  # fmt: skip
def test_a_spec_that_means_nothing_or_is_unsafe_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="embed"):
        open_embedder(spec)

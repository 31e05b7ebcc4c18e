"""The second door of a whole installation: one story by JSON alone, and what it leaves in the logs."""

from __future__ import annotations

import base64
import secrets
import ssl
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.attacks.canary import Canaries, files_below
from tests.system.installation import Account, Installation


@pytest.fixture
def api(installation: Installation, account: Account) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=str(account.connection.ca_file))
    with httpx.Client(
        verify=context,
        base_url=f"https://localhost:{installation.http_port}",
        headers={"authorization": f"Bearer {account.connection.token}"},
        timeout=60,
        trust_env=False,
    ) as client:
        yield client


def test_a_document_goes_in_is_found_comes_back_and_goes(api: httpx.Client) -> None:
    name = f"http {secrets.token_hex(4)}/é"
    path = "/v1/collections/" + "".join(f"%{byte:02X}" for byte in name.encode())
    text = b"Drones leave the hive in autumn. " * 40
    assert api.post("/v1/collections", json={"name": name, "embedder": "default"}).status_code == 200
    header = {"header": {"collection": name, "name": "drones.txt", "metadata": {"season": "autumn"}}}
    parts = [
        header,
        *({"chunk": base64.b64encode(text[at : at + 500]).decode()} for at in range(0, len(text), 500)),
    ]
    uploaded = api.post("/v1/documents:upload", json=parts)
    assert uploaded.status_code == 200, uploaded.text
    document = uploaded.json()["document"]
    assert document["size_bytes"] == str(len(text))
    (hit,) = api.post(f"{path}:search", json={"query": "when do drones leave?", "top_k": 1}).json()["hits"]
    assert (hit["document_id"], hit["metadata"]) == (document["id"], {"season": "autumn"})
    listed = api.get(f"{path}/documents", params={"page_size": 5}).json()["documents"]
    assert [one["id"] for one in listed] == [document["id"]]
    first, *chunks = api.get(f"{path}/documents/{document['id']}:download").json()
    assert int(first["document"]["size_bytes"]) == len(text)
    assert b"".join(base64.b64decode(one["chunk"]) for one in chunks) == text
    assert api.delete(f"{path}/documents/{document['id']}").json() == {}
    assert api.delete(path).status_code == 200
    gone = api.get(path)
    assert (gone.status_code, gone.json()["reason"]) == (404, "COLLECTION_NOT_FOUND")


def test_one_id_names_a_call_in_its_answer_the_access_log_and_the_audit_chain(
    installation: Installation, api: httpx.Client
) -> None:
    rotated = api.post("/v1/key:rotate", json={})
    assert rotated.status_code == 200
    request_id = rotated.headers["x-request-id"]
    events: list[dict[str, str]] = []
    page = ""
    while True:
        body = api.get("/v1/audit/events", params={"page_size": 100, "page_token": page}).json()
        events += body["events"]
        if not (page := body["next_page_token"]):
            break
    assert [one["action"] for one in events if one["request_id"] == request_id] == ["key.rotate"]
    log = installation.data / "logs" / "gateway.log"
    deadline = time.monotonic() + 20
    while request_id not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_no_name_text_or_token_of_a_json_call_is_in_a_log(
    installation: Installation, account: Account, api: httpx.Client
) -> None:
    """G14, B3: in paths, queries and bodies, of calls that succeed and that do not."""
    canaries = Canaries()
    secret = canaries.text("name", "canary name 5f0e7c1d9a3b42e8 of a collection")
    canaries.text("token", account.connection.token)
    for path in (
        f"/v1/collections/{secret}",
        f"/v1/collections/{secret}/points",
        f"/v1/{secret}",
        f"/{secret}",
    ):
        api.get(path)
        api.get(path, params={"page_token": secret, secret: secret})
        api.post(f"{path}:search", json={"query": secret})
        api.post(f"{path}:search", content=secret.encode())
    last = api.get("/v1/whoami").headers["x-request-id"]
    log = installation.data / "logs" / "gateway.log"
    deadline = time.monotonic() + 20
    while last not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    leaks = [
        leak
        for file in files_below(installation.data / "logs")
        for leak in canaries.find(file.read_bytes(), file.name)
    ]
    assert leaks == []
    # The twin: had the log the path, the scan would find it.
    assert canaries.find(b'{"path":"/v1/collections/' + secret.encode() + b'"}', "planted")

"""A server that speaks AWS KMS's JSON protocol and STS's AssumeRole, with faults to order.

`states` decides what is right; this adds the wire, the quota, delays, faults and a log of what was asked.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from tests.keyvault.kms.aws_states import ROOT, AwsStates, Refused

OUR_ACCESS_KEY = "AKIDOURSELVESOURSELV"
_CREDENTIAL = re.compile(r"Credential=(?P<key>[A-Z0-9]+)/\d{8}/(?P<region>[a-z0-9-]+)/(kms|sts)/aws4_request")
_ASSUMED = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>{}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken>
<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""
_STS_ERROR = "<ErrorResponse><Error><Code>{}</Code><Message/></Error></ErrorResponse>"


@dataclass(frozen=True)
class Asked:
    """One call as it came."""

    principal: str
    operation: str
    body: dict[str, Any]


@dataclass
class Faults:
    """What goes wrong, until it is set back."""

    delay_s: float = 0.0
    delay_by_key: dict[str, float] = field(default_factory=dict)
    # Calls a second in the whole region, as AWS's quota is.
    quota: int = 0
    # Error codes for the next calls, in order.
    codes: deque[tuple[str, int]] = field(default_factory=deque)
    # Closes the connection without an answer.
    hang_up: bool = False
    # The key that an answer says it came from, instead of the right one.
    answer_key: str = ""


class AwsFake:
    """The server, on a free port of loopback."""

    def __init__(self) -> None:
        self.states = AwsStates()
        self.faults = Faults()
        self.asked: list[Asked] = []
        self.in_flight: dict[str, int] = {}
        self.in_flight_max: dict[str, int] = {}
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens, on the same port as before."""
        fake = self

        class Handler(_Handler):
            """A handler of this fake."""

            owner = fake

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def operations(self, name: str) -> list[Asked]:
        """The calls of one operation."""
        return [asked for asked in self.asked if asked.operation == name]

    def answer(self, authorization: str, target: str, body: dict[str, Any]) -> dict[str, Any]:
        """One call of KMS. Raises Refused."""
        operation = target.removeprefix("TrentService.")
        found = _CREDENTIAL.search(authorization)
        if found is None:
            raise Refused("MissingAuthenticationTokenException")
        if found["region"] != self.states.region:
            raise Refused("InvalidSignatureException")
        principal = ROOT if found["key"] == OUR_ACCESS_KEY else self.states.sessions.get(found["key"], "")
        if not principal:
            raise Refused("UnrecognizedClientException")
        account = str(body.get("EncryptionContext", {}).get("account", ""))
        with self._lock:
            self.asked.append(Asked(principal, operation, body))
            self._over_quota()
            fault = self.faults.codes.popleft() if self.faults.codes else None
            self.in_flight[account] = self.in_flight.get(account, 0) + 1
            self.in_flight_max[account] = max(self.in_flight_max.get(account, 0), self.in_flight[account])
        try:
            time.sleep(self.faults.delay_by_key.get(body.get("KeyId", ""), self.faults.delay_s))
            if fault is not None:
                raise Refused(*fault)
            with self._lock:
                answer = self.states.perform(principal, operation, body)
        finally:
            with self._lock:
                self.in_flight[account] -= 1
        if self.faults.answer_key and "KeyId" in answer:
            answer["KeyId"] = self.faults.answer_key
        return answer

    def _over_quota(self) -> None:
        if not self.faults.quota:
            return
        now_s = time.monotonic()
        while self._seconds and self._seconds[0] < now_s - 1:
            self._seconds.popleft()
        if len(self._seconds) >= self.faults.quota:
            raise Refused("ThrottlingException")
        self._seconds.append(now_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Stopping the fake also hangs up what is connected.
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: AwsFake
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        """KMS by its target header, else STS."""
        raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        fake = self.owner
        if fake._server is None or fake.faults.hang_up:
            self.close_connection = True
            return
        target = self.headers.get("X-Amz-Target", "")
        if not target:
            self._assume({name: values[0] for name, values in parse_qs(raw.decode()).items()})
            return
        try:
            answer = fake.answer(self.headers.get("Authorization", ""), target, json.loads(raw))
            self._reply(200, json.dumps(answer).encode())
        except Refused as error:
            self._reply(error.status, json.dumps({"__type": error.code, "message": "no"}).encode())

    def _assume(self, form: dict[str, str]) -> None:
        try:
            access_key = self.owner.states.assume(form.get("RoleArn", ""), form.get("ExternalId", ""))
            self._reply(200, _ASSUMED.format(access_key).encode(), "text/xml")
        except Refused as error:
            self._reply(error.status, _STS_ERROR.format(error.code).encode(), "text/xml")

    def _reply(self, status: int, content: bytes, kind: str = "application/x-amz-json-1.1") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
        """Nothing is printed."""

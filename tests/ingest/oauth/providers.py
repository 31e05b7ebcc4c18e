"""Real OAuth servers for tests, a source that their tokens open, and a user who logs in and agrees.

The servers are npm's oidc-provider, certified, in processes of their own; the user is a program that
follows redirects and sends the forms it is shown.
"""

from __future__ import annotations

import asyncio
import html
import itertools
import json
import queue
import re
import secrets
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx

from services.ingest.egress.client import Egress
from services.ingest.sources.contract import (
    Batch,
    Credential,
    CredentialRefused,
    Fetched,
    Item,
    OAuthProfile,
    Source,
    SourceSettings,
)
from tests.certificates import TestCa, address

FOLDER = Path(__file__).parent / "provider"
_FORM = re.compile(r'<form[^>]*action="([^"]+)"[^>]*>(.*?)</form>', re.DOTALL)
_INPUT = re.compile(r'<input[^>]*name="([^"]+)"[^>]*value="([^"]*)"')
_START_S = 30.0


@dataclass
class Provider:
    """One running server."""

    process: subprocess.Popen[str]
    issuer: str
    client_id: str
    client_secret: str
    events: list[dict[str, Any]]
    tls: ssl.SSLContext
    scopes: tuple[str, ...] = ("docs.read",)
    marks: Iterator[int] = field(default_factory=itertools.count)

    @property
    def netloc(self) -> str:
        """Its host and port."""
        return urlsplit(self.issuer).netloc

    def profile(self, **changes: Any) -> OAuthProfile:
        """How a source says that it is used."""
        return OAuthProfile(
            **{
                "authorize_url": f"{self.issuer}/auth",
                "token_url": f"{self.issuer}/token",
                "revoke_url": f"{self.issuer}/token/revocation",
                "device_url": f"{self.issuer}/device/auth",
                "issuer": self.issuer,
                "scopes": ("openid", "offline_access", *self.scopes),
                "revocation": "rfc7009",
                "refresh": "rotating",
                "authorize_parameters": {"prompt": "consent"},
                **changes,
            }
        )

    def count(self, event: str, **fields: Any) -> int:
        """How often something happened, as far as it is known yet; for those who wait for it."""
        wanted = {"event": event, **fields}
        return sum(
            all(seen.get(name) == value for name, value in wanted.items()) for seen in list(self.events)
        )

    async def counted(self, event: str, **fields: Any) -> int:
        """How often something has happened until now."""
        # What the server says comes by a pipe, in order: once it says that we were here, the rest is known.
        path = f"/mark/{next(self.marks)}"
        async with httpx.AsyncClient(verify=self.tls, trust_env=False, timeout=60) as visitor:
            await visitor.get(f"{self.issuer}{path}")
        async with asyncio.timeout(60):
            while not self.count("request", path=path):  # noqa: ASYNC110  (said by another process)
                await asyncio.sleep(0.01)
        return self.count(event, **fields)


@contextmanager
def provider(
    folder: Path,
    ca: TestCa,
    kinds: tuple[str, ...],
    *,
    access_token_s: int = 3600,
    github: Mapping[str, str] | None = None,
    pkce: bool = True,
) -> Iterator[Provider]:
    """A server for the block, with one client that loopback programs use.

    With `github`, texts by path, it is as a GitHub Enterprise server is with one repository. Its tokens say
    that they live for `access_token_s`; its API takes them for a minute at least, for slow machines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    material = ca.issue([address("127.0.0.1")])
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(material.certificate)
    key.write_bytes(material.key)
    tls = ssl.create_default_context(cadata=material.ca.decode())
    client_id, client_secret = f"client {secrets.token_hex(4)}", secrets.token_urlsafe(24)
    client = {
        "client_id": client_id,
        "client_secret": client_secret,
        "application_type": "native",
        "token_endpoint_auth_method": "client_secret_post",
        "redirect_uris": [f"http://127.0.0.1/callback/{kind}" for kind in kinds],
        "grant_types": [
            "authorization_code",
            "refresh_token",
            "urn:ietf:params:oauth:grant-type:device_code",
        ],
        "response_types": ["code"],
    }
    settings = {
        "cert": str(cert),
        "key": str(key),
        "accessTokenSeconds": access_token_s,
        "scopes": ["docs.read", "docs.write", "repo"],
        "github": github,
        "pkce": pkce,
        "clients": [client],
    }
    assert (FOLDER / "node_modules").is_dir(), "run `make node-packages` first"
    process = subprocess.Popen(
        ["node", "--no-warnings", "provider.mjs", json.dumps(settings)],
        cwd=FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    events: list[dict[str, Any]] = []
    started: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                event = json.loads(line)
                events.append(event)
                if event["event"] == "listening":
                    started.put(event["issuer"])

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield Provider(process, started.get(timeout=_START_S), client_id, client_secret, events, tls)
    finally:
        process.kill()
        process.wait()
        reader.join(5)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class User:
    """Somebody with a browser, who logs in and agrees to everything."""

    def __init__(self, ca: TestCa, folder: Path) -> None:
        (folder / "user-ca.pem").write_bytes(ca.issue([]).ca)
        self._tls = ssl.create_default_context(cafile=str(folder / "user-ca.pem"))

    async def grant(self, url: str, redirect_uri: str, name: str = "alice") -> dict[str, str]:
        """Follows an authorization address to its end; what the redirect brought."""
        async with httpx.AsyncClient(verify=self._tls, trust_env=False) as browser:
            answer = await browser.get(url)
            for _ in range(12):
                location = answer.headers.get("location", "")
                if location.startswith(redirect_uri):
                    return {key: values[0] for key, values in parse_qs(urlsplit(location).query).items()}
                if location:
                    answer = await browser.get(urljoin(str(answer.url), location))
                    continue
                answer = await self._agree(browser, answer, name)
        raise AssertionError("the provider never redirected back")

    async def enter(self, verification_uri: str, user_code: str, name: str = "alice") -> None:
        """Enters a device's code and agrees."""
        async with httpx.AsyncClient(verify=self._tls, trust_env=False, follow_redirects=True) as browser:
            answer = await browser.get(f"{verification_uri}?user_code={user_code}")
            for _ in range(8):
                if "<form" not in answer.text:
                    return
                answer = await self._agree(browser, answer, name)

    async def _agree(self, browser: httpx.AsyncClient, answer: httpx.Response, name: str) -> httpx.Response:
        form = _FORM.search(answer.text)
        assert form is not None, answer.text[:500]
        fields = {key: html.unescape(value) for key, value in _INPUT.findall(form[2])}
        if 'name="login"' in form[2]:
            fields |= {"login": name, "password": "anything"}
        return await browser.post(urljoin(str(answer.url), html.unescape(form[1])), data=fields)


class GuardedSettings(SourceSettings):
    """Nothing to set."""

    folder: str = ""


@dataclass
class GuardedSourceType:
    """A source behind a real provider: each listing and fetch is a call of its API."""

    provider: Provider
    kind: ClassVar[str] = "guarded"
    title: ClassVar[str] = "Guarded"
    token_form: ClassVar[str] = "an access token"
    settings_model: ClassVar[type[SourceSettings]] = GuardedSettings
    oauth: OAuthProfile | None = None
    items: int = 2
    # Called before each fetch.
    pace: Any = None
    seen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.oauth = self.oauth or self.provider.profile()

    def hosts(self, settings: Any) -> tuple[str, ...]:
        """The provider's."""
        return (self.provider.netloc,)

    def open(self, settings: Any, credential: Credential | None, egress: Egress) -> Source:
        """The source."""
        assert credential is not None
        return _GuardedSource(self, credential, egress)


class OtherSourceType(GuardedSourceType):
    """The same under another name, for another provider."""

    kind: ClassVar[str] = "other"


class _GuardedSource:
    kind = "guarded"

    def __init__(self, type_: GuardedSourceType, credential: Credential, egress: Egress) -> None:
        self._type = type_
        self._credential = credential
        self._egress = egress

    async def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """As many items as there are."""
        await self._get("/api/list")
        items = tuple(
            Item(f"i{n}", f"item {n}.txt", "1", f"{self._type.provider.issuer}/i{n}")
            for n in range(self._type.items)
        )
        yield Batch(items, b"end", complete=True, full=True)

    async def fetch(self, item: Item) -> Fetched:
        """Whose it is."""
        if self._type.pace is not None:
            await self._type.pace(item)
        await self._get(f"/api/{item.id}")
        self._type.seen.append(item.id)
        return Fetched(f"content of {item.id}".encode(), "text/plain")

    async def _get(self, path: str) -> None:
        url, hosts = f"{self._type.provider.issuer}{path}", (self._type.provider.netloc,)
        for refused in (False, True):
            token = await self._credential.token(refused=refused)
            answer = await self._egress.send(
                "GET", url, authorization=f"Bearer {token}", authorized_hosts=hosts
            )
            if answer.status == 200:
                return
        raise CredentialRefused("not accepted")

"""OAuth 2.0 as a client speaks it to a provider: RFC 6749, 7009, 7636 (S256 always), 8628, 9207.

Client secrets and tokens go to the profile's own endpoints alone, by way of the egress client, which
follows no redirect of a POST. What a provider answers is checked before it is believed, and its
texts are never repeated: only its registered error codes have a meaning here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote_plus, urlencode

from services.common.clock import Clock
from services.common.errors import FailedPrecondition, SealcombError, Unavailable
from services.ingest.connections.records import Client, Revoked, Tokens
from services.ingest.egress.client import Answer
from services.ingest.egress.refusals import AnswerTooLarge, EgressRefused
from services.ingest.sources.contract import CredentialRefused, OAuthProfile

_ANSWER_BYTES_MAX = 256 * 1024
_TIMEOUT_S = 15.0
_TOKEN = re.compile(r"[\x21-\x7e]{1,8192}")
# RFC 6749, 3.3. People are shown what was granted.
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,512}")
_SCOPES_MAX = 200
_EXPIRE_S_MAX = 10 * 365 * 86_400
_POLL_S_DEFAULT = 5
_POLL_S_MAX = 60
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
# The grant is worth nothing any more; anything else may be the provider's passing trouble.
_GRANT_DEAD = frozenset({"invalid_grant", "bad_refresh_token", "token_revoked", "invalid_refresh_token"})
_PENDING = frozenset({"authorization_pending", "slow_down"})


class ProviderRefused(FailedPrecondition):
    """The provider does not give what was asked for."""

    reason = "PROVIDER_REFUSED"


class GrantPending(Unavailable):
    """The user has not answered yet."""

    reason = "AUTHORIZATION_PENDING"


class Sender(Protocol):
    """The one way out; see services.ingest.egress."""

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        authorization: str = "",
        authorized_hosts: tuple[str, ...] = (),
        body_bytes_max: int | None = None,
        timeout_s: float | None = None,
        redirects_max: int | None = None,
    ) -> Answer:
        """One request and its answer."""


@dataclass(frozen=True, slots=True)
class DeviceGrant:
    """What the user is shown in the device flow, and the code to ask with meanwhile."""

    device_code: str = field(repr=False)
    user_code: str
    verification_uri: str
    expire_s: int
    poll_s: int


def challenge_of(verifier: str) -> str:
    """The S256 challenge of a verifier (RFC 7636, 4.2)."""
    digest = hashlib.sha256(verifier.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def authorization_url(
    profile: OAuthProfile, client: Client, redirect_uri: str, state: str, verifier: str
) -> str:
    """Where the user grants access."""
    query = {
        **profile.authorize_parameters,
        "response_type": "code",
        "client_id": client.id,
        "redirect_uri": redirect_uri,
        "state": state,
        "code_challenge": challenge_of(verifier),
        "code_challenge_method": "S256",
    }
    if profile.scopes:
        query[profile.scope_parameter] = profile.scope_separator.join(profile.scopes)
    joint = "&" if "?" in profile.authorize_url else "?"
    return f"{profile.authorize_url}{joint}{urlencode(query)}"


class OAuth:
    """Speaks to providers."""

    def __init__(self, sender: Sender, clock: Clock) -> None:
        self._sender = sender
        self._clock = clock

    async def exchange(
        self, profile: OAuthProfile, client: Client, code: str, verifier: str, redirect_uri: str
    ) -> Tokens:
        """The tokens for an authorization code. Raises ProviderRefused."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        return self._tokens(profile, await self._ask(profile, client, profile.token_url, form))

    async def refresh(self, profile: OAuthProfile, client: Client, refresh_token: str) -> Tokens:
        """New tokens; without a new refresh token the old one goes on. Raises CredentialRefused for good."""
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        fields = await self._ask(profile, client, profile.token_url, form)
        return self._tokens(profile, fields, refresh_token)

    async def begin_device(self, profile: OAuthProfile, client: Client) -> DeviceGrant:
        """Begins the device flow (RFC 8628, 3.1)."""
        form = {profile.scope_parameter: profile.scope_separator.join(profile.scopes)}
        fields = await self._ask(profile, client, profile.device_url, form)
        poll_s = _number(fields.get("interval"), _POLL_S_DEFAULT)
        return DeviceGrant(
            device_code=_token(fields.get("device_code")),
            user_code=_token(fields.get("user_code")),
            verification_uri=_address(fields.get("verification_uri") or fields.get("verification_url")),
            expire_s=_number(fields.get("expires_in"), 600),
            poll_s=max(1, min(poll_s, _POLL_S_MAX)),
        )

    async def poll_device(self, profile: OAuthProfile, client: Client, device_code: str) -> Tokens:
        """The tokens, once the user has granted; until then raises GrantPending."""
        form = {"grant_type": _DEVICE_GRANT, "device_code": device_code}
        return self._tokens(profile, await self._ask(profile, client, profile.token_url, form))

    async def revoke(self, profile: OAuthProfile, client: Client, tokens: Tokens) -> Revoked:
        """Tells the provider that its tokens are no longer wanted. Never raises for what a provider does."""
        if profile.revocation == "none" or not profile.revoke_url:
            return Revoked.NOT_SUPPORTED
        try:
            done = await self._revoke(profile, client, tokens)
        except SealcombError:
            done = False
        return Revoked.REVOKED if done else Revoked.FAILED

    async def _revoke(self, profile: OAuthProfile, client: Client, tokens: Tokens) -> bool:
        if profile.revocation == "rfc7009":
            # The refresh token first: with it goes, at most providers, all that came from it.
            kinds = (("refresh_token", tokens.refresh), ("access_token", tokens.access))
            answers = [
                await self._post(
                    profile, client, profile.revoke_url, {"token": token, "token_type_hint": kind}
                )
                for kind, token in kinds
                if token
            ]
            return all(answer.status == 200 for answer in answers)
        if profile.revocation == "bearer":
            answer = await self._send(profile, "POST", profile.revoke_url, f"Bearer {tokens.access}", b"", {})
            return answer.status == 200 and _json(answer).get("ok", True) is True
        method, name = ("DELETE", "access_token") if profile.revocation == "github" else ("POST", "token")
        url = profile.revoke_url.replace("{client_id}", quote_plus(client.id))
        body = json.dumps({name: tokens.access}).encode()
        headers = {"content-type": "application/json"}
        answer = await self._send(profile, method, url, _basic(client), body, headers)
        # 404 and 422: there is no such token any more.
        return answer.status in (200, 204, 404, 422)

    async def _ask(
        self, profile: OAuthProfile, client: Client, url: str, form: dict[str, str]
    ) -> dict[str, Any]:
        """The JSON of a token or device endpoint. Raises what its error means."""
        answer = await self._post(profile, client, url, form)
        fields = _json(answer)
        # Some providers answer errors with 200.
        code = str(fields.get("error") or "")
        if code in _PENDING:
            wait_s = _number(fields.get("interval"), _POLL_S_DEFAULT)
            raise GrantPending("the user has not granted it yet; ask again later", retry_after_s=wait_s)
        if code in _GRANT_DEAD:
            raise CredentialRefused("the provider no longer accepts the grant; connect again")
        if answer.status in (429, 500, 502, 503, 504):
            raise Unavailable("the provider is busy or down; try again", reason="PROVIDER_UNAVAILABLE")
        if answer.status != 200 or code or fields.get("ok") is False:
            raise ProviderRefused(
                "the provider refused; check the client's id, secret and registered redirect addresses"
            )
        return fields

    async def _post(self, profile: OAuthProfile, client: Client, url: str, form: dict[str, str]) -> Answer:
        authorization = ""
        if client.secret and profile.client_auth == "client_secret_basic":
            authorization = _basic(client)
        else:
            form = {**form, "client_id": client.id}
            if client.secret:
                form["client_secret"] = client.secret
        if profile.token_request == "json" and url == profile.token_url:  # noqa: S105  (a format)
            body, kind = json.dumps(form).encode(), "application/json"
        else:
            body, kind = urlencode(form).encode(), "application/x-www-form-urlencoded"
        return await self._send(profile, "POST", url, authorization, body, {"content-type": kind})

    async def _send(
        self,
        profile: OAuthProfile,
        method: str,
        url: str,
        authorization: str,
        body: bytes,
        headers: Mapping[str, str],
    ) -> Answer:
        try:
            return await self._sender.send(
                method,
                url,
                headers={"accept": "application/json", **headers},
                content=body,
                authorization=authorization,
                authorized_hosts=profile.hosts,
                body_bytes_max=_ANSWER_BYTES_MAX,
                timeout_s=_TIMEOUT_S,
                redirects_max=0,
            )
        except (EgressRefused, AnswerTooLarge):
            raise ProviderRefused("the provider cannot be reached as it is configured") from None

    def _tokens(self, profile: OAuthProfile, fields: dict[str, Any], refresh_token: str = "") -> Tokens:
        scopes = fields.get(profile.scope_parameter) or fields.get("scope")
        for name in profile.token_path:
            inner = fields.get(name)
            fields = inner if isinstance(inner, dict) else {}
            scopes = fields.get("scope") or scopes
        life_s = _number(fields.get("expires_in"), 0)
        renewed = fields.get("refresh_token")
        return Tokens(
            access=_token(fields.get("access_token")),
            refresh=_token(renewed) if renewed else refresh_token,
            expire_s=self._clock.now_s() + life_s if life_s else 0.0,
            life_s=float(life_s),
            scopes=_scopes(scopes),
        )


def _basic(client: Client) -> str:
    # RFC 6749, 2.3.1: both are form-encoded before they are joined.
    pair = f"{quote_plus(client.id)}:{quote_plus(client.secret)}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _json(answer: Answer) -> dict[str, Any]:
    try:
        fields = json.loads(answer.content) if answer.content else {}
    # A RecursionError is how Python's parser ends a bomb of brackets.
    except (ValueError, RecursionError):
        fields = {}
    return fields if isinstance(fields, dict) else {}


def _token(value: object) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ProviderRefused("the provider answered what OAuth does not allow")
    return value


def _scopes(value: object) -> tuple[str, ...]:
    if not isinstance(value, str):
        return ()
    scopes = tuple(filter(None, re.split(r"[ ,]+", value)))
    if len(scopes) > _SCOPES_MAX or not all(_SCOPE.fullmatch(scope) for scope in scopes):
        raise ProviderRefused("the provider answered what OAuth does not allow")
    return scopes


def _address(value: object) -> str:
    address = _token(value)
    if not address.startswith("https://"):
        raise ProviderRefused("the provider answered what OAuth does not allow")
    return address


def _number(value: object, default: int) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < 12:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _EXPIRE_S_MAX:
        return default
    return int(value)

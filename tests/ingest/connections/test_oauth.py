"""OAuth against providers that answer anything: vectors of the RFCs, odd shapes, hostile answers."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qs

import pytest

from services.common.errors import SealcombError
from services.ingest.connections.oauth import (
    GrantPending,
    OAuth,
    ProviderRefused,
    authorization_url,
    challenge_of,
)
from services.ingest.connections.records import Client, Revoked, Tokens
from services.ingest.egress.client import Answer
from services.ingest.egress.refusals import EgressRefused, EgressUnavailable
from services.ingest.sources.contract import CredentialRefused, OAuthProfile
from tests.keyvault.rig import ManualClock

CLIENT = Client("id with space", "s&cret")


def profile(**changes: Any) -> OAuthProfile:
    """A provider's profile."""
    return OAuthProfile(
        **{
            "authorize_url": "https://as.example/authorize",
            "token_url": "https://as.example/token",
            "revoke_url": "https://as.example/revoke",
            "scopes": ("read", "more"),
            **changes,
        }
    )


class Sender:
    """Answers as it is told, and remembers what was sent."""

    def __init__(self, *answers: Answer | SealcombError) -> None:
        self.answers = list(answers)
        self.sent: list[dict[str, Any]] = []

    async def send(self, method: str, url: str, **fields: Any) -> Answer:
        """The next answer."""
        self.sent.append({"method": method, "url": url, **fields})
        answer = self.answers.pop(0)
        if isinstance(answer, SealcombError):
            raise answer
        return answer

    def form(self, place: int = -1) -> dict[str, str]:
        """A form that was sent."""
        parsed = parse_qs(self.sent[place]["content"].decode(), keep_blank_values=True)
        return {name: values[0] for name, values in parsed.items()}


def answer(body: Any, status: int = 200) -> Answer:
    """An answer with a body of JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {}, content, "https://as.example/token")


def oauth(*answers: Answer | SealcombError) -> tuple[OAuth, Sender]:
    """The client, and what stands for the network."""
    sender = Sender(*answers)
    return OAuth(sender, ManualClock(1000.0)), sender


def test_the_challenge_is_the_one_of_the_rfc() -> None:
    """E6: RFC 7636, appendix B."""
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert challenge_of(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_parameters_of_the_profile_replace_none_of_ours() -> None:
    """E5, E6: whatever a profile adds, state and challenge are ours."""
    extra = {"state": "fixed", "code_challenge_method": "plain", "access_type": "offline"}
    url = authorization_url(profile(authorize_parameters=extra), CLIENT, "https://r.example/", "S", "V" * 43)
    query = parse_qs(url.partition("?")[2])
    assert (query["state"], query["code_challenge_method"], query["access_type"]) == (
        ["S"],
        ["S256"],
        ["offline"],
    )


async def test_secrets_go_as_the_provider_wants_them() -> None:
    """RFC 6749, 2.3.1: in the form, or encoded in the header, and to the provider's hosts alone."""
    good = answer({"access_token": "a", "token_type": "bearer"})
    client, sender = oauth(good, good)
    await client.exchange(profile(), CLIENT, "code", "verifier", "https://r.example/")
    assert sender.form()["client_secret"] == "s&cret"
    assert sender.sent[0]["authorization"] == ""
    basic = profile(client_auth="client_secret_basic")
    await client.exchange(basic, CLIENT, "code", "verifier", "https://r.example/")
    assert "client_secret" not in sender.form()
    sent = base64.b64decode(sender.sent[1]["authorization"].removeprefix("Basic ")).decode()
    assert sent == "id+with+space:s%26cret"
    assert sender.sent[1]["authorized_hosts"] == ("as.example",)
    assert all(one["redirects_max"] == 0 for one in sender.sent)


async def test_tokens_are_read_where_the_provider_puts_them() -> None:
    body = {"ok": True, "access_token": "bot", "authed_user": {"access_token": "user", "scope": "read,more"}}
    client, _ = oauth(answer(body))
    tokens = await client.exchange(profile(token_path=("authed_user",)), CLIENT, "c", "v", "r")
    assert (tokens.access, tokens.scopes) == ("user", ("read", "more"))
    client, _ = oauth(answer({"access_token": "a", "expires_in": "3600", "scope": "read more"}))
    tokens = await client.exchange(profile(), CLIENT, "c", "v", "r")
    assert (tokens.expire_s, tokens.scopes) == (4600.0, ("read", "more"))


async def test_a_refresh_without_a_new_refresh_token_keeps_the_old() -> None:
    client, _ = oauth(answer({"access_token": "a"}), answer({"access_token": "a", "refresh_token": "new"}))
    assert (await client.refresh(profile(), CLIENT, "old")).refresh == "old"
    assert (await client.refresh(profile(), CLIENT, "old")).refresh == "new"


@pytest.mark.parametrize(
    ("given", "raised"),
    [
        (answer({"error": "invalid_grant"}, 400), CredentialRefused),
        # GitHub answers errors with 200, Slack with ok: false.
        (answer({"error": "bad_refresh_token"}), CredentialRefused),
        (answer({"ok": False, "error": "invalid_client_id"}), ProviderRefused),
        (answer({"ok": False}), ProviderRefused),
        (answer({"error": "invalid_client"}, 401), ProviderRefused),
        (answer({"error": "authorization_pending"}, 400), GrantPending),
        (answer({}, 500), SealcombError),
        (answer(b"<html>", 200), ProviderRefused),
        (answer(b"[1]", 200), ProviderRefused),
        (answer(b"\xff\xfe", 200), ProviderRefused),
        (answer({}, 302), ProviderRefused),
        (answer({"access_token": ""}), ProviderRefused),
        (answer({"access_token": 7}), ProviderRefused),
        (answer({"access_token": "a\r\nx-evil: 1"}), ProviderRefused),
        (answer({"access_token": "x" * 9000}), ProviderRefused),
        (answer({"access_token": "a", "refresh_token": ["b"]}), ProviderRefused),
        (answer(b"[" * 200_000), ProviderRefused),
        (answer({"error": ["evil"]}, 400), ProviderRefused),
        (answer({"error": {"evil": {}}}), ProviderRefused),
        (answer({"access_token": "a", "scope": "read \x1b[31mevil"}), ProviderRefused),
        (answer({"access_token": "a", "scope": "evil " * 10_000}), ProviderRefused),
        (EgressRefused("no"), ProviderRefused),
        (EgressUnavailable("down"), EgressUnavailable),
    ],
)
async def test_what_a_provider_answers_is_checked_and_never_repeated(
    given: Answer | SealcombError, raised: type[SealcombError]
) -> None:
    """E13: a provider that was taken over gets nothing but a typed refusal."""
    client, _ = oauth(given)
    with pytest.raises(raised) as caught:
        await client.refresh(profile(), CLIENT, "old")
    for text in ("evil", "html", "old", "s&cret", "invalid_client"):
        assert text not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://as.example/device", "javascript:alert(1)", "file:///etc/passwd", 5]
)
async def test_no_user_is_sent_to_an_address_that_is_not_https(address: Any) -> None:
    """E13: what a device shows is opened by people."""
    fields = {"device_code": "d", "user_code": "u", "verification_uri": address}
    client, _ = oauth(answer(fields))
    with pytest.raises(ProviderRefused):
        await client.begin_device(profile(device_url="https://as.example/device"), CLIENT)


@pytest.mark.parametrize("life", [-1, 0, True, "x", 1e30, float("nan"), None, [], 10**20])
async def test_a_life_that_is_none_is_no_life(life: Any) -> None:
    client, _ = oauth(answer({"access_token": "a", "expires_in": life}))
    assert (await client.refresh(profile(), CLIENT, "old")).expire_s == 0.0


@pytest.mark.parametrize(
    ("style", "answers", "methods", "outcome"),
    [
        ("rfc7009", [answer({}), answer({})], ["POST", "POST"], Revoked.REVOKED),
        ("rfc7009", [answer({}), answer({}, 503)], ["POST", "POST"], Revoked.FAILED),
        ("rfc7009", [EgressUnavailable("down")], ["POST"], Revoked.FAILED),
        ("github", [answer(b"", 204)], ["DELETE"], Revoked.REVOKED),
        ("github", [answer({}, 404)], ["DELETE"], Revoked.REVOKED),
        ("github", [answer({}, 401)], ["DELETE"], Revoked.FAILED),
        ("notion", [answer({})], ["POST"], Revoked.REVOKED),
        ("bearer", [answer({"ok": True})], ["POST"], Revoked.REVOKED),
        ("bearer", [answer({"ok": False})], ["POST"], Revoked.FAILED),
        ("none", [], [], Revoked.NOT_SUPPORTED),
    ],
)
async def test_each_way_of_revoking_says_what_came_of_it(
    style: Any, answers: list[Any], methods: list[str], outcome: Revoked
) -> None:
    client, sender = oauth(*answers)
    url = "https://as.example/applications/{client_id}/token"
    done = await client.revoke(profile(revocation=style, revoke_url=url), CLIENT, Tokens("acc", "ref"))
    assert done is outcome
    assert [one["method"] for one in sender.sent] == methods
    if style == "github":
        assert sender.sent[0]["url"].endswith("/applications/id+with+space/token")
        assert json.loads(sender.sent[0]["content"]) == {"access_token": "acc"}
    if style == "rfc7009":
        # The refresh token goes first: with it goes the family.
        assert sender.form(0)["token"] == "ref"


async def test_nothing_secret_is_in_a_repr() -> None:
    """E1."""
    for value in (CLIENT, Tokens("acc", "ref")):
        text = repr(value)
        assert "s&cret" not in text
        assert "acc" not in text.replace("access", "")
        assert "ref" not in text.replace("refresh", "")


@pytest.mark.parametrize(
    ("body", "status", "error", "reason"),
    [
        ({"error": "authorization_pending"}, 400, GrantPending, "AUTHORIZATION_PENDING"),
        ({"error": "slow_down", "interval": 10}, 400, GrantPending, "AUTHORIZATION_PENDING"),
        # As GitHub says it.
        ({"error": "authorization_pending"}, 200, GrantPending, "AUTHORIZATION_PENDING"),
        ({"error": "access_denied"}, 400, ProviderRefused, "PROVIDER_REFUSED"),
        ({"error": "expired_token"}, 400, ProviderRefused, "PROVIDER_REFUSED"),
        ({"error": "invalid_grant"}, 400, CredentialRefused, "CREDENTIAL_REFUSED"),
    ],
)
async def test_each_answer_to_a_device_that_asks_has_its_meaning(
    body: dict[str, Any], status: int, error: type[SealcombError], reason: str
) -> None:
    """RFC 8628, 3.5: go on asking, more slowly, or never again."""
    client, sender = oauth(answer(body, status))
    with pytest.raises(error) as caught:
        await client.poll_device(profile(), CLIENT, "device code")
    assert caught.value.reason == reason
    if error is GrantPending:
        assert caught.value.retry_after_s == body.get("interval", 5)
    assert sender.form()["grant_type"] == "urn:ietf:params:oauth:grant-type:device_code"


@pytest.mark.parametrize(
    ("interval", "poll_s"),
    [(None, 5), (2, 2), (0, 5), (-1, 5), (10**6, 60), (10**9, 5), ("7", 7), ("x", 5), (True, 5)],
)
async def test_a_device_asks_as_often_as_it_is_told_within_bounds(interval: Any, poll_s: int) -> None:
    """RFC 8628, 3.2: five seconds unless the provider says otherwise; never all the time."""
    fields = {"device_code": "d", "user_code": "u", "verification_uri": "https://as.example/device"}
    client, _sender = oauth(answer(fields if interval is None else {**fields, "interval": interval}))
    begun = await client.begin_device(profile(device_url="https://as.example/device"), CLIENT)
    assert begun.poll_s == poll_s


def test_more_than_was_asked_for_is_shown_as_granted() -> None:
    """E12: nobody is told that less was given than was."""
    client, _sender = oauth()
    fields = {"access_token": "a", "scope": "read more everything"}
    assert client._tokens(profile(), fields).scopes == ("read", "more", "everything")

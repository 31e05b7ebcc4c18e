"""What a source of documents is, for those who run ingestions and those who write sources.

A source names what it has, in batches whose cursor resumes after them, and fetches one item at a
time. It never keeps, logs or repeats its credential, sends it to no host but those of
`SourceType.hosts`, and reaches the network by the egress client alone.

Errors. `batches` and `fetch` raise these alone, all of them SealcombErrors:

- CredentialRefused: the source does not accept the credential, even a fresh one. Ends the job.
- SourceDenied: the credential is good but may not see this (item: what was indexed must go).
- ItemGone: the item is no longer there (what was indexed must go).
- ItemTooLarge, ItemUnfit: this item will never work; others will.
- SourceLimited, SourceUnavailable: try again later, not before `retry_after_s` where it is set.
- SourceAnswerInvalid: the source answered what its documentation does not allow.
- CursorExpired: only from `batches`; begin again without a cursor.
- egress.refusals.EgressRefused: an address that requests may not go to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from services.common.errors import (
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SealcombError,
    Unavailable,
)
from services.ingest.egress.client import Egress

ID_CHARS_MAX = 2048
NAME_CHARS_MAX = 512
PRINCIPALS_MAX = 256

# Who may see an item. None: everybody, because it is public or the source knows no permissions.
# An empty tuple: nobody that the source could name, so nobody.
Principals: TypeAlias = tuple[str, ...] | None


class CredentialRefused(FailedPrecondition):
    """The source does not accept the credential, or what it was granted is gone."""

    reason = "CREDENTIAL_REFUSED"


class SourceDenied(PermissionDenied):
    """The credential is good, but not for this."""

    reason = "SOURCE_DENIED"


class ItemGone(NotFound):
    """The item is no longer at the source."""

    reason = "ITEM_GONE"


class ItemTooLarge(ResourceExhausted):
    """The item is larger than the limit."""

    reason = "ITEM_TOO_LARGE"


class ItemUnfit(FailedPrecondition):
    """The item cannot be had as a document, and trying again will not change that."""

    reason = "ITEM_UNFIT"


class SourceLimited(ResourceExhausted):
    """The source asks to come back later."""

    reason = "SOURCE_RATE_LIMITED"


class SourceUnavailable(Unavailable):
    """The source is down, too slow, or broke off its answer."""

    reason = "SOURCE_UNAVAILABLE"


class SourceAnswerInvalid(FailedPrecondition):
    """The source answered what its documentation does not allow."""

    reason = "SOURCE_ANSWER_INVALID"


class CursorExpired(FailedPrecondition):
    """The source no longer knows the cursor; begin again without one."""

    reason = "CURSOR_EXPIRED"


@dataclass(frozen=True, slots=True)
class Item:
    """Something that can be fetched as one document.

    `id` is stable and unique in the source for these settings. `version` changes whenever the
    content may have changed; equal versions need not be fetched again. `principals` may change
    while the version stays. `name` is as the source gives it and may hold any character.
    """

    id: str
    name: str
    version: str
    url: str
    content_type: str = ""
    size_bytes: int = 0
    principals: Principals = None


@dataclass(frozen=True, slots=True)
class Removed:
    """An item that is gone, or that the credential may no longer see. It may never have been there."""

    id: str


@dataclass(frozen=True, slots=True)
class Unread:
    """Something (an item, or a folder of them) that could not be listed; the rest goes on."""

    id: str
    name: str
    error: SealcombError


Change: TypeAlias = Item | Removed | Unread


@dataclass(frozen=True, slots=True)
class Batch:
    """A step of a listing.

    `cursor` resumes after this batch, in this run or the next one; it is opaque, may hold names of
    the caller (so it is kept sealed only) but never a credential. `complete`: the listing has
    ended, and the next run begins with this cursor. `full`: with `complete`, every item that exists has been
    named since the last complete batch (or since a listing without a cursor), so what was not is gone.
    """

    changes: tuple[Change, ...]
    cursor: bytes
    complete: bool = False
    full: bool = False


@dataclass(frozen=True, slots=True)
class Fetched:
    """An item's content. `content_type` is the source's word, to be checked like any caller's."""

    content: bytes = field(repr=False)
    content_type: str
    metadata: Mapping[str, str | float | bool] = field(default_factory=dict, repr=False)


class Credential(Protocol):
    """What opens a source. Kept by its holder; a source asks for it at each request and forgets it."""

    async def token(self, *, refused: bool = False) -> str:
        """The token, in the form that `SourceType.token_form` describes.

        `refused` says that the source has just answered the last one with 401: gives a fresh one, or
        raises CredentialRefused when there is none.
        """


class Source(Protocol):
    """One opened source. Not shared by two jobs."""

    kind: str

    def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """What has changed since `cursor`, or all there is without one. Ends after a complete batch."""

    async def fetch(self, item: Item) -> Fetched:
        """The item as it is now."""


class SourceSettings(BaseModel):
    """Base of what a caller sets for one source. Holds no secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


@dataclass(frozen=True, slots=True)
class OAuthProfile:
    """How one provider does OAuth 2.0 (RFC 6749), from its documentation.

    PKCE with S256 (RFC 7636) is sent always; `pkce_documented` says whether the provider says that
    it checks it. `scopes` are the least that the source needs. An empty address: the provider has
    no such endpoint.
    """

    authorize_url: str
    token_url: str
    scopes: tuple[str, ...]
    revoke_url: str = ""
    device_url: str = ""
    # What the authorization response's `iss` must be (RFC 9207); empty: the provider sends none.
    issuer: str = ""
    client_auth: Literal["client_secret_basic", "client_secret_post"] = "client_secret_post"
    token_request: Literal["form", "json"] = "form"  # noqa: S105  # a format, no secret
    scope_parameter: str = "scope"
    scope_separator: str = " "
    pkce_documented: bool = True
    # rfc7009: POST token to revoke_url. github: DELETE with Basic client auth and JSON {access_token};
    # `{client_id}` in revoke_url stands for the client's id. notion: POST JSON {token} with Basic client
    # auth. bearer: POST with the token as bearer (Slack's auth.revoke).
    revocation: Literal["rfc7009", "github", "notion", "bearer", "none"] = "none"
    # none: access tokens stay until revoked. reusable: one refresh token for all refreshes.
    # rotating: each refresh gives a new refresh token and ends the old one.
    refresh: Literal["none", "reusable", "rotating"] = "none"
    authorize_parameters: Mapping[str, str] = field(default_factory=dict)
    # Where the token response keeps the object with the token, as a path: Slack's is in `authed_user`.
    token_path: tuple[str, ...] = ()

    @property
    def hosts(self) -> tuple[str, ...]:
        """`host` or `host:port` of every endpoint: the only ones that client secrets and tokens may go to."""
        addresses = (self.authorize_url, self.token_url, self.revoke_url, self.device_url)
        return tuple(dict.fromkeys(url.split("/")[2].lower() for url in addresses if url))


SettingsT_contra = TypeVar("SettingsT_contra", bound=SourceSettings, contravariant=True)


class SourceType(Protocol[SettingsT_contra]):
    """A kind of source: what ListSourceTypes shows, and the way to open one.

    `hosts` are the only ones that the token is sent to, as `host` or `host:port`. For sources with
    OAuth they are the operator's choice and do not depend on the settings. For others (s3, webdav)
    they do, so a kept credential must be bound to the hosts of the settings that it was given with.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    # What a token is, for people; empty: this source takes none.
    token_form: ClassVar[str]
    settings_model: ClassVar[type[SourceSettings]]
    oauth: OAuthProfile | None

    def hosts(self, settings: SettingsT_contra) -> tuple[str, ...]:
        """Every host that the token may be sent to."""

    def open(self, settings: SettingsT_contra, credential: Credential | None, egress: Egress) -> Source:
        """A source for one job. InvalidArgument when it needs a credential and there is none."""

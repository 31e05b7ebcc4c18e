"""GitHub: files of repositories, issues and pull requests.

From GitHub's REST API documentation (docs.github.com/en/rest, version 2022-11-28): Git trees and
blobs, commits and their comparison, issues, issue and review comments, collaborators, rate
limits. What has changed in files comes from comparing commits; deleted issues are not told, so
they go at the next full listing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, ClassVar
from urllib.parse import quote

from pydantic import Field, StringConstraints

from services.common.errors import invalid
from services.ingest.egress.client import Egress
from services.ingest.egress.target import parse_url
from services.ingest.sources.answers import Row, read_json, read_row, rows, web_address
from services.ingest.sources.calls import Calls, RetryLimits, Timing
from services.ingest.sources.contract import (
    PRINCIPALS_MAX,
    Batch,
    Change,
    Credential,
    CursorExpired,
    Fetched,
    Item,
    ItemGone,
    OAuthProfile,
    Principals,
    Removed,
    SourceAnswerInvalid,
    SourceDenied,
    SourceSettings,
    Unread,
)
from services.ingest.sources.cursors import CursorState, fingerprint, read_cursor, write_cursor
from services.ingest.sources.github_items import (
    fetch_discussion,
    file_item,
    id_parts,
    is_file,
    issue_item,
    next_page,
)

_BATCH_ITEMS = 500
_TREES_MAX = 5_000
# The documented limit of one comparison: more files than these are not listed.
_COMPARED_FILES_MAX = 300
_DOCUMENTS = (
    ".md",
    ".mdx",
    ".markdown",
    ".rst",
    ".adoc",
    ".org",
    ".tex",
    ".txt",
    ".html",
    ".htm",
    ".pdf",
    ".docx",
    ".pptx",
    ".xlsx",
    ".odt",
    ".ods",
    ".doc",
    ".ppt",
    ".xls",
    ".rtf",
    ".epub",
    ".ipynb",
)

Repository = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}$")
]


class GitHubSettings(SourceSettings):
    """What of GitHub to take in."""

    repositories: tuple[Repository, ...] = Field(min_length=1, max_length=100)
    # A branch or tag; empty: the repository's default branch.
    ref: str = Field(default="", max_length=255, pattern=r"^[^\s?#\\]*$")
    paths: tuple[Annotated[str, StringConstraints(max_length=1024)], ...] = Field(default=(), max_length=100)
    # Endings of files to take; an empty list takes every file.
    extensions: tuple[Annotated[str, StringConstraints(pattern=r"^\.[a-z0-9]{1,15}$")], ...] = _DOCUMENTS
    files: bool = True
    issues: bool = True
    pull_requests: bool = True


class _State(CursorState):
    """`base_*` are of the last complete listing, the others of the one that goes on. Without a base: full."""

    full: bool = True
    repository: int = 0
    issues_page: str = ""
    heads: dict[str, str] = Field(default_factory=dict)
    access: dict[str, str] = Field(default_factory=dict)
    since: dict[str, str] = Field(default_factory=dict)
    base_heads: dict[str, str] = Field(default_factory=dict)
    base_access: dict[str, str] = Field(default_factory=dict)
    base_since: dict[str, str] = Field(default_factory=dict)


class GitHubType:
    """GitHub, or a GitHub Enterprise server by its API's address."""

    kind: ClassVar[str] = "github"
    title: ClassVar[str] = "GitHub"
    token_form: ClassVar[str] = "an access token"  # noqa: S105  # a description
    settings_model: ClassVar[type[SourceSettings]] = GitHubSettings

    def __init__(
        self,
        api_url: str = "https://api.github.com",
        *,
        timing: Timing | None = None,
        limits: RetryLimits | None = None,
    ) -> None:
        self._api_url = api_url.rstrip("/")
        self._timing = timing
        self._limits = limits
        # An enterprise server has its API under /api/v3 of the host that people log in at.
        public = self._api_url == "https://api.github.com"
        login_url = "https://github.com" if public else f"https://{parse_url(self._api_url).netloc}"
        # `repo` is the least scope that reads private repositories' contents.
        self.oauth: OAuthProfile | None = OAuthProfile(
            authorize_url=f"{login_url}/login/oauth/authorize",
            token_url=f"{login_url}/login/oauth/access_token",
            device_url=f"{login_url}/login/device/code",
            revoke_url=f"{self._api_url}/applications/{{client_id}}/token",
            scopes=("repo",),
            revocation="github",
            refresh="none",
        )

    def hosts(self, settings: GitHubSettings) -> tuple[str, ...]:
        """The API's host."""
        return (parse_url(self._api_url).netloc,)

    def open(self, settings: GitHubSettings, credential: Credential | None, egress: Egress) -> GitHubSource:
        """A source for one job."""
        if credential is None:
            raise invalid("credential", "GitHub needs an access token")
        calls = Calls(
            egress,
            name=self.title,
            hosts=self.hosts(settings),
            credential=credential,
            headers={"accept": "application/vnd.github+json", "x-github-api-version": "2022-11-28"},
            timing=self._timing,
            limits=self._limits,
        )
        return GitHubSource(self._api_url, settings, calls)


class GitHubSource:
    """See Source."""

    kind = GitHubType.kind

    def __init__(self, api_url: str, settings: GitHubSettings, calls: Calls) -> None:
        self._api_url = api_url
        self._settings = settings
        self._calls = calls

    async def batches(self, cursor: bytes | None) -> AsyncIterator[Batch]:
        """Repository by repository: first its files, then its issues and pull requests."""
        state = _State() if cursor is None else read_cursor(self._settings, _State, cursor)
        names = self._settings.repositories
        while state.repository < len(names):
            name = names[state.repository]
            try:
                info = read_row(await self._calls.send(self._repository_url(name)))
                principals = await self._principals(name, info)
            except (ItemGone, SourceDenied) as error:
                if name in state.base_access:
                    raise CursorExpired(
                        "a repository is no longer to be seen; list everything again"
                    ) from error
                state = _next_repository(state)
                yield self._batch((Unread(name, name, error),), state)
                continue
            access = fingerprint(*(principals if principals is not None else ("*public*",)))
            if not state.full and state.base_access.get(name) != access:
                raise CursorExpired("who may see a repository has changed; list everything again")
            state = state.model_copy(update={"access": {**state.access, name: access}})
            if not state.issues_page:
                async for changes, head in self._files(name, info, principals, state):
                    yield self._batch(changes, state)
                    state = state.model_copy(update={"heads": {**state.heads, name: head}})
            async for changes, reached in self._issues(name, principals, state):
                state = reached
                yield self._batch(changes, state)
        done = _State(full=False, base_heads=state.heads, base_access=state.access, base_since=state.since)
        yield Batch((), write_cursor(self._settings, done), complete=True, full=state.full)

    async def fetch(self, item: Item) -> Fetched:
        """A file as it is, an issue or pull request with its comments as Markdown."""
        what, name, rest = id_parts(item.id)
        if what == "file":
            answer = await self._calls.download(
                f"{self._repository_url(name)}/git/blobs/{quote(item.version, safe='')}",
                headers={"accept": "application/vnd.github.raw+json"},
            )
            return Fetched(answer.content, item.content_type, {"repository": name, "path": rest})
        return await fetch_discussion(self._calls, self._repository_url(name), name, rest)

    async def _principals(self, name: str, info: Row) -> Principals:
        if info.text_or("visibility") == "public" or info.get("private") is False:
            return None
        readers = (f"github:repository:{name.lower()}",)
        try:
            url: str | None = f"{self._repository_url(name)}/collaborators?per_page=100"
            logins: list[str] = []
            while url is not None and len(logins) < PRINCIPALS_MAX:
                answer = await self._calls.send(url)
                logins += [row.text("login").lower() for row in rows(read_json(answer))]
                url = next_page(answer)
        # Only who may push is told the collaborators; others know the repository's readers as a group.
        except (ItemGone, SourceDenied):
            return readers
        if url is not None or len(logins) >= PRINCIPALS_MAX:
            return readers
        return (*readers, *(f"github:user:{login}" for login in sorted(set(logins))))

    async def _files(
        self, name: str, info: Row, principals: Principals, state: _State
    ) -> AsyncIterator[tuple[tuple[Change, ...], str]]:
        if not self._settings.files:
            return
        ref = self._settings.ref or info.text("default_branch")
        base = state.base_heads.get(name)
        if not state.full and base is None:
            raise CursorExpired("a repository was not listed before; list everything again")
        try:
            answer = await self._calls.send(f"{self._repository_url(name)}/commits/{quote(ref, safe='')}")
        except SourceAnswerInvalid as error:
            # 409 and 422: an empty repository, or no such ref.
            yield (Unread(name, name, error),), ""
            return
        head = read_row(answer).text("sha")
        if head == base:
            yield (), head
            return
        blob_url = f"{web_address(info.text_or('html_url'))}/blob/{quote(ref, safe='')}"
        found = self._tree(name, head) if base is None else self._compared(name, base, head)
        pending: list[Change] = []
        async for row in found:
            path = row.text_or("path") or row.text("filename")
            if row.text_or("status") == "removed":
                pending.append(Removed(f"file:{name}:{path}"))
            elif self._wants(path):
                pending.append(file_item(name, path, row, blob_url, principals))
            previous = row.text_or("previous_filename")
            if row.text_or("status") == "renamed" and previous:
                pending.append(Removed(f"file:{name}:{previous}"))
            if len(pending) >= _BATCH_ITEMS:
                yield tuple(pending), state.heads.get(name, "")
                pending = []
        yield tuple(pending), head

    def _wants(self, path: str) -> bool:
        extensions = self._settings.extensions
        return (
            not self._settings.paths or any(path.startswith(prefix) for prefix in self._settings.paths)
        ) and (not extensions or path.lower().endswith(extensions))

    async def _tree(self, name: str, head: str) -> AsyncIterator[Row]:
        url = f"{self._repository_url(name)}/git/trees/"
        tree = read_row(await self._calls.send(f"{url}{head}?recursive=1"))
        if not tree.flag("truncated"):
            for row in tree.rows("tree"):
                if is_file(row):
                    yield row
            return
        # Too large for one answer: folder by folder.
        folders = [("", head)]
        for _ in range(_TREES_MAX):
            if not folders:
                return
            prefix, sha = folders.pop()
            for row in read_row(await self._calls.send(f"{url}{sha}")).rows("tree"):
                path = prefix + row.text("path")
                if row.text_or("type") == "tree":
                    folders.append((f"{path}/", row.text("sha")))
                elif is_file(row):
                    yield Row({"path": path, "sha": row.text("sha"), "size": row.number_or("size")})
        raise SourceAnswerInvalid("the repository has more folders than the limit")

    async def _compared(self, name: str, base: str, head: str) -> AsyncIterator[Row]:
        try:
            answer = await self._calls.send(f"{self._repository_url(name)}/compare/{base}...{head}")
        except ItemGone as error:
            raise CursorExpired("history was rewritten; list everything again") from error
        comparison = read_row(answer)
        files = comparison.rows_or_none("files") or []
        if comparison.text_or("status") not in ("ahead", "identical") or len(files) >= _COMPARED_FILES_MAX:
            raise CursorExpired("too much has changed to be compared; list everything again")
        for row in files:
            yield row

    async def _issues(
        self, name: str, principals: Principals, state: _State
    ) -> AsyncIterator[tuple[tuple[Change, ...], _State]]:
        wanted = self._settings
        if not wanted.issues and not wanted.pull_requests:
            yield (), _next_repository(state)
            return
        since = state.since.get(name, state.base_since.get(name, ""))
        latest = since
        url: str | None = state.issues_page or self._issues_since(name, since)
        while url is not None:
            try:
                answer = await self._calls.send(url)
            except ItemGone:
                # 410: the repository has its issues turned off.
                break
            changes: list[Change] = []
            for row in rows(read_json(answer)):
                latest = max(latest, row.text("updated_at"))
                if wanted.pull_requests if row.get("pull_request") else wanted.issues:
                    changes.append(issue_item(name, row, principals))
            url = next_page(answer)
            # By time rather than by page: an issue that changes meanwhile moves to the end, and moves
            # another one over the edge of its page, which would never be seen.
            if url is not None and latest > since:
                since, url = latest, self._issues_since(name, latest)
            state = state.model_copy(
                update={"issues_page": url or "", "since": {**state.since, name: latest}}
            )
            yield tuple(changes), state if url is not None else _next_repository(state)
            if url is None:
                return
        yield (), _next_repository(state)

    def _issues_since(self, name: str, since: str) -> str:
        query = "state=all&sort=updated&direction=asc&per_page=100" + (
            f"&since={quote(since)}" if since else ""
        )
        return f"{self._repository_url(name)}/issues?{query}"

    def _repository_url(self, name: str) -> str:
        return f"{self._api_url}/repos/{name}"

    def _batch(self, changes: tuple[Change, ...], state: _State) -> Batch:
        return Batch(changes, write_cursor(self._settings, state))


def _next_repository(state: _State) -> _State:
    return state.model_copy(update={"repository": state.repository + 1, "issues_page": ""})

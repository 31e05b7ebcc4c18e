"""GitHub's files, issues and pull requests as items, and a discussion as one document."""

from __future__ import annotations

import mimetypes
import re
from urllib.parse import quote

from services.ingest.egress.client import Answer
from services.ingest.sources.answers import Row, cut, read_json, read_row, rows, web_address
from services.ingest.sources.calls import Calls
from services.ingest.sources.contract import Fetched, Item, ItemGone, Principals

_COMMENT_PAGES_MAX = 20
_NEXT = re.compile(r'<([^<>]+)>;\s*rel="next"')


def is_file(row: Row) -> bool:
    """Whether a tree's entry is a file: links (mode 120000) and other repositories' commits are none."""
    return row.text_or("type") == "blob" and row.text_or("mode") != "120000"


def file_item(name: str, path: str, row: Row, blob_url: str, principals: Principals) -> Item:
    """A file of a repository, by its blob's hash."""
    return Item(
        id=f"file:{name}:{path}",
        name=cut(path),
        version=row.text("sha"),
        url=f"{blob_url}/{quote(path)}",
        content_type=mimetypes.guess_type(path)[0] or "",
        size_bytes=row.number_or("size"),
        principals=principals,
    )


def issue_item(name: str, row: Row, principals: Principals) -> Item:
    """An issue or pull request, by the time of its last change."""
    number = row.number_or("number")
    return Item(
        id=f"issue:{name}:{number}",
        name=cut(f"{name}#{number} {row.text_or('title')}"),
        version=row.text("updated_at"),
        url=web_address(row.text_or("html_url")),
        content_type="text/markdown",
        principals=principals,
    )


def id_parts(item_id: str) -> tuple[str, str, str]:
    """`file` or `issue`, the repository, and the path or number. ItemGone when an id is neither."""
    what, _, rest = item_id.partition(":")
    name, _, rest = rest.partition(":")
    if what not in ("file", "issue") or not name or not rest or (what == "issue" and not rest.isdecimal()):
        raise ItemGone("there is no such item at GitHub")
    return what, name, rest


async def fetch_discussion(calls: Calls, repository_url: str, name: str, number: str) -> Fetched:
    """An issue or pull request with its comments, and a pull request's review comments, as Markdown."""
    issue = read_row(await calls.send(f"{repository_url}/issues/{number}"))
    pull_request = issue.get("pull_request") is not None
    lines = [f"# {issue.text_or('title')}", issue.text_or("body")]
    paths = [f"issues/{number}/comments"] + ([f"pulls/{number}/comments"] if pull_request else [])
    for path in paths:
        url: str | None = f"{repository_url}/{path}?per_page=100"
        for _ in range(_COMMENT_PAGES_MAX):
            if url is None:
                break
            answer = await calls.send(url)
            for comment in rows(read_json(answer)):
                heading = f"## {_login(comment) or 'comment'}, {comment.text_or('created_at')}"
                lines += [heading, comment.text_or("body")]
            url = next_page(answer)
    metadata: dict[str, str | float | bool] = {
        "repository": name,
        "state": issue.text_or("state"),
        "author": _login(issue),
        "pull_request": pull_request,
    }
    return Fetched("\n\n".join(lines).encode("utf-8", "replace"), "text/markdown", metadata)


def next_page(answer: Answer) -> str | None:
    """The next page's address, from the Link header (RFC 8288)."""
    found = _NEXT.search(answer.headers.get("link", ""))
    return found.group(1) if found else None


def _login(row: Row) -> str:
    user = row.row_or_none("user")
    return user.text_or("login") if user else ""

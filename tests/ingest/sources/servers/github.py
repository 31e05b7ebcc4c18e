"""GitHub's REST API, in the shapes of docs.github.com/en/rest."""

from __future__ import annotations

import re
from typing import Any

from services.ingest.sources.calls import RetryLimits, Timing
from services.ingest.sources.github import GitHubType
from tests.ingest.sources.servers.https import Reply, Request, json_reply
from tests.ingest.sources.servers.world import World, hash_of, page_of

NAME = "acme/handbook"


class GitHubWorld(World):
    """One repository. Documents named `issue N` are issues, the others files; each change is a commit."""

    kind = "github"
    host = "api.github.test"
    incremental = True

    def start(self) -> None:
        self.commits: list[dict[str, bytes]] = [{}]
        self.issues: dict[int, dict[str, Any]] = {}
        self.private = True
        self.collaborators: list[str] | None = ["ann", "Bob", "cy"]
        self.truncated = False
        self.clock = 0

    def put(self, name: str, content: bytes) -> None:
        super().put(name, content)
        if not name.startswith("issue "):
            self.commits.append({**self.commits[-1], name: content})
            return
        self.clock += 1
        number = int(name.removeprefix("issue "))
        self.issues[number] = {
            "number": number,
            "title": name,
            "body": content.decode(),
            "state": "open",
            "updated_at": f"2026-05-01T00:00:{self.clock:02}Z",
            "html_url": f"https://github.test/{NAME}/issues/{number}",
            "user": {"login": "ann"},
        }

    def remove(self, name: str) -> None:
        super().remove(name)
        if name.startswith("issue "):
            del self.issues[int(name.removeprefix("issue "))]
        else:
            self.commits.append({path: data for path, data in self.commits[-1].items() if path != name})

    def source_type(self, timing: Timing, limits: RetryLimits) -> GitHubType:
        return GitHubType(self.base, timing=timing, limits=limits)

    def settings(self) -> dict[str, object]:
        return {"repositories": [NAME]}

    def other_settings(self) -> dict[str, object]:
        return {"repositories": ["acme/other"]}

    def answer(self, request: Request) -> Reply | None:
        if request.headers.get("x-github-api-version") != "2022-11-28":
            return json_reply({"message": "no version"}, 400)
        found = re.fullmatch(rf"/repos/{NAME}(?:/(.*))?", request.path)
        if found is None:
            return None
        what, _, rest = (found[1] or "").partition("/")
        answers = {
            "": self._repository,
            "collaborators": self._people,
            "issues": self._issues,
            "git": self._git,
        }
        answers |= {"commits": self._commit, "compare": self._compare, "pulls": self._issues}
        return answers[what](request, rest) if what in answers else None

    def _repository(self, request: Request, rest: str) -> Reply | None:
        return json_reply(
            {
                "full_name": NAME,
                "private": self.private,
                "visibility": "private" if self.private else "public",
                "default_branch": "main",
                "html_url": f"https://github.test/{NAME}",
            }
        )

    def _people(self, request: Request, rest: str) -> Reply | None:
        if self.collaborators is None:
            return json_reply({"message": "Must have push access"}, 403)
        return self._paged(request, [{"login": login} for login in self.collaborators])

    def _issues(self, request: Request, rest: str) -> Reply | None:
        if not rest:
            since = request.query.get("since", "")
            rows = sorted(self.issues.values(), key=lambda row: str(row["updated_at"]))
            return self._paged(request, [row for row in rows if row["updated_at"] >= since])
        number, _, comments = rest.partition("/")
        issue = self.issues.get(int(number))
        if issue is None:
            return None
        if comments:
            rows = issue.get("comments", []) if "/issues/" in request.path else issue.get("review", [])
            return self._paged(request, rows)
        return json_reply({name: value for name, value in issue.items() if name != "comments"})

    def _git(self, request: Request, rest: str) -> Reply | None:
        what, _, sha = rest.partition("/")
        if what == "blobs":
            for snapshot in self.commits:
                for data in snapshot.values():
                    if hash_of(data) == sha:
                        return Reply(200, {"content-type": "application/vnd.github.raw"}, data)
            return None
        found = [c for number, c in enumerate(self.commits) if self._sha(number) == sha]
        commit: dict[str, bytes] | None = found[0] if found else None
        if request.query.get("recursive") == "1" and commit is not None:
            rows = [self._blob(path, data) for path, data in commit.items()]
            rows.append({"path": "link", "mode": "120000", "type": "blob", "sha": "0" * 40, "size": 3})
            rows.append({"path": "module", "mode": "160000", "type": "commit", "sha": "0" * 40})
            return json_reply({"sha": sha, "tree": rows, "truncated": self.truncated})
        return self._folder(sha)

    def _folder(self, sha: str) -> Reply | None:
        """One folder without what is under it, as an answer for a repository that is too large."""
        commit = self.commits[-1]
        folders = {"": self._sha(len(self.commits) - 1)}
        folders |= {
            path.rpartition("/")[0]: hash_of(path.rpartition("/")[0].encode())
            for path in commit
            if "/" in path
        }
        prefix = next((name for name, found in folders.items() if found == sha), None)
        if prefix is None:
            return None
        rows: list[dict[str, Any]] = []
        for path, data in commit.items():
            folder, _, name = path.rpartition("/")
            if folder == prefix:
                rows.append({**self._blob(path, data), "path": name})
        if not prefix:
            rows += [{"path": n, "type": "tree", "mode": "040000", "sha": s} for n, s in folders.items() if n]
        return json_reply({"sha": sha, "tree": rows, "truncated": False})

    def _commit(self, request: Request, rest: str) -> Reply | None:
        return json_reply({"sha": self._sha(len(self.commits) - 1)}) if rest == "main" else None

    def _compare(self, request: Request, rest: str) -> Reply | None:
        numbers = {self._sha(number): number for number in range(len(self.commits))}
        base, _, head = rest.partition("...")
        if base not in numbers or head not in numbers:
            return None
        old, new = self.commits[numbers[base]], self.commits[numbers[head]]
        files = []
        for path in sorted({*old, *new}):
            if old.get(path) != new.get(path):
                status = "added" if path not in old else "removed" if path not in new else "modified"
                data = new.get(path, old.get(path, b""))
                files.append({"filename": path, "status": status, "sha": hash_of(data)})
        return json_reply({"status": "ahead" if base != head else "identical", "files": files})

    def _paged(self, request: Request, rows: list[Any]) -> Reply:
        page, following = page_of(rows, request.query.get("page", ""))
        if not following:
            return json_reply(page)
        path, _, query = request.target.partition("?")
        kept = "&".join(part for part in query.split("&") if part and not part.startswith("page="))
        return json_reply(
            page, link=f'<{self.base}{path}?{kept}&page={following}>; rel="next", <x>; rel="last"'
        )

    def _sha(self, number: int) -> str:
        return hash_of([number, sorted(self.commits[number])])

    @staticmethod
    def _blob(path: str, data: bytes) -> dict[str, Any]:
        return {"path": path, "mode": "100644", "type": "blob", "sha": hash_of(data), "size": len(data)}

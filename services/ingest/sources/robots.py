"""robots.txt, by RFC 9309: which paths a crawler may take, with `*` and `$`, the longest rule winning."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BYTES_MAX = 512 * 1024  # what RFC 9309 asks to read at least
_RULES_MAX = 5_000
_DELAY_S_MAX = 10.0
_PATTERN_CHARS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Robots:
    """Rules for one crawler, longest first. `delay_s` is its Crawl-delay, which is no standard but common."""

    rules: tuple[tuple[str, bool], ...] = ()
    sitemaps: tuple[str, ...] = ()
    delay_s: float = 0.0

    def allows(self, path: str) -> bool:
        """Whether a path with its query may be fetched."""
        return next((allowed for pattern, allowed in self.rules if _matches(pattern, path)), True)


NOTHING_ALLOWED = Robots((("/", False),))


def read_robots(content: bytes, agent: str) -> Robots:
    """The rules of the groups that name `agent`, or else of those for everybody."""
    groups: dict[bool, list[tuple[str, bool]]] = {True: [], False: []}
    delays = {True: 0.0, False: 0.0}
    sitemaps: list[str] = []
    named = mine = everybody = in_rules = False
    for line in content[:_BYTES_MAX].decode("utf-8-sig", "replace").splitlines():
        key, _, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        key = key.lower()
        if key == "user-agent":
            if in_rules:
                mine = everybody = in_rules = False
            mine = mine or value.lower() == agent.lower()
            everybody = everybody or value == "*"
            named = named or mine
        elif key == "sitemap" and len(sitemaps) < 20:
            sitemaps.append(value)
        elif key in ("allow", "disallow", "crawl-delay"):
            in_rules = True
            for group in [group for group, on in ((True, mine), (False, everybody)) if on]:
                if key == "crawl-delay":
                    delays[group] = _delay_s(value)
                elif value and len(value) <= _PATTERN_CHARS_MAX and len(groups[group]) < _RULES_MAX:
                    groups[group].append((value, key == "allow"))
    rules = sorted(groups[named], key=lambda rule: (-len(rule[0]), not rule[1]))
    return Robots(tuple(rules), tuple(sitemaps), delays[named])


def _matches(pattern: str, path: str) -> bool:
    """Whether a rule's pattern matches, without a regular expression, which a pattern could make slow."""
    anchored = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    position = len(first)
    for part in rest[:-1]:
        position = path.find(part, position)
        if position < 0:
            return False
        position += len(part)
    if not rest:
        return position == len(path) if anchored else True
    if anchored:
        return path.endswith(rest[-1]) and len(path) - len(rest[-1]) >= position
    return path.find(rest[-1], position) >= 0


def _delay_s(text: str) -> float:
    return min(float(text), _DELAY_S_MAX) if re.fullmatch(r"\d{1,4}(\.\d{1,3})?", text) else 0.0

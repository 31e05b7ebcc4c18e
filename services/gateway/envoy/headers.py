"""Which request headers of a client go on: an allow-list, as the pattern of everything that is not on it.

Envoy removes what matches the pattern before any filter sees it. The pattern language (RE2) has no
negation, so the complement is spelled out from a trie of the allowed names.
"""

from __future__ import annotations

from collections.abc import Iterable

CLIENT_HEADERS = (
    "authorization",
    "content-length",
    "content-type",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-timeout",
    "host",
    # Ours, but a client's to give: it spreads vector calls.
    "sealcomb-collection",
    # Written over by the edge before this list counts.
    "sealcomb-size",
    "te",
    "user-agent",
)


def unlisted_pattern(names: Iterable[str] = CLIENT_HEADERS) -> str:
    """A regular expression that matches, as a whole, every header name but these and the pseudo-headers."""
    trie: dict[str, object] = {}
    for name in names:
        node = trie
        for char in name:
            node = node.setdefault(char, {})  # type: ignore[assignment]
        node[""] = True
    return _complement(trie, ":")


def _complement(node: dict[str, object], also_listed: str = "") -> str:
    children = sorted(char for char in node if char)
    listed = "".join(children) + also_listed
    escaped = "".join("\\" + char if char in "-]^\\" else char for char in listed)
    choices = [f"[^{escaped}].*" if listed else ".+"]
    for char in children:
        child = node[char]
        if isinstance(child, dict):
            choices.append(("\\" + char if char == "-" else char) + _complement(child))
    # A prefix of a listed name is itself unlisted, unless it is one of them.
    return f"(?:{'|'.join(choices)})" + ("" if "" in node else "?")

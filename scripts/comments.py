"""The comments of .proto files, by the full name of what they are about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto

# Field numbers of FileDescriptorProto, DescriptorProto and ServiceDescriptorProto, as in the paths of
# google.protobuf.SourceCodeInfo.
_MESSAGE, _SERVICE, _FIELD, _NESTED, _METHOD = 4, 6, 2, 3, 2


class Comments:
    """The comments of some files."""

    def __init__(self, files: Iterable[FileDescriptorProto]) -> None:
        self._texts: dict[str, str] = {}
        for file in files:
            prefix = f".{file.package}."
            located = {tuple(one.path): one.leading_comments for one in file.source_code_info.location}
            for number, message in enumerate(file.message_type):
                self._add_message(prefix + message.name, message, (_MESSAGE, number), located)
            for number, service in enumerate(file.service):
                path = (_SERVICE, number)
                self._texts[prefix + service.name] = located.get(path, "")
                for index, method in enumerate(service.method):
                    name = f"{prefix}{service.name}.{method.name}"
                    self._texts[name] = located.get((*path, _METHOD, index), "")

    def of(self, name: str) -> str:
        """The comment as one paragraph; empty if there is none."""
        return " ".join(self._texts.get(name, "").split())

    def _add_message(
        self, name: str, message: Any, path: Sequence[int], located: dict[tuple[int, ...], str]
    ) -> None:
        self._texts[name] = located.get(tuple(path), "")
        for index, field in enumerate(message.field):
            self._texts[f"{name}.{field.name}"] = located.get((*path, _FIELD, index), "")
        for index, nested in enumerate(message.nested_type):
            self._add_message(f"{name}.{nested.name}", nested, (*path, _NESTED, index), located)

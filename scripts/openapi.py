"""Write services/gateway/openapi.json, the description of the HTTP door, or prove that it is current.

It is made from the protos alone: paths from the google.api.http annotations, schemas from the
messages as protobuf's JSON mapping writes them, texts from the comments. It must never describe a
method that the edge does not have. `--check` compares and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodDescriptorProto

from scripts.comments import Comments
from scripts.protos import described
from services.common.methods import PUBLIC_METHODS

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "services" / "gateway" / "openapi.json"
Json = dict[str, Any]
_PACKAGE = ".sealcomb.v1."
_PROBLEM = "application/problem+json"
_VARIABLE = re.compile(r"\{(\w+)\}")
# Protobuf's JSON mapping of the well-known types.
_WELL_KNOWN: dict[str, Json] = {
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    ".google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    ".google.protobuf.Value": {},
}
_INTEGERS = {Field.TYPE_INT32, Field.TYPE_UINT32, Field.TYPE_SINT32, Field.TYPE_FIXED32, Field.TYPE_SFIXED32}
_LONG_INTEGERS = {
    Field.TYPE_INT64, Field.TYPE_UINT64, Field.TYPE_SINT64, Field.TYPE_FIXED64, Field.TYPE_SFIXED64,
}  # fmt: skip


class Unbound(Exception):
    """A public method that cannot be called by HTTP."""


class Writer:
    """Makes the document from the public files."""

    def __init__(self, files: list[FileDescriptorProto]) -> None:
        self._files = files
        self._comments = Comments(files)
        self._messages: dict[str, Any] = {}
        # What a path of any method says is refused in the query of every method.
        self._in_paths = {
            name
            for file in files
            for service in file.service
            for method in service.method
            for rule in _rules(method)
            for name in _VARIABLE.findall(str(rule))
        }
        self._enums = {_PACKAGE + enum.name: enum for file in files for enum in file.enum_type}
        for file in files:
            for message in file.message_type:
                self._add_message(_PACKAGE + message.name, message)

    def document(self) -> Json:
        """The whole OpenAPI document."""
        paths: Json = {}
        tags = []
        for file in self._files:
            for service in file.service:
                name = _PACKAGE + service.name
                tags.append({"name": service.name, "description": self._comments.of(name)})
                for method in service.method:
                    self._add_method(paths, service.name, f"{name}.{method.name}", method)
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Sealcomb",
                "version": "v1",
                "description": "Multi-tenant document and vector search, every account sealed under its own "
                "key. The same methods as over gRPC: same tokens, same limits, same errors.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "security": [{"token": []}],
            "tags": tags,
            "paths": dict(sorted(paths.items())),
            "components": {
                "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
                "schemas": self._schemas(),
                "responses": {
                    "Problem": {
                        "description": "The call was refused or failed.",
                        "headers": {
                            "x-request-id": {"schema": {"type": "string"}},
                            "retry-after": {"schema": {"type": "integer"}},
                        },
                        "content": {_PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                    }
                },
            },
        }

    def _add_message(self, name: str, message: Any) -> None:
        self._messages[name] = message
        self._enums |= {f"{name}.{enum.name}": enum for enum in message.enum_type}
        for nested in message.nested_type:
            self._add_message(f"{name}.{nested.name}", nested)

    def _add_method(self, paths: Json, service: str, name: str, method: MethodDescriptorProto) -> None:
        if f"/sealcomb.v1.{service}/{method.name}" not in PUBLIC_METHODS:
            return
        for number, binding in enumerate(_rules(method)):
            try:
                verb, path = _verb_and_path(binding)
            except Unbound:
                raise Unbound(f"{name[1:]} has no google.api.http binding") from None
            operation = self._operation(name, method, binding, path)
            operation["operationId"] = f"{service}_{method.name}" + (f"_{number + 1}" if number else "")
            operation["tags"] = [service]
            paths.setdefault(path, {})[verb] = operation

    def _operation(
        self, name: str, method: MethodDescriptorProto, rule: http_pb2.HttpRule, path: str
    ) -> Json:
        in_path = _VARIABLE.findall(path)
        message = self._messages[method.input_type]
        rest = [field for field in message.field if field.name not in in_path]
        operation: Json = {"summary": self._comments.of(name)}
        parameters = [
            {"name": variable, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for variable in in_path
        ]
        if rule.body:
            operation["requestBody"] = self._body(method, {field.name for field in rest})
        else:
            parameters += [
                {"name": field.name, "in": "query", "schema": self._field(field)}
                for field in rest
                if field.type != Field.TYPE_MESSAGE and field.name not in self._in_paths
            ]
        if parameters:
            operation["parameters"] = parameters
        answer = _reference(method.output_type)
        if method.server_streaming:
            answer = {"type": "array", "items": answer, "description": "One item for each message."}
        operation["responses"] = {
            "200": {"description": "OK", "content": {"application/json": {"schema": answer}}},
            "default": {"$ref": "#/components/responses/Problem"},
        }
        return operation

    def _body(self, method: MethodDescriptorProto, names: set[str]) -> Json:
        schema = _reference(method.input_type)
        if method.client_streaming:
            schema = {"type": "array", "items": schema}
        elif len(names) < len(self._messages[method.input_type].field):
            # What the path says is not said again.
            schema = self._object(method.input_type, names)
        return {"required": True, "content": {"application/json": {"schema": schema}}}

    def _schemas(self) -> Json:
        schemas: Json = {"Problem": _problem_schema()}
        for name in self._messages:
            fields = {field.name for field in self._messages[name].field}
            schemas[name.removeprefix(_PACKAGE)] = self._object(name, fields)
        for name, enum in self._enums.items():
            values = [value.name for value in enum.value]
            schemas[name.removeprefix(_PACKAGE)] = {"type": "string", "enum": values}
        return dict(sorted(schemas.items()))

    def _object(self, name: str, fields: set[str]) -> Json:
        properties = {}
        for field in self._messages[name].field:
            if field.name in fields:
                schema = self._field(field)
                text = self._comments.of(f"{name}.{field.name}")
                properties[field.name] = schema | {"description": text} if text else schema
        schema = {"type": "object", "properties": properties}
        text = self._comments.of(name)
        return schema | {"description": text} if text else schema

    def _field(self, field: Field) -> Json:
        schema = _scalar(field)
        return {"type": "array", "items": schema} if field.label == Field.LABEL_REPEATED else schema


def _scalar(field: Field) -> Json:
    if field.type in (Field.TYPE_MESSAGE, Field.TYPE_ENUM):
        return _reference(field.type_name)
    if field.type in _INTEGERS:
        lowest = {"minimum": 0} if field.type in (Field.TYPE_UINT32, Field.TYPE_FIXED32) else {}
        return {"type": "integer", **lowest}
    if field.type in _LONG_INTEGERS:
        # More than JSON's numbers hold exactly.
        return {"type": "string", "pattern": "^-?[0-9]+$"}
    if field.type in (Field.TYPE_FLOAT, Field.TYPE_DOUBLE):
        return {"type": "number"}
    if field.type == Field.TYPE_BOOL:
        return {"type": "boolean"}
    return (
        {"type": "string", "contentEncoding": "base64"}
        if field.type == Field.TYPE_BYTES
        else {"type": "string"}
    )


def _reference(type_name: str) -> Json:
    known = _WELL_KNOWN.get(type_name)
    return {"$ref": "#/components/schemas/" + type_name.removeprefix(_PACKAGE)} if known is None else known


def _problem_schema() -> Json:
    text, violation = {"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}
    return {
        "type": "object",
        "description": "RFC 9457.",
        "required": ["type", "title", "status", "detail", "code", "reason"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": text,
            "status": {"type": "integer"},
            "detail": text,
            "code": {**text, "description": "The gRPC status."},
            "reason": {**text, "description": "Stable, for programs."},
            "request_id": text,
            "field_violations": {"type": "array", "items": violation},
            "quota_violations": {"type": "array", "items": violation},
            "retry_after_s": {"type": "number"},
        },
    }


def _rules(method: MethodDescriptorProto) -> list[http_pb2.HttpRule]:
    rule = method.options.Extensions[annotations_pb2.http]
    return [rule, *rule.additional_bindings]


def _verb_and_path(rule: http_pb2.HttpRule) -> tuple[str, str]:
    verb = rule.WhichOneof("pattern")
    if verb not in ("get", "put", "post", "delete", "patch"):
        raise Unbound
    return verb, getattr(rule, verb)


def text() -> str:
    """The document as it is committed."""
    files = [file for file in described().file if file.package == "sealcomb.v1"]
    return json.dumps(Writer(files).document(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Run from the command line; the exit status is 1 when the check finds another text."""
    parser = argparse.ArgumentParser(description="Write services/gateway/openapi.json.")
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    check = parser.parse_args().check
    try:
        current = text()
    except Unbound as error:
        print(error)
        return 1
    if not check:
        OUT.write_text(current, encoding="utf-8")
        return 0
    if OUT.read_text(encoding="utf-8") == current:
        return 0
    print(f"{OUT.relative_to(ROOT)} is not what the protos give: run `make protos` and commit the result")
    return 1


if __name__ == "__main__":
    sys.exit(main())

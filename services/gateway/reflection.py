"""gRPC reflection at the edge, v1 and v1alpha: the public services and nothing inner.

The descriptors come from a pool of their own that holds the public files alone, so that no
name of an inner service can be asked for. The details of errors are among them: a client that learns
everything by reflection could not print an error otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import grpc.aio
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from sealcomb.v1 import (
    account_service_pb2,
    audit_service_pb2,
    collection_service_pb2,
    document_service_pb2,
    ingestion_service_pb2,
    key_service_pb2,
    search_service_pb2,
    source_service_pb2,
    token_service_pb2,
    vector_service_pb2,
)
from services.common.methods import REFLECTION_METHODS

PUBLIC_FILES: tuple[FileDescriptor, ...] = tuple(
    module.DESCRIPTOR
    for module in (
        account_service_pb2,
        audit_service_pb2,
        collection_service_pb2,
        document_service_pb2,
        ingestion_service_pb2,
        key_service_pb2,
        search_service_pb2,
        source_service_pb2,
        token_service_pb2,
        vector_service_pb2,
        health_pb2,
        error_details_pb2,
    )
)


def public_services() -> tuple[str, ...]:
    """The full names of the public services."""
    return tuple(sorted(name.full_name for file in PUBLIC_FILES for name in file.services_by_name.values()))


def client_stream_methods() -> frozenset[str]:
    """The paths of the public methods whose request is a stream."""
    return frozenset(path for path, method in _methods() if method.client_streaming)


def server_stream_methods() -> frozenset[str]:
    """The paths of the public methods whose answer is a stream."""
    return frozenset(path for path, method in _methods() if method.server_streaming)


def public_pool(files: Iterable[FileDescriptor] = PUBLIC_FILES) -> DescriptorPool:
    """A descriptor pool with these files and what they import."""
    pool = DescriptorPool()
    for proto in _with_imports(files):
        pool.Add(proto)
    return pool


def public_descriptors() -> bytes:
    """The public files and what they import, as a FileDescriptorSet."""
    return FileDescriptorSet(file=_with_imports(PUBLIC_FILES)).SerializeToString()


def _with_imports(files: Iterable[FileDescriptor]) -> list[FileDescriptorProto]:
    found: dict[str, FileDescriptorProto] = {}

    def add(file: FileDescriptor) -> None:
        if file.name in found:
            return
        for dependency in file.dependencies:
            add(dependency)
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        found[file.name] = proto

    for file in files:
        add(file)
    return list(found.values())


def add_reflection(server: grpc.aio.Server) -> None:
    """Registers reflection under both of its names; the two have the same messages on the wire."""
    servicer = ReflectionServicer(public_services(), public_pool())
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for path in REFLECTION_METHODS:
        service, method = path.strip("/").split("/")
        handlers: dict[str, Any] = {method: handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def _methods() -> Iterator[tuple[str, MethodDescriptor]]:
    for file in PUBLIC_FILES:
        for service in file.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}", method

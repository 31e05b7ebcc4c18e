"""The committed stubs are what the protos give, and every public method has its row in the table."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor

import sealcomb.v1
from scripts import protos
from services.common.methods import PUBLIC_METHODS


def _public_methods() -> set[str]:
    found = set()
    for module in pkgutil.iter_modules(sealcomb.v1.__path__, "sealcomb.v1."):
        if module.name.endswith("_pb2"):
            descriptor: FileDescriptor = importlib.import_module(module.name).DESCRIPTOR
            for service in descriptor.services_by_name.values():
                found |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    return found


def test_the_committed_stubs_are_what_the_protos_give() -> None:
    assert protos.drift() == []


def test_a_changed_stub_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "protos"
    proto = copy / "sealcomb" / "v1" / "thing.proto"
    proto.parent.mkdir(parents=True)
    proto.write_text('syntax = "proto3";\npackage sealcomb.v1;\nmessage Thing { string id = 1; }\n')
    monkeypatch.setattr(protos, "PROTOS", copy)
    protos.generate(copy)
    assert protos.drift() == []
    stub = copy / "sealcomb" / "v1" / "thing_pb2.py"
    stub.write_bytes(stub.read_bytes() + b"\n# changed by hand\n")
    assert protos.drift() == ["sealcomb/v1/thing_pb2.py"]


def test_a_left_over_stub_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.proto").write_text('syntax = "proto3";\nmessage Thing {}\n')
    monkeypatch.setattr(protos, "PROTOS", tmp_path)
    protos.generate(tmp_path)
    (tmp_path / "gone_pb2.py").write_text("")
    assert protos.drift() == ["gone_pb2.py"]


def test_the_method_table_and_the_descriptors_name_the_same_public_methods() -> None:
    """What has no row in the table does not exist outside, so none may be forgotten."""
    described = _public_methods()
    assert described
    assert set(PUBLIC_METHODS) - described == set(), "rows without a method"
    assert described - set(PUBLIC_METHODS) == set(), "methods without a row"

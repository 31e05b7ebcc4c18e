"""The committed OpenAPI document is what the protos give, is valid, and tells nothing of the inside."""

from __future__ import annotations

import copy
import json

import pytest
from openapi_spec_validator import validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from scripts import openapi
from scripts.protos import described


def test_the_committed_document_is_what_the_protos_give() -> None:
    assert openapi.OUT.read_text(encoding="utf-8") == openapi.text()


def test_the_document_is_valid_and_a_broken_one_is_noticed() -> None:
    document = json.loads(openapi.OUT.read_text(encoding="utf-8"))
    validate(document)
    broken = copy.deepcopy(document)
    broken["paths"]["/v1/whoami"]["get"]["parameters"] = [{"name": "x", "in": "nowhere"}]
    with pytest.raises(OpenAPIValidationError):
        validate(broken)


def test_it_tells_nothing_of_the_inside() -> None:
    text = openapi.OUT.read_text(encoding="utf-8")
    for word in ("internal.v1", "KeyRelease", "Passage", "envoy", "sealcomb-context"):
        assert word not in text, word


def test_a_method_without_a_binding_is_noticed() -> None:
    files = [file for file in described().file if file.package == "sealcomb.v1"]
    method = next(service for file in files for service in file.service).method[0]
    method.options.Clear()
    with pytest.raises(openapi.Unbound, match=method.name):
        openapi.Writer(files).document()


def test_no_field_of_a_path_is_a_field_of_a_query() -> None:
    """The edge overlooks such a parameter, so none may be needed."""
    document = json.loads(openapi.OUT.read_text(encoding="utf-8"))
    parameters = [
        parameter
        for verbs in document["paths"].values()
        for operation in verbs.values()
        for parameter in operation.get("parameters", ())
    ]
    in_path = {one["name"] for one in parameters if one["in"] == "path"}
    in_query = {one["name"] for one in parameters if one["in"] == "query"}
    assert in_path
    assert not in_path & in_query

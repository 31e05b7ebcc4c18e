"""XML that a source sent: no document types, so no entities of its own making, and nothing external."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree.ElementTree import ParseError  # the error that defusedxml's parser raises

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from services.ingest.sources.contract import SourceAnswerInvalid

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read_xml(content: bytes) -> Element:
    """The root element. SourceAnswerInvalid when it is no XML, or has a document type."""
    try:
        root: Element = fromstring(content, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError, RecursionError):
        raise SourceAnswerInvalid("the source's answer is no XML that is accepted") from None
    return root


def local_name(element: Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def text_of(element: Element, path: str) -> str:
    """The text of the first element at a path, or nothing; `{*}name` is of any namespace."""
    found = element.find(path)
    return (found.text or "").strip() if found is not None else ""

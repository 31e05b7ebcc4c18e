"""Signature Version 4 against the worked examples of AWS's documentation."""

from __future__ import annotations

import datetime
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.sources.contract import CredentialRefused
from services.ingest.sources.sigv4 import SigningKey, canonical_query, sign

KEY = SigningKey("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
HOST = "examplebucket.s3.amazonaws.com"
WHEN = datetime.datetime(2013, 5, 24, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("path", "headers", "signature"),
    [
        (
            "/test.txt",
            {"Range": "bytes=0-9"},
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        ("/?lifecycle", {}, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("/?max-keys=2&prefix=J", {}, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_the_worked_examples_have_their_signatures(
    path: str, headers: dict[str, str], signature: str
) -> None:
    authorization, extra = sign(
        KEY,
        region="us-east-1",
        when=WHEN,
        method="GET",
        url=f"https://{HOST}{path}",
        host=HOST,
        headers=headers,
        content=b"",
    )
    assert authorization.endswith(f"Signature={signature}")
    assert extra["x-amz-date"] == "20130524T000000Z"
    assert KEY.secret_key not in authorization + repr(KEY)


def test_the_token_of_a_temporary_key_is_signed_and_sent() -> None:
    key = SigningKey.parse("AK:secret:session-token")
    authorization, extra = sign(
        key, region="r", when=WHEN, method="GET", url=f"https://{HOST}/", host=HOST, headers={}, content=b""
    )
    assert extra["x-amz-security-token"] == "session-token"
    assert "x-amz-security-token" in authorization
    assert "session-token" not in repr(key)


@pytest.mark.parametrize("token", ["", "AK", "AK:", ":secret", "AK:sec ret", "AK:s\r\nx: y", "ÄK:secret"])
def test_a_key_that_is_not_one_is_refused(token: str) -> None:
    with pytest.raises(CredentialRefused):
        SigningKey.parse(token)


@given(st.dictionaries(st.text("ab&=+ %é/", max_size=4), st.text("ab&=+ %é/", max_size=6), max_size=4))
def test_a_query_is_sorted_and_encoded_once(pairs: dict[str, str]) -> None:
    canonical = canonical_query(urlencode(pairs))
    found = parse_qsl(canonical, keep_blank_values=True)
    assert dict(found) == pairs
    assert "+" not in canonical
    names = [part.partition("=")[0] for part in canonical.split("&")]
    assert names == sorted(names)

"""The AWS fake against moto, call by call, where moto is right; elsewhere against AWS's documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto import mock_aws

from tests.keyvault.kms.aws_fake import AwsFake
from tests.keyvault.kms.aws_states import REGION

_CONTEXT = {"account": "a"}
_Kms = Any


def _key(kms: _Kms) -> str:
    return str(kms.create_key(Tags=[{"TagKey": "t", "TagValue": "v"}])["KeyMetadata"]["Arn"])


def _round_trip(kms: _Kms) -> Any:
    arn = _key(kms)
    sealed = kms.encrypt(KeyId=arn, Plaintext=b"x" * 32, EncryptionContext=_CONTEXT)
    opened = kms.decrypt(KeyId=arn, CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext=_CONTEXT)
    return sealed["KeyId"] == arn, opened["KeyId"] == arn, opened["Plaintext"]


def _other_context(kms: _Kms) -> Any:
    arn = _key(kms)
    blob = kms.encrypt(KeyId=arn, Plaintext=b"x", EncryptionContext=_CONTEXT)["CiphertextBlob"]
    return kms.decrypt(KeyId=arn, CiphertextBlob=blob, EncryptionContext={"account": "b"})


def _other_key(kms: _Kms) -> Any:
    blob = kms.encrypt(KeyId=_key(kms), Plaintext=b"x", EncryptionContext=_CONTEXT)["CiphertextBlob"]
    return kms.decrypt(KeyId=_key(kms), CiphertextBlob=blob, EncryptionContext=_CONTEXT)


def _unknown_key(kms: _Kms) -> Any:
    arn = _key(kms)
    return kms.describe_key(KeyId=arn[:-12] + "0" * 12)


def _life(kms: _Kms) -> Any:
    arn = _key(kms)
    states = []
    for step, values in (
        ("disable_key", {}),
        ("enable_key", {}),
        ("schedule_key_deletion", {"PendingWindowInDays": 7}),
        ("cancel_key_deletion", {}),
    ):
        # By its id: moto finds no ARN here.
        getattr(kms, step)(KeyId=arn.rsplit("/", 1)[1], **values)
        described = kms.describe_key(KeyId=arn)["KeyMetadata"]
        states.append((described["KeyState"], described["Enabled"]))
    described = kms.describe_key(KeyId=arn)["KeyMetadata"]
    return states, described["KeySpec"]


def _data_key(kms: _Kms) -> Any:
    arn = _key(kms)
    made = kms.generate_data_key(KeyId=arn, NumberOfBytes=32, EncryptionContext=_CONTEXT)
    opened = kms.decrypt(KeyId=arn, CiphertextBlob=made["CiphertextBlob"], EncryptionContext=_CONTEXT)
    return made["KeyId"] == arn, opened["Plaintext"] == made["Plaintext"], len(made["Plaintext"])


def _moved(kms: _Kms) -> Any:
    source, destination = _key(kms), _key(kms)
    blob = kms.encrypt(KeyId=source, Plaintext=b"x", EncryptionContext=_CONTEXT)["CiphertextBlob"]
    moved = kms.re_encrypt(
        CiphertextBlob=blob,
        SourceKeyId=source,
        SourceEncryptionContext=_CONTEXT,
        DestinationKeyId=destination,
        DestinationEncryptionContext={"account": "b"},
    )
    opened = kms.decrypt(
        KeyId=destination, CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"account": "b"}
    )
    return moved["KeyId"] == destination, moved["SourceKeyId"] == source, opened["Plaintext"]


def _outcome(kms: _Kms, case: Callable[[_Kms], Any]) -> Any:
    try:
        return case(kms)
    except ClientError as error:
        return error.response["Error"]["Code"]


def _client(url: str | None = None) -> _Kms:
    return boto3.client("kms", region_name=REGION, endpoint_url=url, config=Config(proxies={}))


@pytest.mark.parametrize("case", [_round_trip, _other_context, _unknown_key, _life, _data_key, _moved])
def test_the_fake_answers_like_moto(fake: AwsFake, case: Callable[[_Kms], Any]) -> None:
    with mock_aws():
        expected = _outcome(_client(), case)
    assert _outcome(_client(fake.url), case) == expected


def test_the_fake_is_strict_where_moto_is_not(fake: AwsFake) -> None:
    """AWS KMS API reference, Decrypt: IncorrectKeyException, DisabledException, KMSInvalidStateException."""
    kms = _client(fake.url)
    assert _outcome(kms, _other_key) == "IncorrectKeyException"
    for off, expected in (
        (lambda arn: kms.disable_key(KeyId=arn), "DisabledException"),
        (lambda arn: kms.schedule_key_deletion(KeyId=arn), "KMSInvalidStateException"),
    ):
        arn = _key(kms)
        blob = kms.encrypt(KeyId=arn, Plaintext=b"x")["CiphertextBlob"]
        off(arn)
        with pytest.raises(ClientError) as refusal:
            kms.decrypt(KeyId=arn, CiphertextBlob=blob)
        assert refusal.value.response["Error"]["Code"] == expected


def test_moto_opens_with_a_disabled_key_which_is_why_there_is_a_fake(fake: AwsFake) -> None:
    """The day this fails, moto has learned it."""
    del fake
    with mock_aws():
        kms = _client()
        arn = _key(kms)
        blob = kms.encrypt(KeyId=arn, Plaintext=b"x")["CiphertextBlob"]
        kms.disable_key(KeyId=arn.rsplit("/", 1)[1])
        assert kms.decrypt(KeyId=arn, CiphertextBlob=blob)["Plaintext"] == b"x"

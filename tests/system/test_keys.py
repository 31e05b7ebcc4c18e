"""An account's key through the edge: bound anew while its data is in use, and what cannot be bound."""

from __future__ import annotations

import pytest

from sealcomb.v1.key_service_pb2 import AwsKey, InstallationKey, Pkcs11Key, TransitKey
from sealcomb_client import ApiError
from tests.system.installation import Installation


def test_an_account_is_bound_to_another_key_while_its_data_is_in_use(installation: Installation) -> None:
    """D20: nothing is lost, and the audit chain says who did it."""
    account = installation.new_account()
    client = account.client
    client.collections.create("texts", embedder="default")
    client.documents.upload("texts", b"The drones are driven out in August.", name="drones.txt")
    key = client.keys.bind(InstallationKey())
    assert (key.version, key.provider, key.adopted_key) == (2, "file", "")
    assert client.search("texts", "what happens to drones?")[0].document_name == "drones.txt"
    assert ("key.bind", "ok") in {(event.action, event.outcome) for event in client.audit.list()}
    for wrong in (AwsKey(arn="arn"), TransitKey(mount="m", name="n"), Pkcs11Key(label="l")):
        with pytest.raises(ApiError) as refusal:
            client.keys.bind(wrong)
        assert (refusal.value.code, refusal.value.fields[0].field) == ("INVALID_ARGUMENT", "key")
    assert client.keys.get().version == 2

"""Every KMS, ready to be asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from services.common.clock import SystemClock
from services.keyvault.kms.aws import AwsKms
from services.keyvault.kms.aws_client import AwsClient
from services.keyvault.kms.aws_root import AwsRootKms
from services.keyvault.kms.file import FileKms
from services.keyvault.kms.guard import GuardedKms
from services.keyvault.kms.protocol import Kms
from services.keyvault.kms.registry import KmsRegistry
from tests.keyvault.kms.aws_fake import OUR_ACCESS_KEY, AwsFake
from tests.keyvault.kms.aws_states import ACCOUNT, REGION
from tests.keyvault.kms.peers import Bao, Token, new_token, soft_hsm
from tests.keyvault.rig import MemoryKms

PROVIDERS = ["file", "memory", "aws", "aws-root", "transit", "pkcs11", "guarded", "registry"]


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    """An OpenBao server."""
    server = Bao(tmp_path_factory.mktemp("bao"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    """A token of SoftHSM."""
    folder = tmp_path_factory.mktemp("softhsm")
    soft_hsm(folder)
    return new_token(folder)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsFake]:
    """A strict AWS, and credentials for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", OUR_ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    server = AwsFake()
    yield server
    server.stop()


def aws_client(fake: AwsFake, timeout_s: float = 3.0) -> AwsClient:
    """A client of the fake."""
    return AwsClient(REGION, ACCOUNT, SystemClock(), endpoint_url=fake.url, timeout_s=timeout_s)


@pytest.fixture
async def kms(request: pytest.FixtureRequest) -> AsyncIterator[Kms]:
    """The KMS that the test's parameter names."""
    name = request.param
    made: Kms
    if name == "file":
        made = FileKms(bytes(range(32)))
    elif name == "memory":
        made = MemoryKms()
    elif name == "transit":
        made = request.getfixturevalue("bao").kms()
    elif name == "pkcs11":
        made = request.getfixturevalue("token").kms()
    else:
        client = aws_client(request.getfixturevalue("fake"))
        root = request.getfixturevalue("fake").states.add_key().arn
        made = AwsRootKms(client, root, SystemClock()) if name == "aws-root" else AwsKms(client)
        if name == "guarded":
            made = GuardedKms(made, SystemClock(), calls_per_second=10_000)
        if name == "registry":
            made = KmsRegistry(made, [MemoryKms()])
    yield made
    await made.close()

"""The keyvault process over each KMS: chosen by settings, waiting for it, refusing bad settings (D26)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from tests.keyvault.kms.aws_fake import AwsFake
from tests.keyvault.kms.aws_states import ACCOUNT, ROOT
from tests.keyvault.kms.peers import SOFTHSM, Bao, new_token, soft_hsm
from tests.keyvault.kms.process import KeyvaultProcess, aws_settings, until

_START_S = 20


@pytest.mark.parametrize("provider", ["aws", "aws-root", "transit", "pkcs11"])
def test_it_serves_over_each_kms_and_finds_its_keys_again(
    fake: AwsFake, bao: Bao, tmp_path: Path, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if provider == "transit":
        settings = {
            "SEALCOMB_KMS": "transit",
            "SEALCOMB_TRANSIT_URL": bao.url,
            "SEALCOMB_TRANSIT_TOKEN_FILE": str(bao.token_file),
            "SEALCOMB_TRANSIT_CA_FILE": str(bao.ca_file),
        }
    elif provider == "pkcs11":
        monkeypatch.setenv("SOFTHSM2_CONF", "")
        soft_hsm(tmp_path)
        made = new_token(tmp_path)
        settings = {
            "SEALCOMB_KMS": "pkcs11",
            "SEALCOMB_PKCS11_MODULE": str(SOFTHSM),
            "SEALCOMB_PKCS11_TOKEN": made.label,
            "SEALCOMB_PKCS11_PIN_FILE": str(made.pin_file),
            "SOFTHSM2_CONF": os.environ["SOFTHSM2_CONF"],
        }
    else:
        settings = aws_settings(
            fake, SEALCOMB_KMS=provider, SEALCOMB_AWS_ROOT_KEY_ARN=fake.states.add_key().arn
        )
    keyvault = KeyvaultProcess(tmp_path, **settings)
    for _ in range(2):
        with keyvault.started() as process:
            assert until(process, "serving")["provider"] == provider
            assert keyvault.health() == health_pb2.HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


def test_a_kms_that_does_not_answer_is_waited_for_and_said_so(fake: AwsFake, tmp_path: Path) -> None:
    """Not ready until it answers, then ready by itself; a stop meanwhile is clean."""
    keyvault = KeyvaultProcess(tmp_path, **aws_settings(fake))
    fake.stop()
    with keyvault.started() as process:
        said = until(process, "waiting for the KMS")
        assert (said["provider"], said["reason"]) == ("aws", "KMS_UNAVAILABLE")
        assert keyvault.health() == health_pb2.HealthCheckResponse.NOT_SERVING
        fake.start()
        until(process, "serving")
        assert keyvault.health() == health_pb2.HealthCheckResponse.SERVING
    fake.stop()
    with keyvault.started() as process:
        until(process, "waiting for the KMS")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_kms_that_denies_its_use_is_waited_for_and_said_so(fake: AwsFake, tmp_path: Path) -> None:
    fake.states.denied.add((ROOT, "*", "CreateKey"))
    with KeyvaultProcess(tmp_path, **aws_settings(fake)).started() as process:
        assert until(process, "waiting for the KMS")["reason"] == "KMS_ACCESS_DENIED"
        fake.states.denied.clear()
        until(process, "serving")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"SEALCOMB_AWS_REGION": ""}, "settings missing for the KMS 'aws'"),
        ({"SEALCOMB_AWS_ACCOUNT_ID": "12"}, "SEALCOMB_AWS_ACCOUNT_ID"),
        ({"SEALCOMB_AWS_ENDPOINT_URL": "http://kms.example"}, "must be https"),
        ({"SEALCOMB_KMS": "gcp"}, "SEALCOMB_KMS"),
        ({"SEALCOMB_KMS": "transit"}, "settings missing for the KMS 'transit'"),
        ({"SEALCOMB_KMS": "file"}, "SEALCOMB_ROOT_KEY_FILE"),
    ],
)
def test_settings_that_cannot_serve_are_named(
    fake: AwsFake, tmp_path: Path, changes: dict[str, str], why: str
) -> None:
    said = KeyvaultProcess(tmp_path, **{**aws_settings(fake), **changes}).refused()
    assert why in said
    assert len(said.strip().splitlines()) == 1


def test_another_region_than_the_databases_is_refused(fake: AwsFake, tmp_path: Path) -> None:
    """D26: and so is a root key in a region that is not the settings' own."""
    keyvault = KeyvaultProcess(tmp_path, **aws_settings(fake))
    with keyvault.started() as process:
        until(process, "serving")
    keyvault.environment["SEALCOMB_AWS_REGION"] = "us-east-1"
    assert "another one than this database's" in keyvault.refused()
    elsewhere = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/00000000-0000-0000-0000-000000000000"
    (tmp_path / "new").mkdir()
    root = KeyvaultProcess(
        tmp_path / "new", **aws_settings(fake, SEALCOMB_KMS="aws-root", SEALCOMB_AWS_ROOT_KEY_ARN=elsewhere)
    )
    assert "another AWS region" in root.refused()


def test_a_kms_whose_sdk_is_not_installed_is_named() -> None:
    """The default installation has none of them."""
    script = (
        "import sys\n"
        "sys.modules['boto3'] = sys.modules['pkcs11'] = sys.modules['httpx'] = None\n"
        "import services.keyvault.main\n"
        "from services.keyvault.kms import selection\n"
        "for name in ('aws-root', 'pkcs11', 'transit'):\n"
        "    try:\n"
        "        selection._open(name, None, None)\n"
        "    except selection.ProviderNotInstalled as error:\n"
        "        print(error)\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    ).stdout
    for extra in ("keyvault-aws", "keyvault-pkcs11", "keyvault-transit"):
        assert f"sealcomb[{extra}]" in said

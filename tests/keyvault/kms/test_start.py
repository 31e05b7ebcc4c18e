"""The keyvault process over each KMS: chosen by settings, waiting for it, refusing bad settings (D26)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.tls import host_of
from services.standalone.pki import ensure_installation
from tests.keyvault.kms.aws_fake import OUR_ACCESS_KEY, AwsFake
from tests.keyvault.kms.aws_states import ACCOUNT, REGION, ROOT
from tests.keyvault.kms.peers import SOFTHSM, Bao, new_token, soft_hsm

_START_S = 20


class _Process:
    """A keyvault, its log lines read as they come."""

    def __init__(self, folder: Path, **settings: str) -> None:
        keys = ensure_installation(folder / "keys")
        (folder / "data").mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.keys = keys
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "SEALCOMB_LISTEN": f"127.0.0.1:{self.port}",
            "SEALCOMB_TLS_DIR": str(keys.tls_dir("keyvault")),
            "SEALCOMB_CONTEXT_TRUST_DIR": str(keys.context_trust_dir),
            "SEALCOMB_CONTEXT_KEY_FILE": str(keys.context_key_file("keyvault")),
            "SEALCOMB_DATABASE_URL": f"sqlite:///{folder}/data/keyvault.db",
            "SEALCOMB_KMS_TIMEOUT_S": "2",
            **settings,
        }

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[str]]:
        """The process."""
        command = [sys.executable, "-m", "services.keyvault.main"]
        with subprocess.Popen(command, env=self.environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def refused(self) -> str:
        """Why it does not start."""
        with self.started() as process:
            _, why = process.communicate(timeout=_START_S)
        assert process.returncode == 1
        assert "Traceback" not in why
        return why

    def health(self) -> int:
        """What health says to a peer."""
        tls = self.keys.tls_dir("vectorstore")
        credentials = grpc.ssl_channel_credentials(
            *((tls / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
        )
        options = [("grpc.ssl_target_name_override", host_of("keyvault"))]
        with grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status)


def _until(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    assert process.stderr is not None
    for line in process.stderr:
        with suppress(ValueError):
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
    raise AssertionError("it ended")


def _aws(fake: AwsFake, **more: str) -> dict[str, str]:
    return {
        "SEALCOMB_KMS": "aws",
        "SEALCOMB_AWS_REGION": REGION,
        "SEALCOMB_AWS_ACCOUNT_ID": ACCOUNT,
        "SEALCOMB_AWS_ENDPOINT_URL": fake.url,
        "AWS_ACCESS_KEY_ID": OUR_ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        **more,
    }


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
        settings = _aws(fake, SEALCOMB_KMS=provider, SEALCOMB_AWS_ROOT_KEY_ARN=fake.states.add_key().arn)
    keyvault = _Process(tmp_path, **settings)
    for _ in range(2):
        with keyvault.started() as process:
            assert _until(process, "serving")["provider"] == provider
            assert keyvault.health() == health_pb2.HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


def test_a_kms_that_does_not_answer_is_waited_for_and_said_so(fake: AwsFake, tmp_path: Path) -> None:
    """Not ready until it answers, then ready by itself; a stop meanwhile is clean."""
    keyvault = _Process(tmp_path, **_aws(fake))
    fake.stop()
    with keyvault.started() as process:
        said = _until(process, "waiting for the KMS")
        assert (said["provider"], said["reason"]) == ("aws", "KMS_UNAVAILABLE")
        assert keyvault.health() == health_pb2.HealthCheckResponse.NOT_SERVING
        fake.start()
        _until(process, "serving")
        assert keyvault.health() == health_pb2.HealthCheckResponse.SERVING
    fake.stop()
    with keyvault.started() as process:
        _until(process, "waiting for the KMS")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_kms_that_denies_its_use_is_waited_for_and_said_so(fake: AwsFake, tmp_path: Path) -> None:
    fake.states.denied.add((ROOT, "*", "CreateKey"))
    with _Process(tmp_path, **_aws(fake)).started() as process:
        assert _until(process, "waiting for the KMS")["reason"] == "KMS_ACCESS_DENIED"
        fake.states.denied.clear()
        _until(process, "serving")


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
    said = _Process(tmp_path, **{**_aws(fake), **changes}).refused()
    assert why in said
    assert len(said.strip().splitlines()) == 1


def test_another_region_than_the_databases_is_refused(fake: AwsFake, tmp_path: Path) -> None:
    """D26: and so is a root key in a region that is not the settings' own."""
    keyvault = _Process(tmp_path, **_aws(fake))
    with keyvault.started() as process:
        _until(process, "serving")
    keyvault.environment["SEALCOMB_AWS_REGION"] = "us-east-1"
    assert "another one than this database's" in keyvault.refused()
    elsewhere = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/00000000-0000-0000-0000-000000000000"
    (tmp_path / "new").mkdir()
    root = _Process(
        tmp_path / "new", **_aws(fake, SEALCOMB_KMS="aws-root", SEALCOMB_AWS_ROOT_KEY_ARN=elsewhere)
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

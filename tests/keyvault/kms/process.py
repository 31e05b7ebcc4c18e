"""A keyvault process over any KMS, for tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.tls import host_of
from services.standalone.pki import ensure_installation
from tests.keyvault.kms.aws_fake import OUR_ACCESS_KEY, AwsFake
from tests.keyvault.kms.aws_states import ACCOUNT, REGION

_START_S = 20


class KeyvaultProcess:
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


def until(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """The log line of an event, once it is there."""
    assert process.stderr is not None
    for line in process.stderr:
        with suppress(ValueError):
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
    raise AssertionError("it ended")


def aws_settings(fake: AwsFake, **more: str) -> dict[str, str]:
    """Settings of a keyvault whose keys are in the fake."""
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

"""Real servers as processes of their own on free loopback ports, with certificates of the tests."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.ingest.sources.servers.https import Tls

ACCESS_KEY, SECRET_KEY = "AKIAREAL", "secret-of-the-canary"
USER, PASSWORD = "ann", "password of the canary: ü"
_START_S_MAX = 40.0


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [entry.getsockname()[1] for entry in sockets]
    for entry in sockets:
        entry.close()
    return ports


@contextlib.contextmanager
def seaweed(folder: Path, tls: Tls) -> Iterator[int]:
    """SeaweedFS's S3 server over TLS; gives its port."""
    # Each part's gRPC port is its own plus 10,000 unless it is named.
    master, volume, filer, s3, master_g, volume_g, filer_g, s3_g = free_ports(8)
    config = folder / "s3.json"
    key = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    identity = {"name": "tests", "credentials": [key], "actions": ["Admin", "Read", "Write", "List"]}
    config.write_text(json.dumps({"identities": [identity]}))
    command = [str(Path(sys.executable).with_name("weed")), "server", f"-dir={folder}", "-ip=127.0.0.1"]
    command += ["-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={config}", f"-s3.port={s3}"]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    command += [f"-master.port.grpc={master_g}", f"-volume.port.grpc={volume_g}"]
    command += [f"-filer.port.grpc={filer_g}", f"-s3.port.grpc={s3_g}", "-volume.max=5"]
    command += [f"-s3.cert.file={tls.certificate_file}", f"-s3.key.file={tls.key_file}"]
    command += ["-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
    # These listen at ports of their own choice, where another test's server may be.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    with _running(command, folder / "weed.log", s3):
        yield s3


@contextlib.contextmanager
def wsgidav(folder: Path, tls: Tls) -> Iterator[int]:
    """WsgiDAV over TLS with Basic authentication; gives its port. Serves `folder`."""
    (port,) = free_ports(1)
    config = folder.with_suffix(".json")
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "provider_mapping": {"/dav": str(folder)},
        "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
        "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
        "ssl_certificate": str(tls.certificate_file),
        "ssl_private_key": str(tls.key_file),
        "ssl_adapter": "builtin",
        "logging": {"enable": False},
    }
    config.write_text(json.dumps(settings))
    command = [str(Path(sys.executable).with_name("wsgidav")), "--config", str(config), "--quiet"]
    with _running(command, folder.with_suffix(".log"), port):
        yield port


@contextlib.contextmanager
def _running(command: list[str], log: Path, port: int) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
        try:
            _wait(process, port, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + _START_S_MAX
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text('utf-8', 'replace')[-3000:]}")

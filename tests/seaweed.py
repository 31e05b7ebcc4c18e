"""A real S3 server for tests (SeaweedFS), on free ports of loopback, gone afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.standalone.ports import free_ports

ADMIN = ("sealcomb-admin", "sealcomb-admin-secret")
# What a service has: it makes no bucket, as an administrator would by the mere use of it.
OWNER = ("sealcomb-test", "sealcomb-test-secret")
READER = ("sealcomb-reader", "sealcomb-reader-secret")
# Free ports are chosen before they are taken, so somebody else may be faster.
_TRIES = 3


class SeaweedFs:
    """A server; its buckets are below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = free_ports(8)
        identities = [
            _identity("admin", ADMIN, ["Admin", "Read", "Write", "List"]),
            _identity("owner", OWNER, ["Read", "Write", "List"]),
            _identity("reader", READER, ["Read", "List"]),
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))

    @property
    def port(self) -> int:
        """Where it speaks S3."""
        return self._ports[0]

    @property
    def endpoint(self) -> str:
        """The same as a URL."""
        return f"http://127.0.0.1:{self.port}"

    def credentials(self, who: tuple[str, str] = OWNER) -> Path:
        """A credentials file as AWS's SDK reads them."""
        path = self._folder / f"{who[0]}.credentials"
        path.write_text(f"[default]\naws_access_key_id = {who[0]}\naws_secret_access_key = {who[1]}\n")
        path.chmod(0o600)
        return path

    def url(self, bucket: str, prefix: str = "", who: tuple[str, str] = OWNER) -> str:
        """The objects URL of a bucket here, as the services take it."""
        place = f"{bucket}/{prefix}" if prefix else bucket
        return f"s3://{place}?endpoint={self.endpoint}&credentials_file={self.credentials(who)}"

    def client(self) -> Any:
        """A client of the administrator's."""
        # Only where it is used: it takes long to import.
        import boto3
        from botocore.config import Config

        session = boto3.Session(aws_access_key_id=ADMIN[0], aws_secret_access_key=ADMIN[1])
        config = Config(retries={"total_max_attempts": 3}, proxies={})
        return session.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", config=config)

    def make_bucket(self, name: str) -> str:
        """Makes an empty bucket."""
        self.client().create_bucket(Bucket=name)
        return name

    def start(self) -> None:
        """Starts it and waits until it answers and stores."""
        for left in reversed(range(_TRIES)):
            try:
                self._start()
                return
            except OSError:
                self.stop()
                if not left:
                    raise
                self._ports = free_ports(8)

    def stop(self) -> None:
        """Ends it, in the way that does not take it 20 seconds."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def _start(self) -> None:
        s3, master, volume, filer, *grpc = self._ports
        command = [str(Path(sys.executable).with_name("weed")), "server", f"-dir={self._folder}"]
        command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.port={s3}"]
        # Every bucket takes some of them.
        command += [f"-s3.config={self._folder / 's3.json'}", "-volume.max=1000"]
        # These listen at ports of their own choice, where another test's server may be.
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
        names = ("s3", "master", "volume", "filer")
        command += [f"-{name}.port.grpc={port}" for name, port in zip(names, grpc, strict=True)]
        command += ["-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        deadline = time.monotonic() + 60
        while True:
            if self._process.poll() is not None:
                raise OSError((self._folder / "weed.log").read_text()[-2000:])
            try:
                client = self.client()
                if "probe" not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
                    client.create_bucket(Bucket="probe")
                client.put_object(Bucket="probe", Key="probe", Body=b"x")
                return
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


@contextmanager
def running_seaweed(folder: Path) -> Iterator[SeaweedFs]:
    """A server whose data are in a new folder."""
    server = SeaweedFs(folder / "seaweed")
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _identity(name: str, key: tuple[str, str], actions: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "credentials": [{"accessKey": key[0], "secretKey": key[1]}],
        "actions": actions,
    }

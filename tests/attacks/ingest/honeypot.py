"""A network of its own in which private and metadata addresses answer, and nobody may reach them.

Runs inside new network and mount namespaces (see `main`): every address below is on its loopback device,
with a honeypot on port 443 and 80 that counts connections; a public address is a hostile web server that
redirects inwards; and a name server answers public and inner addresses in turn. Requests go through the
real client with the machine's own resolver. Prints one JSON object of figures.

Must never run in the namespace of the machine: it would give it other machines' addresses.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.common.errors import SealcombError
from services.ingest.egress import network
from services.ingest.egress.addresses import Reach
from services.ingest.egress.client import Egress, EgressLimits
from services.ingest.egress.network import open_tls
from services.ingest.egress.target import HostRules
from tests.attacks.ingest.names import NameServer
from tests.certificates import TestCa, address, dns, write_files

PUBLIC = "93.184.215.14"
INNER = (
    "169.254.169.254",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "198.18.0.1",
    "127.0.0.1",
)
INNER_V6 = ("fd00:ec2::254", "fd20:ce::254", "fe80::a9fe:a9fe")
HOST = "hostile.example"


@dataclass
class Honeypot:
    """Who came."""

    hits: dict[str, int] = field(default_factory=dict)

    def listen(self, host: str, port: int) -> None:
        """Counts each connection to an address, and closes it."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = socket.create_server((host, port), family=family, backlog=512)

        def accept() -> None:
            while True:
                connection, _ = server.accept()
                self.hits[host] = self.hits.get(host, 0) + 1
                connection.close()

        threading.Thread(target=accept, daemon=True).start()

    @property
    def total(self) -> int:
        """All connections."""
        return sum(self.hits.values())


class Redirector:
    """The hostile web server at the public address: `/N` leads to the Nth address of the corpus."""

    def __init__(self, corpus: list[str], tls: ssl.SSLContext) -> None:
        self.requests = 0
        self._corpus = corpus
        self._tls = tls

    async def start(self) -> None:
        """Listens."""
        await asyncio.start_server(self._serve, PUBLIC, 443, ssl=self._tls)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                number = head.split()[1].strip(b"/")
                if not number.isdigit():
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                else:
                    location = self._corpus[int(number)].encode()
                    writer.write(b"HTTP/1.1 302 x\r\ncontent-length: 0\r\nlocation: %s\r\n\r\n" % location)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def corpus() -> list[str]:
    """Where redirects and users' addresses lead: each inner address in every spelling, and other schemes."""
    found = []
    for host in INNER:
        number = int.from_bytes(socket.inet_aton(host), "big")
        a, b, c, d = socket.inet_aton(host)
        found += [host, str(number), hex(number), f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"{a}.{b}.{c * 256 + d}"]
        found += [f"[::ffff:{host}]", f"[64:ff9b::{host}]", f"[2002:{a:02x}{b:02x}:{c:02x}{d:02x}::]"]
        found += [f"{host}.", f"user@{host}", f"{HOST}@{host}", f"{host}%2f"]
    found += [f"[{host}]" for host in INNER_V6] + ["[fe80::a9fe:a9fe%25lo]", "[::]", "0", "localhost"]
    found += ["inner.example", "mixed.example", "①⑥⑨.②⑤④.①⑥⑨.②⑤④"]
    urls = [f"https://{host}/" for host in found] + [f"http://{host}/" for host in INNER]
    urls += [f"https://{PUBLIC}:{port}/" for port in (22, 80, 6379, 8080)]
    return [*urls, "file:///etc/passwd", "gopher://127.0.0.1:443/_x", "ftp://10.0.0.1/", "unix:/run/x"]


@dataclass
class Figures:
    """What an attack did: requests that were made, and answers from the public host."""

    tries: int = 0
    answered: int = 0


async def attack(egress: Egress, urls: list[str], figures: Figures) -> None:
    """Asks for each address directly, and by a redirect of the public host."""
    for number, url in enumerate(urls):
        for wanted in (url, f"https://{HOST}/{number}"):
            figures.tries += 1
            try:
                await egress.send("GET", wanted, timeout_s=5.0)
                figures.answered += 1
            except SealcombError:
                continue


async def rebind(egress: Egress, rounds: int, figures: Figures) -> None:
    """Asks again and again for a name that is public and inner in turn, without a time to live."""
    for _ in range(rounds):
        figures.tries += 1
        try:
            # One connection for each request, so that each is a look-up.
            await egress.send(
                "GET", "https://rebind.example/", headers={"connection": "close"}, timeout_s=5.0
            )
            figures.answered += 1
        except SealcombError:
            continue


async def measure(folder: Path, rounds: int, *, checked: bool) -> dict[str, Any]:
    """The figures of both attacks; without the check of addresses for the twin."""
    names = ("rebind.example", HOST, "inner.example", "mixed.example")
    files = write_files(folder, TestCa.make().issue([*map(dns, names), address(PUBLIC)]))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    pot, resolver = Honeypot(), NameServer(PUBLIC, INNER)
    for host in (*INNER, *INNER_V6[:2]):
        for port in (443, 80):
            pot.listen(host, port)
    resolver.start()
    urls = corpus()
    redirector = Redirector(urls, server)
    await redirector.start()
    if not checked:
        network.reach_of = lambda packed: Reach.PUBLIC  # type: ignore[attr-defined]
    tls = open_tls(str(Path(files.folder) / "ca.pem"))
    limits = EgressLimits(timeout_s=5.0, connect_timeout_s=1.0)
    corpus_figures, rebinding = Figures(), Figures()
    egress = Egress(HostRules(), tls=tls, limits=limits)
    await attack(egress, urls, corpus_figures)
    hits = pot.total
    await rebind(egress, rounds, rebinding)
    await egress.close()
    await asyncio.sleep(0.2)
    return {
        "corpus": {"tries": corpus_figures.tries, "hits": hits, "redirects": redirector.requests},
        "rebinding": {
            "tries": rebinding.tries,
            "hits": pot.total - hits,
            "answered": rebinding.answered,
            "questions": resolver.questions.get("rebind.example", 0),
        },
    }


def run(rounds: int, *, checked: bool) -> dict[str, Any]:
    """The figures, from a process in namespaces of its own."""
    command = ["unshare", "--net", "--mount"]
    if os.getuid() != 0:
        command += ["--user", "--map-root-user"]
    command += [sys.executable, "-m", "tests.attacks.ingest.honeypot", str(rounds), "1" if checked else "0"]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((".", "protos", "client"))},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _settle(folder: Path) -> None:
    """Gives this namespace its addresses and its name server; refuses the machine's own."""
    if os.readlink("/proc/self/ns/net") == os.readlink(f"/proc/{os.getppid()}/ns/net"):
        sys.exit("run through honeypot.run: this is the machine's own network")
    commands = [["ip", "link", "set", "lo", "up"]]
    commands += [["ip", "address", "add", f"{host}/32", "dev", "lo"] for host in (*INNER[:-1], PUBLIC)]
    commands += [["ip", "-6", "address", "add", f"{host}/128", "dev", "lo", "nodad"] for host in INNER_V6]
    (folder / "resolv.conf").write_text("nameserver 127.0.0.53\noptions timeout:1 attempts:1\n")
    commands.append(["mount", "--bind", str(folder / "resolv.conf"), "/etc/resolv.conf"])
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Measures, in the namespaces that `run` made."""
    rounds, checked = int(sys.argv[1]), sys.argv[2] == "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _settle(folder)
        print(json.dumps(asyncio.run(measure(folder, rounds, checked=checked))))


if __name__ == "__main__":
    main()

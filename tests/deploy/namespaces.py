"""A network of namespaces: a namespace for each party on one bridge, with rules from the NetworkPolicies.

The bridge is in a namespace of its own, so nothing of the machine's network is touched; all of it
is gone with the block. Needs root.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.policies import Party, Pod, passes
from tests.deploy.rendered import Json

_SUBNET = "10.77.0"
_HOSTS = Path("/etc/netns")


@dataclass(frozen=True)
class Network:
    """Parties with an address each."""

    prefix: str
    parties: Mapping[str, Party]

    def address(self, party: str) -> str:
        """A party's address."""
        return f"{_SUBNET}.{10 + list(self.parties).index(party)}"

    def inside(self, party: str, *command: str) -> list[str]:
        """A command to be run in a party's namespace."""
        return ["ip", "netns", "exec", f"{self.prefix}-{party}", *command]

    def enforce(self, policies: list[Json], ports: tuple[int, ...]) -> None:
        """Lets each pod's namespace pass what the policies let pass, and nothing else."""
        for name, party in self.parties.items():
            if isinstance(party, Pod):
                rules = self._rules(policies, name, party, ports)
                _run(*self.inside(name, "nft", "-f", "-"), stdin=rules)

    def lift(self) -> None:
        """No rules at all: the twin."""
        for name in self.parties:
            _run(*self.inside(name, "nft", "flush", "ruleset"))

    def _rules(self, policies: list[Json], name: str, pod: Pod, ports: tuple[int, ...]) -> str:
        chains = {"input": ("Ingress", "saddr"), "output": ("Egress", "daddr")}
        lines = ["table inet drawn {"]
        for chain, (direction, field) in chains.items():
            lines.append(f"chain {chain} {{ type filter hook {chain} priority 0; policy drop;")
            lines.append("ct state established,related accept;")
            lines.append(f"{'iif' if chain == 'input' else 'oif'} lo accept;")
            lines += [
                f"ip {field} {self.address(peer)} tcp dport {port} accept;"
                for peer, party in self.parties.items()
                for port in ports
                if peer != name and passes(policies, direction, pod, party, port)
            ]
            lines.append("}")
        return "\n".join([*lines, "}"])


@contextmanager
def network(parties: Mapping[str, Party], names: Mapping[str, str]) -> Iterator[Network]:
    """The network for the block; `names` are host names, and the party that each stands for."""
    made = Network(f"sc{secrets.token_hex(3)}", parties)
    switch = f"{made.prefix}-sw"
    spaces = [switch, *(f"{made.prefix}-{party}" for party in parties)]
    hosts = "127.0.0.1 localhost\n" + "".join(
        f"{made.address(party)} {host}\n" for host, party in names.items()
    )
    try:
        for space in spaces:
            _run("ip", "netns", "add", space)
            _run("ip", "-n", space, "link", "set", "lo", "up")
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        for number, party in enumerate(parties):
            space, port = f"{made.prefix}-{party}", f"p{number}"
            _run(
                "ip",
                "-n",
                switch,
                "link",
                "add",
                port,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                space,
            )
            _run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
            _run("ip", "-n", space, "address", "add", f"{made.address(party)}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            (_HOSTS / space).mkdir(parents=True)
            (_HOSTS / space / "hosts").write_text(hosts)
        yield made
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)
            shutil.rmtree(_HOSTS / space, ignore_errors=True)


def _run(*command: str, stdin: str = "") -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"

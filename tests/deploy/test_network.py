"""The private network for real: a namespace for each service, behind rules made of the policies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from services.standalone.config import SERVICE_ORDER, Layout, StandaloneSettings
from services.standalone.pki import ensure_installation
from tests.deploy.namespaces import Network, network
from tests.deploy.policies import Outside, Party, Pod, allowed
from tests.deploy.rendered import named, of_kind, rendered

_PORTS = {"inner": 7443, "edge": 8443, "ops": 9090}
_INNER = {service: 7001 + number for number, service in enumerate(SERVICE_ORDER)}
_EDGE_HOST = "edge.test"
_STARTS_WITHIN_S = 90.0
# Prints which of the addresses in its arguments let it connect, all asked at once.
_PROBE = """
import selectors, socket, sys, time
asked = selectors.DefaultSelector()
for text in sys.argv[1:]:
    host, port = text.rsplit(":", 1)
    connection = socket.socket(); connection.setblocking(False)
    connection.connect_ex((host, int(port)))
    asked.register(connection, selectors.EVENT_WRITE, (connection, text))
end = time.monotonic() + 2
while asked.get_map() and time.monotonic() < end:
    for key, _ in asked.select(0.1):
        connection, text = key.data
        asked.unregister(connection)
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0: print(text)
"""


def _parties() -> dict[str, Party]:
    documents = rendered("local")
    pods: dict[str, Party] = {
        service: Pod(named(documents, "StatefulSet", service)["spec"]["template"]["metadata"]["labels"])
        for service in SERVICE_ORDER
    }
    return {**pods, "outside": Outside("198.51.100.7")}


def _environment(net: Network, layout: Layout, service: str) -> dict[str, str]:
    """What the standalone launcher would give, with every service at an address of its own."""
    environment = layout.environment(service, os.environ)
    for other, port in _INNER.items():
        for name, value in environment.items():
            environment[name] = value.replace(f"127.0.0.1:{port}", f"{net.address(other)}:{_PORTS['inner']}")
    return environment | {"SEALCOMB_METRICS_HOST": "0.0.0.0", "SEALCOMB_METRICS_PORT": str(_PORTS["ops"])}


@contextmanager
def _running(net: Network, folder: Path) -> Iterator[Layout]:
    settings = StandaloneSettings(
        data_dir=folder / "data", edge_host=net.address("gateway"), edge_port=_PORTS["edge"], demo=False
    )
    installation = ensure_installation(settings.keys_folder, edge_hosts=[_EDGE_HOST])
    layout = Layout(settings, installation, _INNER)
    with ExitStack() as stack:
        for service in SERVICE_ORDER:
            (layout.data / service).mkdir(parents=True)
            log = stack.enter_context((folder / f"{service}.log").open("wb"))
            process = subprocess.Popen(
                net.inside(service, sys.executable, "-m", f"services.{service}.main"),
                env=_environment(net, layout, service) | {"PYTHONPATH": os.pathsep.join(sys.path[:3])},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(_end, process)
        yield layout


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(40)
    finally:
        process.kill()
        process.wait()


def _reached(net: Network, source: str) -> set[tuple[str, int]]:
    targets = {
        f"{net.address(service)}:{port}": (service, port)
        for service in SERVICE_ORDER
        for port in _PORTS.values()
        if service != source
    }
    done = subprocess.run(
        net.inside(source, sys.executable, "-c", _PROBE, *targets),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {targets[line] for line in done.stdout.split()}


def _cli(net: Network, layout: Layout, token: str, *arguments: str) -> str:
    """What the command line says, called from outside."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(layout.data),
        "SEALCOMB_ENDPOINT": f"{_EDGE_HOST}:{_PORTS['edge']}",
        "SEALCOMB_CA_FILE": str(layout.installation.edge_ca_file),
        "SEALCOMB_TOKEN": token,
        "SEALCOMB_OPERATOR_TOKEN": token,
    }
    command = net.inside("outside", str(Path(sys.executable).with_name("sealcomb")), *arguments)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout if done.returncode == 0 else f"exit {done.returncode}: {done.stderr}"


def _search_from_outside(net: Network, layout: Layout, folder: Path) -> str:
    """A document's whole way, through every service and the edge."""
    note = folder / "note.txt"
    note.write_text("The wax cap seals each cell of the comb.")
    operator = layout.operator_token_file.read_text().strip()
    made = json.loads(_cli(net, layout, operator, "accounts", "create", "--json", "bees"))
    said = _cli(net, layout, made["token"], "collections", "create", "notes")
    said += _cli(net, layout, made["token"], "upload", "notes", str(note))
    return said + _cli(net, layout, made["token"], "search", "notes", "what seals a cell?")


def _wait_until_serving(net: Network, layout: Layout, folder: Path) -> None:
    end = time.monotonic() + _STARTS_WITHIN_S
    said = ""
    while time.monotonic() < end:
        if layout.operator_token_file.exists():
            token = layout.operator_token_file.read_text().strip()
            said = _cli(net, layout, token, "health")
            if not said.startswith("exit"):
                return
        time.sleep(0.3)
    logs = "".join(path.read_text()[-1500:] for path in folder.glob("*.log"))
    raise AssertionError(f"{said}\n{logs}")


def test_behind_the_policies_the_services_work_and_nothing_but_the_edge_is_reached(tmp_path: Path) -> None:
    """C8, G2: 5 parties by 4 services by 3 ports, each of which listens; the twin lifts the rules."""
    parties = _parties()
    policies = of_kind(rendered("local"), "NetworkPolicy")
    with network(parties, {_EDGE_HOST: "gateway"}) as net:
        net.enforce(policies, tuple(_PORTS.values()))
        with _running(net, tmp_path) as layout:
            _wait_until_serving(net, layout, tmp_path)
            assert "wax cap seals" in _search_from_outside(net, layout, tmp_path)
            for source, party in parties.items():
                drawn = {
                    (service, port)
                    for service in SERVICE_ORDER
                    for port in _PORTS.values()
                    if service != source and allowed(policies, party, parties[service], port)
                }
                assert _reached(net, source) == drawn, source
            assert _reached(net, "outside") == {("gateway", _PORTS["edge"])}

            net.lift()
            everything = {(service, _PORTS[port]) for service in SERVICE_ORDER for port in ("inner", "ops")}
            assert _reached(net, "outside") == everything | {("gateway", _PORTS["edge"])}

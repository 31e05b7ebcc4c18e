"""One machine's installation: ports, lock, logs, client file, environments, examples."""

from __future__ import annotations

import importlib.util
import random
import socket
import stat
from pathlib import Path

import pytest

from sealcomb.v1 import search_service_pb2
from services.common.methods import SERVICES
from services.standalone import clientfile, demo, lock
from services.standalone.config import SERVICE_ORDER, Layout, StandaloneSettings
from services.standalone.logs import LogFile
from services.standalone.main import main
from services.standalone.pki import ensure_installation
from services.standalone.ports import PortTaken, free_ports, require_free

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_free_ports_are_distinct_and_outside_the_range_of_outgoing_connections() -> None:
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(port < lowest_outgoing for port in ports)


def test_a_port_in_use_is_not_found_and_is_refused_for_the_edge() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = int(listener.getsockname()[1])

        class Stubborn(random.Random):
            def randint(self, a: int, b: int) -> int:
                return taken

        with pytest.raises(PortTaken):
            free_ports(1, Stubborn())
        with pytest.raises(PortTaken, match="SEALCOMB_EDGE_PORT"):
            require_free("127.0.0.1", taken, "SEALCOMB_EDGE_PORT")


def test_a_second_installation_on_the_same_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_WAIT_S", 0.2)
    with (
        lock.lock_folder(tmp_path / "data"),
        pytest.raises(lock.DataFolderInUse),
        lock.lock_folder(tmp_path / "data"),
    ):
        pass
    with lock.lock_folder(tmp_path / "data"):
        pass


def test_a_full_log_is_turned_and_only_two_older_ones_are_kept(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "one.log", size_bytes_max=100)
    for number in range(20):
        log.write(f"line {number:02} {'x' * 30}\n".encode())
    log.close()
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "logs").iterdir()}
    assert set(sizes) == {"one.log", "one.log.1", "one.log.2"}
    assert max(sizes.values()) <= 100
    assert "line 19" in (tmp_path / "logs" / "one.log").read_text()


def test_the_client_file_is_private_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "client.env"
    values = {clientfile.ENDPOINT: "127.0.0.1:8443", clientfile.TOKEN: "sealcomb_acc_x"}
    clientfile.write_client_file(path, values)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert clientfile.read_client_file(path) == values
    assert clientfile.read_client_file(tmp_path / "none") == {}


def test_services_get_what_is_listed_and_no_secret(tmp_path: Path) -> None:
    """G5: the environment of a service holds paths, never secrets, and nothing of the caller's own."""
    settings = StandaloneSettings(data_dir=tmp_path / "data", edge_port=8443)
    installation = ensure_installation(settings.keys_folder)
    layout = Layout(settings, installation, dict.fromkeys(SERVICES, 12345))
    inherited = {"PATH": "/bin", "SEALCOMB_TOKEN": "sealcomb_acc_secret", "AWS_SECRET_ACCESS_KEY": "secret"}
    secrets = [
        path.read_bytes() for path in settings.keys_folder.rglob("*") if path.suffix in (".key", ".pepper")
    ]
    for name in SERVICE_ORDER:
        environment = layout.environment(name, inherited)
        text = "\n".join(environment.values())
        assert "secret" not in text
        assert not any(secret.hex() in text for secret in secrets)
        assert environment["PATH"] == "/bin"


def test_bounds_of_the_edge_reach_the_gateway_and_it_alone(tmp_path: Path) -> None:
    settings = StandaloneSettings(data_dir=tmp_path / "data", edge_trusted_hops="2")
    layout = Layout(settings, ensure_installation(settings.keys_folder), dict.fromkeys(SERVICES, 12345))
    environments = {name: layout.environment(name, {}) for name in SERVICE_ORDER}
    assert environments["gateway"]["SEALCOMB_EDGE_TRUSTED_HOPS"] == "2"
    assert "SEALCOMB_EDGE_CONNECTIONS_MAX" not in environments["gateway"]
    assert not [
        name
        for name, own in environments.items()
        if name != "gateway" and "SEALCOMB_EDGE_TRUSTED_HOPS" in own
    ]


def test_keys_lie_beside_the_data_and_never_inside(tmp_path: Path) -> None:
    settings = StandaloneSettings(data_dir=tmp_path / "data")
    assert settings.keys_folder == tmp_path / "data.keys"
    assert not settings.keys_folder.is_relative_to(tmp_path / "data")


def test_data_without_its_keys_is_not_given_new_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "keyvault").mkdir(parents=True)
    port = free_ports(1)[0]
    assert main(["--data-dir", str(tmp_path / "data"), "--edge-port", str(port)]) == 1
    assert "no keys" in capsys.readouterr().err
    assert not (tmp_path / "data.keys").exists()


def test_a_wrong_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--edge-port", "70000"]) == 2
    assert "EDGE_PORT" in capsys.readouterr().err


def test_the_examples_are_what_their_sources_give(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("build_documents", EXAMPLES / "build_documents.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path in module.build(tmp_path):
        assert path.read_bytes() == (EXAMPLES / "documents" / path.name).read_bytes(), path.name


def test_there_are_a_dozen_small_examples_in_eight_formats() -> None:
    documents = [path for path in (EXAMPLES / "documents").iterdir() if path.is_file()]
    assert len(documents) >= 12
    assert len({path.suffix for path in documents}) >= 8
    assert all(path.stat().st_size < 100_000 for path in documents)


def test_the_report_shows_the_best_passage_and_how_to_repeat_the_search(tmp_path: Path) -> None:
    hit = search_service_pb2.SearchHit(document_name="a.pdf", page=2, text="Revoke it. " * 3, score=0.9)
    report = demo.search_report([hit])
    assert "a.pdf, page 2" in report
    assert "Revoke it." in report
    repeat = demo.how_to_repeat(tmp_path, "127.0.0.1:8443")
    assert all(word in repeat for word in ("grpcurl -cacert", "sealcomb --env-file", "from sealcomb_client"))
    assert "nothing found" in demo.search_report([])

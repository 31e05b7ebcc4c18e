"""The command line against a fake edge: what it prints, how it fails, what it never does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import grpc
import pytest
from click.testing import CliRunner, Result

from sealcomb_client.cli.documents import SUFFIXES
from sealcomb_client.cli.main import main
from services.ingest.extract import formats
from tests.client.fake_edge import Failure, FakeEdge


class Cli:
    """Runs commands against the fake edge."""

    def __init__(self, edge: FakeEdge) -> None:
        connection = edge.connection
        self.environment = {
            "SEALCOMB_ENDPOINT": connection.endpoint,
            "SEALCOMB_CA_FILE": str(connection.ca_file),
            "SEALCOMB_TOKEN": connection.token,
        }

    def __call__(self, *arguments: str | Path, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, [str(a) for a in arguments], env=self.environment, input=stdin)


@pytest.fixture
def cli(edge: FakeEdge) -> Cli:
    return Cli(edge)


def test_every_command_has_help_and_takes_json() -> None:
    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        assert command.help, path
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                walk(child, (*path, name))
        elif path != ("completion",):
            assert "--json" in {option for p in command.params for option in p.opts}, path

    walk(main, ())


def test_a_list_is_a_table_for_people_and_json_lines_for_programs(cli: Cli) -> None:
    table = cli("collections", "list")
    assert table.exit_code == 0
    assert "name 1" in table.stdout
    for arguments in (("--json", "collections", "list"), ("collections", "list", "--json")):
        lines = [json.loads(line) for line in cli(*arguments).stdout.splitlines()]
        assert [line["name"] for line in lines] == ["name 0", "name 1", "name 2"]


def test_a_search_shows_passage_page_and_document(cli: Cli) -> None:
    result = cli(
        "search", "docs", "seals", "-k", "3", "--mode", "dense", "--filter", '{"exists": {"field": "a"}}'
    )
    assert result.exit_code == 0
    assert "page 3" in result.stdout
    assert "sealed under its own key" in result.stdout
    assert cli("search", "docs", "seals", "--one-per-document", "--rerank").exit_code == 0


def test_what_others_wrote_cannot_command_the_terminal(cli: Cli) -> None:
    """E24: control characters in names are replaced."""
    assert "\x1b" not in cli("search", "docs", "seals").stdout
    name = json.loads(cli("search", "docs", "seals", "--json").stdout)["document_name"]
    assert name == "a\x1b[31m.pdf"


def test_a_folder_is_uploaded_with_relative_names_and_what_is_unsupported_is_said(
    cli: Cli, edge: FakeEdge, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    for name in ("a.md", "sub/b.PDF", "sub/c.exe", ".hidden.md", ".git/d.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    result = cli("upload", "docs", folder, "--metadata", '{"team": "bees"}', "--principal", "ann")
    assert result.exit_code == 0
    assert edge.uploads == {"a.md": b"a.md", "sub/b.PDF": b"sub/b.PDF"}
    assert "skipped sub/c.exe" in result.stderr
    assert "uploaded 2 of 2" in result.stdout
    assert edge.requests[0].metadata["team"] == "bees"
    assert list(edge.requests[0].principals) == ["ann"]


def test_a_folder_takes_every_ending_that_the_service_knows() -> None:
    known = {f".{ending}" for ending in formats._EXTENSIONS}
    assert known <= SUFFIXES
    # The rest are other names of the same formats, or plain text.
    assert SUFFIXES - known == {".docm", ".dotx", ".ppsx", ".xlsm", ".bib", ".ris", ".yaml", ".yml", ".toml"}


def test_one_document_that_fails_does_not_stop_the_others(cli: Cli, edge: FakeEdge, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.md").write_bytes(b"text")
    edge.failures.append(Failure(grpc.StatusCode.INVALID_ARGUMENT, "broken", "DOCUMENT_BROKEN"))
    result = cli("upload", "docs", *(tmp_path / f"{number}.md" for number in range(5)))
    assert result.exit_code == 1
    assert "DOCUMENT_BROKEN" in result.stderr
    assert "1 of 5 documents failed" in result.stderr
    assert len(edge.uploads) == 4


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (grpc.StatusCode.NOT_FOUND, 3),
        (grpc.StatusCode.UNAUTHENTICATED, 4),
        (grpc.StatusCode.PERMISSION_DENIED, 4),
        (grpc.StatusCode.INVALID_ARGUMENT, 5),
        (grpc.StatusCode.FAILED_PRECONDITION, 6),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 7),
        (grpc.StatusCode.INTERNAL, 1),
    ],
)
def test_a_failure_has_the_exit_code_of_its_kind(
    cli: Cli, edge: FakeEdge, code: grpc.StatusCode, exit_code: int
) -> None:
    edge.failures.append(Failure(code, "it failed", "SOME_REASON", (("query", "too long"),)))
    result = cli("search", "docs", "seals")
    assert result.exit_code == exit_code
    assert "it failed (SOME_REASON)" in result.stderr
    assert "query: too long" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_connection_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clean = {name: None for name in os.environ if name.startswith("SEALCOMB_")}
    result = CliRunner().invoke(main, ["collections", "list"], env=clean)
    assert result.exit_code == 4
    assert "SEALCOMB_ENDPOINT" in result.stderr


def test_the_env_file_in_the_data_folder_is_found(
    edge: FakeEdge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    lines = [f"{name}={value}\n" for name, value in Cli(edge).environment.items()]
    (tmp_path / "data" / "client.env").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["collections", "list"]).exit_code == 0


def test_a_download_under_a_hostile_name_stays_in_the_current_folder(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E24: a document's name is never a path to elsewhere."""
    monkeypatch.chdir(tmp_path)
    result = cli("documents", "download", "docs", "d1")
    assert result.exit_code == 0
    assert (tmp_path / "passwd").read_bytes() == b"one two"
    assert cli("documents", "download", "docs", "d1").exit_code == 1


def test_a_download_that_breaks_off_leaves_no_file(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert cli("documents", "download", "docs", "broken", "-o", target).exit_code == 1
    assert not target.exists()
    assert not target.with_name("out.part").exists()


def test_points_are_read_from_json_lines_or_an_array(cli: Cli, edge: FakeEdge) -> None:
    lines = '{"id": "a", "vector": [1, 2], "metadata": {"n": 1}}\n{"id": "b", "vector": [3, 4]}\n'
    array = '[{"id": "a", "vector": [1, 2]},\n {"id": "b", "vector": [3, 4]}]'
    for text in (lines, array):
        result = cli("points", "upsert", "vectors", "--json", stdin=text)
        assert json.loads(result.stdout) == {"upserted": 2, "failed": 0}
    assert [point.id for point in edge.requests[0].points] == ["a", "b"]


def test_a_bad_point_is_named_and_the_others_are_written(cli: Cli, edge: FakeEdge) -> None:
    lines = "".join(f'{{"id": "{id_}", "vector": [1]}}\n' for id_ in ("a", "bad", "c"))
    result = cli("points", "upsert", "vectors", "--atomic", "--json", stdin=lines)
    assert json.loads(result.stdout) == {"upserted": 2, "failed": 1}
    assert result.stderr == "points[1].id: is bad\n"
    assert result.exit_code == 5
    assert edge.requests[0].atomic_batches


def test_a_point_that_is_none_is_refused_with_its_line(cli: Cli, edge: FakeEdge) -> None:
    result = cli("points", "upsert", "vectors", stdin='{"id": "a"}\n{"idd": 1}\n')
    assert result.exit_code == 5
    assert "line 2: not a point" in result.stderr


def test_a_query_prints_scores_and_vectors(cli: Cli) -> None:
    result = cli("points", "query", "vectors", "[1, 2.5]", "--with-vectors", "--json")
    assert json.loads(result.stdout) == {"id": "p", "score": 1.0, "vector": [1.0, 2.5]}
    assert cli("points", "query", "vectors", "nonsense").exit_code == 5


def test_deleting_a_collection_asks_first(cli: Cli, edge: FakeEdge) -> None:
    assert cli("collections", "delete", "docs", stdin="n\n").exit_code == 1
    assert edge.requests == []
    assert cli("collections", "delete", "docs", "--yes").exit_code == 0
    assert edge.requests[0].collection == "docs"


def test_a_new_token_is_printed_once_it_is_made(cli: Cli) -> None:
    result = cli("tokens", "create", "laptop", "--scope", "read", "--ttl", "90d", "--json")
    assert json.loads(result.stdout)["token"] == "sealcomb_acc_new"


def test_durations_have_units(cli: Cli, edge: FakeEdge) -> None:
    cli("tokens", "create", "x", "--scope", "read", "--ttl", "1.5h")
    assert edge.requests[0].ttl.seconds == 5400
    assert cli("tokens", "create", "x", "--scope", "read", "--ttl", "soon").exit_code == 2


def test_health_says_serving_and_has_an_exit_code(cli: Cli) -> None:
    assert json.loads(cli("health", "--json").stdout) == {"status": "SERVING"}


def test_completion_is_offered_for_each_shell(cli: Cli) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert f"{shell}_source" in cli("completion", shell).stdout


def test_usage_is_shown_by_the_day_or_for_the_month(edge: FakeEdge, cli: Cli) -> None:
    shown = cli("usage", "--days", "2")
    assert shown.exit_code == 0, shown.output
    assert "DATE" in shown.stdout
    assert "2026-11-24" in shown.stdout
    assert edge.requests[-1].days == 2
    month = json.loads(cli("usage", "--month", "--json").stdout)
    assert (month["date"], month["calls"]) == ("2026-11-01", "7")


def test_another_accounts_usage_and_its_quotas_want_the_operators_token(edge: FakeEdge, cli: Cli) -> None:
    cli.environment["SEALCOMB_OPERATOR_TOKEN"] = "sealcomb_op_test_token"
    assert cli("usage", "some-account").exit_code == 0
    assert (edge.requests[-1].id, edge.tokens[-1]) == ("some-account", "Bearer sealcomb_op_test_token")
    changed = cli(
        "accounts", "limits", "some-account", "--calls-in-flight", "7",
        "--quota", "calls_per_day=1000", "--quota", "bytes_per_month=0",
    )  # fmt: skip
    assert changed.exit_code == 0, changed.output
    limits = edge.requests[-1].limits
    assert (limits.calls_in_flight, limits.per_day.calls) == (7, 1000)
    assert limits.per_month.HasField("bytes")
    assert not limits.per_day.HasField("bytes")
    assert cli("accounts", "limits", "some-account", "--quota", "bees_per_day=1").exit_code == 2

"""A collection out of the installation and in again, through the edge, as the command line does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sealcomb_client import ApiError
from sealcomb_client.cli.main import main
from sealcomb_client.collections import read_frames
from sealcomb_client.content import point
from tests.system.installation import Account, Installation


def run(account: Account, *arguments: str | Path) -> Result:
    """A command in an account's name."""
    connection = account.connection
    environment = {
        "SEALCOMB_ENDPOINT": connection.endpoint,
        "SEALCOMB_CA_FILE": str(connection.ca_file),
        "SEALCOMB_TOKEN": connection.token,
    }
    return CliRunner().invoke(main, ["--json", *map(str, arguments)], env=environment)


def test_an_export_is_imported_by_its_account_alone_and_whole(
    installation: Installation, tmp_path: Path
) -> None:
    """F20: sealed it is nobody else's, and no file of it shows anything."""
    mine, other = installation.new_account(), installation.new_account()
    mine.client.collections.create("things", dimension=3)
    points = [point(f"p{n}", [1.0, n, 2.0], text=f"canary text {n}") for n in range(700)]
    mine.client.points.upsert("things", points)
    sealed, clear = tmp_path / "sealed.export", tmp_path / "clear.export"
    done = run(mine, "collections", "export", "things", sealed)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["points"] == 700
    assert run(mine, "collections", "export", "things", clear, "--clear").exit_code == 0
    # What is in clear is for who asked for it alone.
    assert clear.stat().st_mode & 0o777 == 0o600
    assert b"canary text 5" not in sealed.read_bytes()
    assert b"canary text 5" in clear.read_bytes()
    mine.client.collections.delete("things")

    refused = run(other, "collections", "import", "theirs", sealed)
    assert refused.exit_code != 0
    assert "EXPORT_BROKEN" in refused.output
    with sealed.open("rb") as file:
        frames = list(read_frames(file))
    with pytest.raises(ApiError) as caught:
        mine.client.collections.import_frames("again", lambda: frames[:-1])
    assert caught.value.reason == "EXPORT_BROKEN"
    assert not list(mine.client.collections.list())
    cut = tmp_path / "cut"
    cut.write_bytes(sealed.read_bytes()[:-5])
    assert run(mine, "collections", "import", "again", cut).exit_code != 0

    for account, path in ((mine, sealed), (other, clear)):
        done = run(account, "collections", "import", "again", path)
        assert done.exit_code == 0, done.output
        assert account.client.points.count("again") == 700
        (found,) = account.client.points.get("again", ["p5"], with_vectors=True)
        assert found.text == "canary text 5"

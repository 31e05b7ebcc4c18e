"""`sealcomb-admin`: what an operator does to a whole installation, from its databases and objects.

It works beside running services, or without them, and needs no token: whoever may read the
installation's settings and databases may use it. It opens nothing that is sealed. What acts for a
customer is `sealcomb`, not this.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Concatenate

import click

from sealcomb_client.cli.output import EXIT_CODES_HELP, CommandFailed, Output
from services.common.clock import SystemClock
from services.common.errors import SealcombError
from services.keyvault.backup import BackupRefused
from services.keyvault.ledger import LedgerDamaged
from services.standalone.admin import accounts as account_rows
from services.standalone.admin import contents
from services.standalone.admin import status as states
from services.standalone.admin.backup import back_up, read_backup
from services.standalone.admin.managed import (
    InstallationUnreadable,
    Managed,
    of_data_folder,
    of_settings_folder,
)
from services.standalone.admin.restore import restore as put_back
from services.standalone.admin.store import DatabaseAway
from services.standalone.admin.verify import verify as check
from services.standalone.lock import DataFolderInUse

_STATUS_COLUMNS = ("service", "state", "database", "schema", "objects", "kms", "fault")
_FAILED, _WRONG, _FORBIDDEN, _LATER = 1, 5, 6, 7
_PATH = click.Path(path_type=Path, file_okay=False)


class Admin:
    """One run of the command line."""

    def __init__(self, data: Path, settings: Path | None, *, as_json: bool) -> None:
        self._data = data
        self._settings = settings
        self.output = Output(as_json=as_json)

    @property
    def managed(self) -> Managed:
        """The installation that was named. Raises InstallationUnreadable."""
        if self._settings is not None:
            return of_settings_folder(self._settings)
        return of_data_folder(self._data.absolute())

    def say(self, text: str) -> None:
        """Progress, for people."""
        if not self.output.as_json:
            click.echo(text, err=True)


@click.group(epilog=EXIT_CODES_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data-dir",
    type=_PATH,
    default=Path("data"),
    envvar="SEALCOMB_DATA_DIR",
    help="Folder of a standalone installation's state (SEALCOMB_DATA_DIR, default ./data).",
)
@click.option(
    "--settings",
    type=_PATH,
    help="Folder with <service>.env of each service, for an installation that is not standalone.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.version_option(package_name="sealcomb")
@click.pass_context
def main(context: click.Context, data_dir: Path, settings: Path | None, as_json: bool) -> None:
    """Look after a whole installation: its state, backups, and moves to other databases."""
    context.obj = Admin(data_dir, settings, as_json=as_json)


def _command(function: Callable[Concatenate[Admin, ...], Any]) -> Any:
    """A command: it is given the run, takes `--json`, and shows errors in a line with an exit code."""

    @functools.wraps(function)
    @click.pass_obj
    def run(admin: Admin, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return function(admin, *args, **kwargs)
        except (InstallationUnreadable, BackupRefused) as error:
            raise CommandFailed(str(error), _WRONG) from error
        except (DataFolderInUse, LedgerDamaged) as error:
            raise CommandFailed(str(error), _FORBIDDEN) from error
        except DatabaseAway as error:
            raise CommandFailed(str(error), _LATER) from error
        except SealcombError as error:
            raise CommandFailed(f"{error.message} ({error.reason})", _LATER) from error
        except BrokenPipeError:
            # Who reads the output has enough of it: click ends quietly.
            raise
        except OSError as error:
            raise CommandFailed(f"{error.filename}: {error.strerror}") from error

    option = click.option(
        "--json", is_flag=True, expose_value=False, callback=_take_json, help="One JSON object a line."
    )
    return main.command()(option(run))


def _take_json(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    if value:
        context.find_object(Admin).output.as_json = True  # type: ignore[union-attr]
    return value


@_command
def status(admin: Admin) -> None:
    """Show each service, its database, schema and objects (exit code 7 if something is wrong)."""
    found = asyncio.run(states.look(admin.managed))
    admin.output.rows([one.as_row() for one in found], _STATUS_COLUMNS)
    faulty = [one.service for one in found if one.fault]
    if faulty:
        raise CommandFailed(f"not well: {', '.join(faulty)}", _LATER)


@_command
def accounts(admin: Admin) -> None:
    """List the accounts, their keys and what they hold; `sealcomb accounts list` has their names."""
    admin.output.rows(account_rows.accounts(admin.managed), account_rows.COLUMNS)


@_command
def leases(admin: Admin) -> None:
    """List the vectorstores that share a database, and how many collections each holds."""
    now_us = SystemClock().now_s() * 1e6
    found = contents.replicas_of(admin.managed.vectorstore.database_url)
    rows = [
        {
            "replica": row["replica"],
            "address": row["address"],
            "state": "lost" if row["until_us"] < now_us else "leaving" if row["leaving"] else "holding",
            "collections": row["collections"],
        }
        for row in found
    ]
    admin.output.rows(rows, ("replica", "address", "state", "collections"))


@_command
def reseal(admin: Admin) -> None:
    """List the accounts where replaced data keys still open something."""
    rows = [row for row in account_rows.accounts(admin.managed) if row["aged"]]
    admin.output.rows(rows, ("account", "state", "key", "data_keys", "aged"))


@_command
@click.option("--account", default="", metavar="ID", help="Of this account alone.")
def verify(admin: Admin, account: str) -> None:
    """Check audit chains, ledger, logs and objects without a key (exit code 1 if not whole)."""
    found = asyncio.run(check(admin.managed, account))
    rows = [asdict(one) | {"faults": len(one.faults)} for one in found]
    admin.output.rows(rows, ("what", "looked_at", "faults", "note"))
    faults = [f"{one.what}: {fault}" for one in found for fault in one.faults]
    if faults:
        raise CommandFailed("\n".join(["not whole", *faults]), _FAILED)


@_command
@click.argument("folder", type=_PATH)
def backup(admin: Admin, folder: Path) -> None:
    """Write everything but keys and ledger into a new FOLDER, also while the installation works."""
    made = back_up(admin.managed, folder, SystemClock(), admin.say)
    admin.output.value({"backup": str(folder), "objects": sum(made.objects.values()), "id": made.id[:16]})


@_command
@click.argument("folder", type=_PATH)
def restore(admin: Admin, folder: Path) -> None:
    """Put a backup in the place of an installation that is new or lost; its keys must be there."""
    done = asyncio.run(put_back(admin.managed, read_backup(folder), SystemClock(), admin.say))
    admin.output.value(asdict(done))


@_command
@click.argument("folder", type=_PATH)
@click.option(
    "--to", type=_PATH, required=True, metavar="SETTINGS", help="Folder with <service>.env of the new place."
)
def migrate(admin: Admin, folder: Path, to: Path) -> None:
    """Move a stopped installation to other databases and objects, by way of a backup in a new FOLDER."""
    source, target = admin.managed, of_settings_folder(to)
    with source.stopped():
        # Until all is there: what was written here meanwhile would stay behind.
        back_up(source, folder, SystemClock(), admin.say)
        done = asyncio.run(put_back(target, read_backup(folder), SystemClock(), admin.say))
    admin.output.value(asdict(done))


if __name__ == "__main__":
    main()

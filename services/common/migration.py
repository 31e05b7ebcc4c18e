"""`--migrate` of every service: brings its database's schema up to date and ends.

A service does the same at its start. The option is for whoever wants it done before, by a process that
needs the database and nothing else: no certificate, no key.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from services.common.database import migrate_at
from services.common.settings import DatabaseSettings


def add_migrate_option(parser: argparse.ArgumentParser, service: str) -> None:
    """Gives a service's command the option."""
    parser.add_argument(
        "--migrate",
        action=_Migrate,
        nargs=0,
        service=service,
        help="bring the schema of SEALCOMB_DATABASE_URL up to date, and exit",
    )


class _Migrate(argparse.Action):
    """Runs at once, before the service's settings are read."""

    def __init__(self, *args: Any, service: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._service = service

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: Any,
        _values: str | Sequence[Any] | None,
        _option: Any = None,
    ) -> None:
        try:
            settings = DatabaseSettings()  # type: ignore[call-arg]  # from the environment
            migrate_at(settings.database_url, f"services.{self._service}")
        except ValidationError as error:
            # Without the values: a setting may be a URL with a password.
            names = ", ".join("SEALCOMB_" + str(one["loc"][0]).upper() for one in error.errors())
            parser.exit(2, f"{parser.prog}: settings missing or wrong: {names}\n")
        except ValueError as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        parser.exit(0)

"""What every command has at hand: the client, made when first needed, and the output."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate

import click

from sealcomb_client.cli.output import Output, failure
from sealcomb_client.client import Client
from sealcomb_client.connection import Connection, ConnectionIncomplete
from sealcomb_client.errors import ApiError


class Session:
    """One run of the command line."""

    def __init__(self, env_file: Path | None, *, as_json: bool) -> None:
        self._env_file = env_file
        self._client: Client | None = None
        self.output = Output(as_json=as_json)

    @property
    def client(self) -> Client:
        """The client of the configured edge."""
        if self._client is None:
            self._client = Client(Connection.from_env(self._env_file))
        return self._client

    def close(self) -> None:
        """Closes the client, if one was made."""
        if self._client is not None:
            self._client.close()


def _take_json(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    if value:
        context.find_root().ensure_object(Session).output.as_json = True
    return value


_Decorator = Callable[[Callable[Concatenate[Session, ...], Any]], Any]


def command(group: click.Group, name: str | None = None) -> _Decorator:
    """A command of a group: it is given the session, takes `--json`, and shows errors readably."""

    def decorate(function: Callable[Concatenate[Session, ...], Any]) -> Any:
        @functools.wraps(function)
        @click.pass_obj
        def run(session: Session, /, *args: Any, **kwargs: Any) -> Any:
            try:
                return function(session, *args, **kwargs)
            except BrokenPipeError:
                # Whoever read the output has seen enough; click ends quietly.
                raise
            except (ApiError, ConnectionIncomplete, ValueError, OSError) as error:
                raise failure(error) from error

        option = click.option(
            "--json", is_flag=True, expose_value=False, callback=_take_json, help="One JSON object a line."
        )
        return group.command(name)(option(run))

    return decorate

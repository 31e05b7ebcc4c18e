"""The `sealcomb` command: its options and groups."""

from __future__ import annotations

from pathlib import Path

import click

from sealcomb_client.cli import administration, audit, collections, documents, ingest, points, sources
from sealcomb_client.cli.output import EXIT_CODES_HELP, CommandFailed
from sealcomb_client.cli.session import Session, command


@click.group(epilog=EXIT_CODES_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--env-file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="SEALCOMB_ENV_FILE",
    help="File with SEALCOMB_ENDPOINT, SEALCOMB_CA_FILE, SEALCOMB_TOKEN; the environment wins. "
    "Default: data/client.env where it exists.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.version_option(package_name="sealcomb")
@click.pass_context
def main(context: click.Context, env_file: Path | None, as_json: bool) -> None:
    """Sealed document and vector search: collections, documents, search, tokens and keys."""
    session = Session(env_file, as_json=as_json)
    context.obj = session
    context.call_on_close(session.close)


@command(main)
def health(session: Session) -> None:
    """Say whether the edge and every service behind it serve (exit code 7 if not)."""
    serving = session.client.health()
    session.output.value({"status": "SERVING" if serving else "NOT_SERVING"})
    if not serving:
        raise CommandFailed("the service does not serve; look at its logs", 7)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the line that turns completion on in your shell's start-up file."""
    lines = {
        "bash": 'eval "$(_SEALCOMB_COMPLETE=bash_source sealcomb)"',
        "zsh": 'eval "$(_SEALCOMB_COMPLETE=zsh_source sealcomb)"',
        "fish": "_SEALCOMB_COMPLETE=fish_source sealcomb | source",
    }
    click.echo(lines[shell])


for _module in (collections, documents, points, sources, ingest, administration, audit):
    _module.register(main)

"""`sealcomb audit`: the audit log, and what is checked offline."""

from __future__ import annotations

from pathlib import Path

import click

from sealcomb_client import audit as audit_chain
from sealcomb_client.cli.output import CommandFailed
from sealcomb_client.cli.session import Session, command
from sealcomb_client.statements import RECEIPT, StatementRefused, verify_statement

_EVENT_COLUMNS = ("sequence", "time", "action", "peer", "token_id", "resource", "outcome")
_FILE = click.Path(exists=True, path_type=Path, dir_okay=False)
_KEY_HELP = "The installation's public key (keyvault.pub.pem), as the operator published it."


def register(main: click.Group) -> None:
    """Adds the group."""
    main.add_command(audit)


@click.group()
def audit() -> None:
    """The account's tamper-evident audit log."""


@command(audit, "list")
def list_events(session: Session) -> None:
    """List events, oldest first."""
    session.output.rows(session.client.audit.list(), _EVENT_COLUMNS)


@command(audit)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--account", metavar="ID", help="Another account's log; needs SEALCOMB_OPERATOR_TOKEN.")
def export(session: Session, file: Path, account: str | None) -> None:
    """Write the whole log to FILE, for `sealcomb audit verify`. Its last line is a signed checkpoint."""
    log = session.client.audit
    count = 0
    with file.open("w", encoding="utf-8") as lines:
        for line in log.export() if account is None else log.export_account(account):
            lines.write(line + "\n")
            count += not audit_chain.is_checkpoint(line)
    session.output.value({"written": str(file), "events": count})


@command(audit)
def checkpoint(session: Session) -> None:
    """Print a signed statement of how far the log goes now: keep it, for `verify --checkpoint`."""
    click.echo(session.client.audit.checkpoint().checkpoint)


@command(audit)
@click.argument("file", type=_FILE)
@click.option(
    "--known", metavar="SEQUENCE:HASH", help="Head of an earlier check, which the log must contain."
)
@click.option("--checkpoint", "kept", type=_FILE, help="A checkpoint kept from earlier; instead of --known.")
@click.option("--key", type=_FILE, help=_KEY_HELP)
@click.option("--account", default="", metavar="ID", help="The account that the log must be of.")
def verify(
    session: Session, file: Path, known: str | None, kept: Path | None, key: Path | None, account: str
) -> None:
    """Check an exported log offline: nothing changed, nothing missing in between.

    With --key also that it ends in a checkpoint which the installation signed. Without one, keep the head
    that this prints: given as --known next time, it shows that nothing was cut off since.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    public_key = None if key is None else key.read_bytes()
    try:
        earlier = _earlier_head(lines, known, kept, public_key)
        head = audit_chain.verify_chain(lines, earlier, public_key, account)
    except audit_chain.ChainBroken as error:
        raise CommandFailed(f"the log was changed: {error}") from error
    if head is None:
        session.output.value({"events": 0})
        return
    session.output.value(
        {
            "events": head.sequence,
            "account": head.account,
            "head": f"{head.sequence}:{head.hash}",
            "signed": public_key is not None,
        }
    )


@command(audit, "verify-receipt")
@click.argument("file", type=_FILE)
@click.option("--key", type=_FILE, required=True, help=_KEY_HELP)
def verify_receipt(session: Session, file: Path, key: Path) -> None:
    """Check a deletion receipt offline, and say what was destroyed."""
    try:
        fields = verify_statement(file.read_text(encoding="utf-8").strip(), RECEIPT, key.read_bytes())
    except StatementRefused as error:
        raise CommandFailed(f"the receipt does not hold: {error}") from error
    session.output.value({name: value for name, value in fields.items() if name != "signature"})


def _earlier_head(
    lines: list[str], known: str | None, kept: Path | None, public_key: bytes | None
) -> audit_chain.ChainHead | None:
    if kept is not None:
        return audit_chain.checkpoint_head(kept.read_text(encoding="utf-8").strip(), public_key)
    if known is None:
        return None
    sequence, _, digest = known.partition(":")
    first = audit_chain.verify_chain(lines[:1])
    if not sequence.isdigit() or first is None:
        raise ValueError(
            "--known must be SEQUENCE:HASH as an earlier check printed it, of a log that is not empty"
        )
    return audit_chain.ChainHead(first.account, int(sequence), digest)

"""`sealcomb tokens`, `keys` and `accounts`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from sealcomb.v1.collection_service_pb2 import ResealCollectionResponse
from sealcomb.v1.document_service_pb2 import ResealDocumentsResponse
from sealcomb.v1.key_service_pb2 import AwsKey, InstallationKey, Pkcs11Key, TransitKey
from sealcomb_client.cli.options import RECEIPT, Duration, Quota, keep_receipt
from sealcomb_client.cli.session import Session, command

_SCOPES = click.Choice(["read", "write", "sources", "keys", "audit", "admin"])
_TOKEN_COLUMNS = (
    "id",
    "label",
    "scopes",
    "collections",
    "create_time",
    "expire_time",
    "revoke_time",
    "last_used_time",
)
_ACCOUNT_COLUMNS = ("id", "name", "suspended", "limits", "create_time")
_USAGE_COLUMNS = ("date", "calls", "refusals", "points", "documents", "bytes")


def register(main: click.Group) -> None:
    """Adds the groups."""
    for group in (tokens, keys, accounts):
        main.add_command(group)
    command(main, "usage")(usage)


@click.group()
def tokens() -> None:
    """Create, rotate and revoke the account's tokens."""


@command(tokens, "create")
@click.argument("label")
@click.option("--scope", "scopes", type=_SCOPES, multiple=True, required=True, help="Repeat for several.")
@click.option("--collection", "collections", multiple=True, help="Only this collection; repeat for several.")
@click.option("--ttl", type=Duration(), help="When it expires, such as 90d; without it, never.")
def create_token(
    session: Session, label: str, scopes: tuple[str, ...], collections: tuple[str, ...], ttl: float | None
) -> None:
    """Create a token. It is shown once."""
    session.output.value(session.client.tokens.create(label, scopes, collections=collections, ttl_s=ttl))


@command(tokens, "list")
def list_tokens(session: Session) -> None:
    """List tokens, ended ones included."""
    session.output.rows(session.client.tokens.list(), _TOKEN_COLUMNS)


@command(tokens)
@click.argument("token_id", metavar="ID")
@click.option("--overlap", type=Duration(), help="How long the old token keeps working, such as 1d.")
def rotate(session: Session, token_id: str, overlap: float | None) -> None:
    """Replace a token by a new one, which is shown once."""
    session.output.value(session.client.tokens.rotate(token_id, overlap_s=overlap))


@command(tokens)
@click.argument("token_id", metavar="ID")
def revoke(session: Session, token_id: str) -> None:
    """End a token at once."""
    session.client.tokens.revoke(token_id)
    session.output.value({"revoked": token_id})


@command(tokens)
@click.option("--operator", is_flag=True, help="Of the operator token instead.")
def whoami(session: Session, operator: bool) -> None:
    """Say whose token this is."""
    session.output.value(session.client.tokens.whoami(operator=operator))


@click.group()
def keys() -> None:
    """The account's own key: rotate it, turn it off and on."""


@command(keys, "get")
def get_key(session: Session) -> None:
    """Describe the key."""
    session.output.value(session.client.keys.get())


@command(keys, "rotate")
@click.option("--new-data-keys", is_flag=True, help="New data keys as well; see `sealcomb keys reseal`.")
def rotate_key(session: Session, new_data_keys: bool) -> None:
    """Make a new version and re-wrap every data key with it."""
    session.output.value(session.client.keys.rotate(new_data_keys=new_data_keys))


@command(keys, "reseal")
def reseal(session: Session) -> None:
    """Seal all collections and documents under their newest data keys; old keys that nothing needs go."""
    client = session.client
    waits_until_s = 0
    for collection in client.collections.list():
        answers: list[ResealCollectionResponse | ResealDocumentsResponse] = [
            client.collections.reseal(collection.name)
        ]
        if collection.embedder:
            resealed = damaged = 0
            for page in client.documents.reseal(collection.name):
                resealed, damaged = resealed + page.resealed, damaged + page.damaged
                session.output.say(f"{collection.name}: {resealed} originals sealed anew")
                if page.damaged:
                    session.output.say(f"{collection.name}: {damaged} originals do not open; restore them")
                answers.append(page)
        for answer in answers:
            waits_until_s = max(waits_until_s, answer.destroyable_time.seconds)
    key = client.keys.get()
    if key.aged_data_keys and waits_until_s:
        when = datetime.fromtimestamp(waits_until_s, UTC).isoformat(timespec="seconds")
        session.output.say(f"repeat this after {when}: what took a key before may still seal with it")
    session.output.value(key)


@command(keys, "bind-aws")
@click.argument("arn")
@click.option(
    "--role", required=True, metavar="ARN", help="Role to act in; the account's id is its external id."
)
def bind_aws(session: Session, arn: str, role: str) -> None:
    """Move the account to a KMS key of its own in AWS."""
    session.output.value(session.client.keys.bind(AwsKey(arn=arn, role_arn=role)))


@command(keys, "bind-transit")
@click.argument("name")
@click.option("--mount", required=True, help="Mount of the transit engine that the key is in.")
def bind_transit(session: Session, name: str, mount: str) -> None:
    """Move the account to a transit key of its own, whose NAME ends with the account's id."""
    session.output.value(session.client.keys.bind(TransitKey(mount=mount, name=name)))


@command(keys, "bind-pkcs11")
@click.argument("label")
def bind_pkcs11(session: Session, label: str) -> None:
    """Move the account to a key of its own in the token, whose LABEL ends with the account's id."""
    session.output.value(session.client.keys.bind(Pkcs11Key(label=label)))


@command(keys, "bind-installation")
def bind_installation(session: Session) -> None:
    """Move the account back to a key of the installation's own KMS."""
    session.output.value(session.client.keys.bind(InstallationKey()))


@command(keys)
def disable(session: Session) -> None:
    """Turn the account's data off."""
    session.output.value(session.client.keys.disable())


@command(keys)
def enable(session: Session) -> None:
    """Turn the account's data on again."""
    session.output.value(session.client.keys.enable())


@command(keys, "schedule-deletion")
@click.option("--wait-days", type=click.IntRange(7, 30), default=30, show_default=True)
def schedule_deletion(session: Session, wait_days: int) -> None:
    """Turn the account's data off now, and destroy its key after a wait."""
    session.output.value(session.client.keys.schedule_deletion(wait_days=wait_days))


@command(keys, "cancel-deletion")
def cancel_deletion(session: Session) -> None:
    """Call a scheduled deletion off; `sealcomb keys enable` turns the data on again."""
    session.output.value(session.client.keys.cancel_deletion())


@command(keys, "destroy")
@click.option(
    "--confirm", required=True, metavar="ACCOUNT", help="The account's own id (sealcomb tokens whoami)."
)
@RECEIPT
def destroy_key(session: Session, confirm: str, receipt: Path | None) -> None:
    """Destroy the account's key at once, for good: all its data is lost."""
    keep_receipt(session.client.keys.destroy(confirm=confirm), receipt)
    session.output.value({"destroyed": confirm})


@click.group()
def accounts() -> None:
    """Accounts of the installation; needs SEALCOMB_OPERATOR_TOKEN."""


_RATE = click.option("--calls-per-second", type=click.FloatRange(min=0, min_open=True))
_BURST = click.option("--burst", type=click.IntRange(1))
_IN_FLIGHT = click.option("--calls-in-flight", type=click.IntRange(1), help="Calls under way at a time.")
_QUOTA = click.option(
    "--quota",
    "quotas",
    multiple=True,
    type=Quota(),
    help="Such as calls_per_day=1000 or bytes_per_month=0 (none); of calls, points, documents, bytes.",
)


@command(accounts, "create")
@click.argument("name")
@_RATE
@_BURST
@_IN_FLIGHT
@_QUOTA
def create_account(session: Session, name: str, quotas: tuple[tuple[str, int], ...], **limits: Any) -> None:
    """Create an account. Its first token is shown once."""
    session.output.value(session.client.accounts.create(name, quotas=dict(quotas), **limits))


@command(accounts, "list")
def list_accounts(session: Session) -> None:
    """List accounts."""
    session.output.rows(session.client.accounts.list(), _ACCOUNT_COLUMNS)


@command(accounts, "get")
@click.argument("account_id", metavar="ID")
def get_account(session: Session, account_id: str) -> None:
    """Describe one account."""
    session.output.value(session.client.accounts.get(account_id))


@command(accounts)
@click.argument("account_id", metavar="ID")
@_RATE
@_BURST
@_IN_FLIGHT
@_QUOTA
def limits(session: Session, account_id: str, quotas: tuple[tuple[str, int], ...], **changed: Any) -> None:
    """Change an account's limits and quotas."""
    session.output.value(session.client.accounts.update(account_id, quotas=dict(quotas), **changed))


@command(accounts)
@click.argument("account_id", metavar="ID")
def suspend(session: Session, account_id: str) -> None:
    """Refuse all calls of an account."""
    session.output.value(session.client.accounts.update(account_id, suspended=True))


@command(accounts)
@click.argument("account_id", metavar="ID")
def resume(session: Session, account_id: str) -> None:
    """Let an account call again."""
    session.output.value(session.client.accounts.update(account_id, suspended=False))


@command(accounts, "delete")
@click.argument("account_id", metavar="ID")
@click.option("--confirm", required=True, help="The account's id once more.")
@RECEIPT
def delete_account(session: Session, account_id: str, confirm: str, receipt: Path | None) -> None:
    """Destroy an account's keys and data, for good."""
    keep_receipt(session.client.accounts.delete(account_id, confirm=confirm), receipt)
    session.output.value({"deleted": account_id})


@click.argument("account_id", metavar="[ID]", default="")
@click.option("--days", type=click.IntRange(1, 400), default=30, show_default=True)
@click.option("--month", is_flag=True, help="The sum of this month instead.")
def usage(session: Session, account_id: str, days: int, month: bool) -> None:
    """Show what the account used by the day (UTC); of account ID with an operator token."""
    used = session.client.accounts.usage(account_id, days=days)
    session.output.rows([used.month] if month else used.days, _USAGE_COLUMNS)

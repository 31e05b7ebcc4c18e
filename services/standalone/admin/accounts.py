"""What each account has, from the databases alone: ids and numbers, since names are sealed.

Nothing needs to run for it, and nothing of a customer is opened.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from services.standalone.admin import contents
from services.standalone.admin.managed import Managed

_HELD = ("collections", "points", "documents", "bytes")
COLUMNS = ("account", "state", "created", "key", "data_keys", "aged", *_HELD)


def accounts(managed: Managed) -> list[dict[str, Any]]:
    """A row for every account, in the order in which they were made. Raises DatabaseAway."""
    keys = contents.keys_by_account(managed.keyvault.database_url)
    held = contents.held_by_account(managed.vectorstore.database_url)
    return [
        _account(row, keys.get(row["id"]), held.get(row["id"], {}))
        for row in contents.accounts_of(managed.gateway.database_url)
    ]


def _account(row: contents.Row, key: contents.Row | None, held: contents.Row) -> dict[str, Any]:
    created = dt.datetime.fromtimestamp(row["create_time_ms"] / 1000, dt.UTC)
    return {
        "account": row["id"],
        "state": "suspended" if row["suspended"] else row["state"].lower(),
        "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "key": f"{key['state'].lower()} v{key['version']}" if key else "none",
        "data_keys": key["data_keys"] if key else 0,
        # Data keys that were replaced and still open something: left to be sealed anew.
        "aged": key["aged"] if key else 0,
        **{name: int(held.get(name) or 0) for name in _HELD},
    }

"""Chooses where limits are kept: in this process, or in the store that the settings name."""

from __future__ import annotations

from urllib.parse import urlsplit

from services.common import ids
from services.common.clock import Clock
from services.common.secretfiles import read_secret_file
from services.gateway.config import GatewaySettings
from services.gateway.portions.buckets import SharedBuckets

_PORT = 6379
_PASSWORD_BYTES_MAX = 4096


def shared_buckets(settings: GatewaySettings, clock: Clock) -> SharedBuckets | None:
    """The shared buckets, or None where each process has its own. Raises ValueError without the driver."""
    if settings.shared_limits_url is None:
        return None
    try:
        from services.gateway.portions.store import Address, PortionStore
    except ModuleNotFoundError:
        raise ValueError("the driver is not installed: pip install sealcomb[gateway-valkey]") from None
    url, password = urlsplit(settings.shared_limits_url), settings.shared_limits_password_file
    address = Address(
        host=url.hostname or "",
        port=url.port or _PORT,
        tls=url.scheme == "valkeys",
        database=int(url.path[1:] or 0),
        user=url.username,
        password=read_secret_file(password, _PASSWORD_BYTES_MAX).decode().strip() if password else None,
        ca_file=settings.shared_limits_ca_file,
        cert_file=settings.shared_limits_cert_file,
        key_file=settings.shared_limits_key_file,
    )
    return SharedBuckets(PortionStore(address), clock, ids.new_id(), settings.policies_min)

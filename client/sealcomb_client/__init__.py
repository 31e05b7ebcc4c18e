"""The Sealcomb SDK: a small, typed, synchronous client of the public API.

    from sealcomb_client import Client

    with Client.from_env() as client:
        for hit in client.search("examples", "how do bees seal honey?"):
            print(hit.score, hit.document_name, hit.text)

Calls return the messages of `sealcomb.v1`, which the stubs type, and raise ApiError.
"""

from sealcomb_client.client import Client
from sealcomb_client.connection import Connection, ConnectionIncomplete
from sealcomb_client.errors import ApiError, FieldViolation

__all__ = ["ApiError", "Client", "Connection", "ConnectionIncomplete", "FieldViolation"]

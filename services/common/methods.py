"""Every public method in one table: which service owns it, which scope it wants, what it costs.

The edge routes and authorises by this table alone, so a method that is missing here does not
exist outside. A test holds the table and the compiled descriptors together.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Scope(enum.Enum):
    """What a token may do. OPERATOR is not a scope of account tokens; ANY wants just a valid token.

    OPERATOR_OR_ADMIN takes an operator's token, or an account's with the admin scope.
    """

    READ = "read"
    WRITE = "write"
    SOURCES = "sources"
    KEYS = "keys"
    AUDIT = "audit"
    ADMIN = "admin"
    OPERATOR = "operator"
    OPERATOR_OR_ADMIN = "operator or admin"
    ANY = "any"


ACCOUNT_SCOPES = ("read", "write", "sources", "keys", "audit", "admin")

# How the names of methods begin that change nothing; a test holds them against the scopes.
_READS = ("Get", "List", "Count", "Query", "Search", "Download", "Export", "WhoAmI")

GATEWAY = "gateway"
KEYVAULT = "keyvault"
VECTORSTORE = "vectorstore"
INGEST = "ingest"
SERVICES = (GATEWAY, KEYVAULT, VECTORSTORE, INGEST)

# Those by which a service seals what it has anew: what its permits for that say as their method.
RESEALS = {
    VECTORSTORE: "/sealcomb.v1.CollectionService/ResealCollection",
    INGEST: "/sealcomb.v1.DocumentService/ResealDocuments",
}


@dataclass(frozen=True, slots=True)
class PublicMethod:
    """One public method.

    `audience` are the services that see its context: the owner and whom the owner calls.
    `timeout_s` bounds the call at the edge. `cost` is what it takes from the token buckets.
    `uses` are the quotas, beside the one of calls, without which it is refused once they are used up.
    """

    path: str
    owner: str
    scope: Scope
    audience: tuple[str, ...]
    timeout_s: float = 15.0
    cost: float = 1.0
    uses: tuple[str, ...] = ()

    @property
    def reads(self) -> bool:
        """Whether it changes nothing, so that it may be sent twice."""
        return self.path.rsplit("/", 1)[1].startswith(_READS)


# What a call takes from the token buckets where it makes more work than an ordinary one.
_COSTS = {
    "AccountService/CreateAccount": 5.0,
    "AccountService/DeleteAccount": 5.0,
    "AuditService/ExportAccountEvents": 5.0,
    "AuditService/ExportEvents": 5.0,
    "CollectionService/CreateCollection": 2.0,
    "CollectionService/DeleteCollection": 2.0,
    "CollectionService/ExportCollection": 5.0,
    "CollectionService/ImportCollection": 5.0,
    "DocumentService/DownloadDocument": 2.0,
    "DocumentService/UploadDocument": 2.0,
    "IngestionService/CreateIngestion": 5.0,
    "IngestionService/RetryIngestion": 5.0,
    "SearchService/Search": 2.0,
    "SearchService/SearchBatch": 5.0,
    "VectorService/QueryBatch": 5.0,
    "VectorService/UpdatePoints": 2.0,
    "VectorService/Upsert": 2.0,
    "VectorService/UpsertStream": 5.0,
}
_DOCUMENTS_USE = ("documents", "points", "bytes")
_USES = {
    "CollectionService/ImportCollection": ("points", "bytes"),
    "DocumentService/UploadDocument": _DOCUMENTS_USE,
    "IngestionService/CreateIngestion": _DOCUMENTS_USE,
    "IngestionService/RetryIngestion": _DOCUMENTS_USE,
    "IngestionService/ResumeIngestion": _DOCUMENTS_USE,
    "VectorService/UpdatePoints": ("points", "bytes"),
    "VectorService/Upsert": ("points", "bytes"),
    "VectorService/UpsertStream": ("points", "bytes"),
}


def _methods(
    service: str, owner: str, audience: tuple[str, ...], methods: dict[str, Scope], timeout_s: float = 15.0
) -> dict[str, PublicMethod]:
    made = {}
    for name, scope in methods.items():
        path, key = f"/sealcomb.v1.{service}/{name}", f"{service}/{name}"
        cost, uses = _COSTS.get(key, 1.0), _USES.get(key, ())
        made[path] = PublicMethod(path, owner, scope, audience, timeout_s, cost, uses)
    return made


_TO_VECTORS = (VECTORSTORE, KEYVAULT)
_TO_INGEST = (INGEST, VECTORSTORE, KEYVAULT)

PUBLIC_METHODS: dict[str, PublicMethod] = {
    **_methods(
        "AccountService",
        GATEWAY,
        (GATEWAY,),
        {
            **dict.fromkeys(
                ("CreateAccount", "GetAccount", "ListAccounts", "UpdateAccount", "DeleteAccount"),
                Scope.OPERATOR,
            ),
            "GetUsage": Scope.OPERATOR_OR_ADMIN,
        },
        30.0,
    ),
    **_methods(
        "TokenService",
        GATEWAY,
        (GATEWAY, KEYVAULT),
        {
            "CreateToken": Scope.ADMIN,
            "ListTokens": Scope.ADMIN,
            "RotateToken": Scope.ADMIN,
            "RevokeToken": Scope.ADMIN,
            "WhoAmI": Scope.ANY,
        },
    ),
    **_methods(
        "KeyService",
        KEYVAULT,
        (KEYVAULT,),
        dict.fromkeys(
            (
                "GetKey",
                "RotateKey",
                "BindKey",
                "DisableKey",
                "EnableKey",
                "ScheduleKeyDeletion",
                "CancelKeyDeletion",
            ),
            Scope.KEYS,
        ),
        30.0,
    ),
    **_methods(
        "AuditService",
        KEYVAULT,
        (KEYVAULT,),
        {
            **dict.fromkeys(("ListEvents", "ExportEvents", "GetCheckpoint"), Scope.AUDIT),
            "ExportAccountEvents": Scope.OPERATOR,
        },
        60.0,
    ),
    **_methods(
        "CollectionService",
        VECTORSTORE,
        _TO_VECTORS,
        {
            "CreateCollection": Scope.WRITE,
            "GetCollection": Scope.READ,
            "ListCollections": Scope.READ,
            "UpdateCollection": Scope.WRITE,
            "GetCollectionStats": Scope.READ,
            "DeleteCollection": Scope.WRITE,
        },
    ),
    # A snapshot is written within the call.
    **_methods("CollectionService", VECTORSTORE, _TO_VECTORS, {"ResealCollection": Scope.KEYS}, 120.0),
    # As long as a stream may last whose token is not looked at again.
    **_methods(
        "CollectionService",
        VECTORSTORE,
        _TO_VECTORS,
        {"ExportCollection": Scope.READ, "ImportCollection": Scope.WRITE},
        45.0,
    ),
    **_methods(
        "VectorService",
        VECTORSTORE,
        _TO_VECTORS,
        {
            "Upsert": Scope.WRITE,
            "UpdatePoints": Scope.WRITE,
            "GetPoints": Scope.READ,
            "ListPoints": Scope.READ,
            "DeletePoints": Scope.WRITE,
            "CountPoints": Scope.READ,
            "Query": Scope.READ,
            "QueryBatch": Scope.READ,
        },
    ),
    # Ends before the call context that a stream begins with does.
    **_methods("VectorService", VECTORSTORE, _TO_VECTORS, {"UpsertStream": Scope.WRITE}, 20.0),
    **_methods(
        "DocumentService",
        INGEST,
        _TO_INGEST,
        {
            "UploadDocument": Scope.WRITE,
            "GetDocument": Scope.READ,
            "DownloadDocument": Scope.READ,
            "ListDocuments": Scope.READ,
            "DeleteDocument": Scope.WRITE,
            "ResealDocuments": Scope.KEYS,
        },
        600.0,
    ),
    **_methods(
        "SourceService",
        INGEST,
        _TO_INGEST,
        dict.fromkeys(
            ("ListSourceTypes", "BeginConnection", "CompleteConnection", "ListConnections", "Disconnect"),
            Scope.SOURCES,
        ),
        # Providers are asked within the call.
        60.0,
    ),
    **_methods(
        "IngestionService",
        INGEST,
        _TO_INGEST,
        dict.fromkeys(
            (
                "CreateIngestion",
                "GetIngestion",
                "ListIngestions",
                "ListFailedItems",
                "CancelIngestion",
                "RetryIngestion",
                "ResumeIngestion",
            ),
            Scope.SOURCES,
        ),
        30.0,
    ),
    **_methods("IngestionService", INGEST, _TO_INGEST, {"WatchIngestion": Scope.SOURCES}, 3600.0),
    **_methods("SearchService", INGEST, _TO_INGEST, dict.fromkeys(("Search", "SearchBatch"), Scope.READ)),
}

REFLECTION_METHODS = {
    path: PublicMethod(path, GATEWAY, Scope.ANY, (GATEWAY,), 60.0)
    for path in (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    )
}
# Health alone needs no token; the policy process answers it.
HEALTH_METHODS = ("/grpc.health.v1.Health/Check",)
EDGE_METHODS: dict[str, PublicMethod] = {**PUBLIC_METHODS, **REFLECTION_METHODS}

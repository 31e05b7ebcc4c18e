"""What Alembic runs to reach the gateway's database."""

from alembic import context

from services.common.database import run_migrations
from services.gateway.schema import metadata

run_migrations(context.config, metadata)

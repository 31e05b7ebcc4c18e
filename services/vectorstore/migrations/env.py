"""Run by Alembic: applies the steps in `versions` to the database it was given."""

from __future__ import annotations

from alembic import context

from services.common.database import run_migrations
from services.vectorstore.schema import metadata

run_migrations(context.config, metadata)

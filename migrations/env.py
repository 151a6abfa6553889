"""Run by Alembic: migrates in one transaction under a lock, so that two who migrate at once do it once."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from pipeline.settings import get_settings
from pipeline.tables import Base
from pipeline.tables.session import make_engine

#: Any number that nothing else locks.
_LOCK = 7_263_001


def run() -> None:
    url = context.config.attributes.get("database_url") or get_settings().database_url.get_secret_value()
    engine = make_engine(url, pool_size=1)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
        with context.begin_transaction():
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            context.run_migrations()
    engine.dispose()


if context.is_offline_mode():
    raise SystemExit("Migrations need a database: run `ryzanstein migrate`.")
run()

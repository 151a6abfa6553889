"""Run by Alembic: each revision is a transaction, and all run under a lock, so that two who migrate at once do it once.

Processes go on working meanwhile, so nothing here may keep a table locked for longer than an instant: a revision only
adds (docs/operations.md says how the rest is done), and none waits long for a lock.
"""

from __future__ import annotations

from alembic import context

from pipeline.settings import get_settings
from pipeline.tables import Base
from pipeline.tables.session import make_engine
from pipeline.tables.short_locks import MIGRATION_LOCK, change_with_short_locks, wait_for_lock


def run() -> None:
    url = context.config.attributes.get("database_url") or get_settings().database_url.get_secret_value()
    engine = make_engine(url, pool_size=1)
    try:
        with engine.connect() as connection:

            def migrate() -> None:
                context.configure(
                    connection=connection,
                    target_metadata=Base.metadata,
                    compare_type=True,
                    # A lock is held until its revision ends, and not until all have.
                    transaction_per_migration=True,
                )
                with context.begin_transaction():
                    context.run_migrations()

            wait_for_lock(connection, MIGRATION_LOCK)
            change_with_short_locks(connection, migrate)
    finally:
        engine.dispose()


if context.is_offline_mode():
    raise SystemExit("Migrations need a database: run `ryzanstein migrate`.")
run()

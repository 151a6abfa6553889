"""Revisions as a next version may bring them, for `benchmarks/migration.py`; what an expansion is, by example.

Written into a folder that Alembic reads beside the real ones.
"""

from __future__ import annotations

import os
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory

import migrations
from pipeline.tables.migrating import alembic_config
from pipeline.tables.short_locks import LOCK_SECONDS

_HEADER = """
from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{down_revision}"
branch_labels = None
depends_on = None
"""

#: Columns with and without a constant default, a checked value and a table: each takes its lock for an instant.
_EXPAND = """
def upgrade():
    op.create_table("next_table", sa.Column("id", sa.BigInteger(), primary_key=True))
    op.add_column("requests", sa.Column("next_note", sa.Text(), nullable=True))
    op.add_column("slices", sa.Column("next_rank", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("results", sa.Column("next_seed", sa.BigInteger(), nullable=True))
    # Not looked at row by row under the lock, but in the next revision.
    op.execute("ALTER TABLE requests ADD CONSTRAINT ck_requests_next CHECK (next_note <> '') NOT VALID")


def downgrade():
    op.execute("ALTER TABLE requests DROP CONSTRAINT ck_requests_next")
    op.drop_column("results", "next_seed")
    op.drop_column("slices", "next_rank")
    op.drop_column("requests", "next_note")
    op.drop_table("next_table")
"""

#: Reads the whole table, under a lock that stands in nobody's way.
_VALIDATE = """
def upgrade():
    op.execute("ALTER TABLE requests VALIDATE CONSTRAINT ck_requests_next")


def downgrade():
    pass
"""

#: An index is built beside the writers, outside of a transaction and in a revision of its own. It waits for the
#: transactions that are open, and nobody waits for it: the limit for locks is not meant for it. Of a partitioned table
#: that is one for each partition; the index of the table itself then finds them there, and takes an instant.
_INDEX = """
PARTITIONS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'requests'::regclass"


def upgrade():
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        for partition in op.get_bind().exec_driver_sql(PARTITIONS).scalars().all():
            name = partition.removeprefix("partitions.")
            # of a try that was interrupted
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS partitions.ix_{{name}}_next")
            op.execute(f"CREATE INDEX CONCURRENTLY ix_{{name}}_next ON {{partition}} (num_prompt_tokens)")
        op.execute("SET lock_timeout = '{lock_ms}ms'")
    op.execute("CREATE INDEX ix_requests_next ON requests (num_prompt_tokens)")


def downgrade():
    op.execute("DROP INDEX ix_requests_next")
"""

#: What no revision may do: everyone who writes waits until the index is there.
_BLOCKING = """
def upgrade():
    op.create_index("ix_requests_blocking", "requests", ["num_prompt_tokens"])


def downgrade():
    op.drop_index("ix_requests_blocking", table_name="requests")
"""


#: What waits for the version after the next: processes of this one still use it.
_CONTRACTING = """
def upgrade():
    op.drop_column("requests", "num_crash_exposures")


def downgrade():
    op.add_column("requests", sa.Column("num_crash_exposures", sa.SmallInteger(), server_default="0", nullable=False))
"""


def next_schema(database_url: str, folder: Path, *, blocking: bool = False, contracting: bool = False) -> Config:
    """Alembic's configuration for the real revisions and the next ones, which are written to `folder`.

    `blocking` and `contracting` add one that no version may bring, for a control.
    """
    config = alembic_config(database_url)
    revision = ScriptDirectory.from_config(config).get_current_head()
    bodies = [_EXPAND, _VALIDATE, _INDEX.format(lock_ms=round(LOCK_SECONDS * 1000))]
    bodies += [_BLOCKING] * blocking + [_CONTRACTING] * contracting
    for number, body in enumerate(bodies, start=1):
        name = f"next_{number}"
        (folder / f"{name}.py").write_text(_HEADER.format(revision=name, down_revision=revision) + "\n" + body)
        revision = name
    real = Path(migrations.__file__).parent / "versions"
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", f"{real}{os.pathsep}{folder}")
    return config

"""Where a trace goes on in another process

Revision 0015, after 0014.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without a default: the tables are not read, and whoever knows nothing of them goes on.
    op.add_column("batches", sa.Column("trace_context", sa.Text(), nullable=True))
    op.add_column("outbox", sa.Column("trace_context", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("outbox", "trace_context")
    op.drop_column("batches", "trace_context")

"""Webhooks

Adds a column without a default to `batches`, which rewrites nothing. Control of the version before lets go on what a
client has paused: have all of control be of this version before clients pause batches.

Revision 0013, after 0012.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("pause_note", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("batches", "pause_note")

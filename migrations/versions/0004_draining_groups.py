"""Draining groups

A person can ask a group to take nothing more. Adds a column with a constant default, which rewrites nothing, and two
states; groups of the version before go on beside it, and do not heed the request.

Revision 0004, after 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATE = "ck_groups_state"
_BEFORE = ("starting", "ready", "restarting", "degraded", "stopped")
_SINCE = ("starting", "ready", "restarting", "degraded", "draining", "drained", "stopped")


def upgrade() -> None:
    op.add_column("groups", sa.Column("is_drain_wanted", sa.Boolean(), server_default=sa.false(), nullable=False))
    _allow(_SINCE)


def downgrade() -> None:
    op.execute("UPDATE groups SET state = 'ready' WHERE state IN ('draining', 'drained')")
    _allow(_BEFORE)
    op.drop_column("groups", "is_drain_wanted")


def _allow(states: tuple[str, ...]) -> None:
    op.drop_constraint(op.f(_STATE), "groups", type_="check")
    op.create_check_constraint(op.f(_STATE), "groups", sa.column("state").in_(states))

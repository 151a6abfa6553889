"""The card that a hold was taken by

What a slice costs is priced by the card that its hold was counted by. Holds of groups of the version before name none,
and are priced as they were: by the card in effect when outcomes are recorded.

Revision 0016, after 0015.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nullable and without a default: the table is not read, and whoever knows nothing of it goes on.
    op.add_column("holds", sa.Column("rate_card_id", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("holds", "rate_card_id")

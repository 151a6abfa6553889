"""Projects and service classes

Each tenant gets its default project. Processes of the version before go on beside it: what they write has no project,
which is the default one, and the class `standard`.

Revision 0005, after 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_WITH_PROJECT = ("api_keys", "batches", "usage_events")
_WITH_CLASS = ("batches", "slices", "usage_events")


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_projects_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
    )
    op.create_index("uq_projects_tenant_id_name", "projects", ["tenant_id", "name"], unique=True)
    op.execute("INSERT INTO projects (id, tenant_id, name) SELECT 'proj_' || md5(id), id, 'default' FROM tenants")
    for table in _WITH_PROJECT:
        op.add_column(table, sa.Column("project_id", sa.Text(), nullable=True))
    for table in _WITH_CLASS:
        op.add_column(table, sa.Column("service_class", sa.String(32), server_default="standard", nullable=False))
    # Not checked against the rows that are there, which would hold the lock for long: they are all the default.
    for table in _WITH_CLASS:
        op.execute(
            f"ALTER TABLE {table} ADD CONSTRAINT ck_{table}_service_class"
            " CHECK (service_class IN ('priority', 'standard', 'flex')) NOT VALID"
        )


def downgrade() -> None:
    for table in _WITH_CLASS:
        op.drop_column(table, "service_class")
    for table in _WITH_PROJECT:
        op.drop_column(table, "project_id")
    op.drop_table("projects")

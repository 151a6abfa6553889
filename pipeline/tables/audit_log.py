"""What people have done to this installation, and what was erased: only ever added to."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, LargeBinary
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment


class AuditEntry(Base):
    """One administrative act, chained to the one before by its hash; see `pipeline/tenancy/audit_log.py`.

    A trigger refuses to change or remove rows.
    """

    __tablename__ = "audit_log"

    #: From 1, without gaps.
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[Moment]
    #: Who did it: `USER@HOST` at the command line, or the id of a key.
    actor: Mapped[str]
    #: What was done, such as `key.revoke`.
    act: Mapped[str]
    #: What it was done to: an id or a name.
    object: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column(JSONB)
    #: Of the entry before; 32 zero bytes in the first.
    previous_hash: Mapped[bytes] = mapped_column(LargeBinary)
    #: SHA-256 of all of the above.
    hash: Mapped[bytes] = mapped_column(LargeBinary)


class Erasure(Base):
    """A signed statement of what was erased of a tenant. A trigger refuses to change or remove rows."""

    __tablename__ = "erasures"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    #: JSON, signed as it is.
    statement: Mapped[str]
    signature: Mapped[bytes] = mapped_column(LargeBinary)
    #: In PEM.
    public_key: Mapped[str]
    created_at: Mapped[Created]

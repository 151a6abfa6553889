"""Tenants and their keys."""

from __future__ import annotations

from sqlalchemy import ForeignKey, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment


class Tenant(Base):
    """The organisation that owns keys, batches and bills."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[Created]


class ApiKey(Base):
    """A key, `rz_SHORTID_SECRET`, of which only the short id and the SHA-256 of the whole are kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    name: Mapped[str]
    short_id: Mapped[str] = mapped_column(unique=True)
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[Created]
    last_used_at: Mapped[Moment | None]
    revoked_at: Mapped[Moment | None]

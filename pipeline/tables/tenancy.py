"""Tenants and their keys."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, LargeBinary, Text, false
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment


class Tenant(Base):
    """The organisation that owns keys, batches and bills."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[Created]
    #: Of the last erasure: what was there before it is gone.
    erased_at: Mapped[Moment | None]


class Project(Base):
    """A part of a tenant whose keys, batches and usage are kept apart."""

    __tablename__ = "projects"
    __table_args__ = (Index("uq_projects_tenant_id_name", "tenant_id", "name", unique=True),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str]
    created_at: Mapped[Created]
    archived_at: Mapped[Moment | None]


class ApiKey(Base):
    """A key, `rz_SHORTID_SECRET`, of which only the short id and the SHA-256 of the whole are kept."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    #: None: of the whole tenant; what it creates belongs to the tenant's default project.
    project_id: Mapped[str | None]
    name: Mapped[str]
    short_id: Mapped[str] = mapped_column(unique=True)
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary)
    #: What it may do; None: all that a key of its tenant or project can.
    scopes: Mapped[list[str] | None] = mapped_column(ARRAY(Text()))
    #: Whether its owner operates this installation: in the console it shows groups, the queue, and all tenants' totals.
    is_operator: Mapped[bool] = mapped_column(server_default=false())
    created_at: Mapped[Created]
    #: It is refused from this moment on.
    expires_at: Mapped[Moment | None]
    #: The key that this one was made to replace.
    rotated_from: Mapped[str | None]
    last_used_at: Mapped[Moment | None]
    revoked_at: Mapped[Moment | None]

"""Files: uploads in blob storage, and views over the outcomes of a batch."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment, text_enum


class FileView(StrEnum):
    """Which outcomes of its batch a file without a blob shows."""

    OUTPUT = "output"  #: Succeeded requests.
    ERROR = "error"  #: All other outcomes, and invalid lines that were skipped.


class File(Base):
    __tablename__ = "files"
    __table_args__ = (
        CheckConstraint("(storage_key IS NULL) = (view IS NOT NULL)", name="blob_or_view"),
        CheckConstraint("(batch_id IS NULL) = (view IS NULL)", name="view_has_batch"),
        Index("ix_files_tenant_id_created_at", "tenant_id", "created_at"),
        Index("ix_files_expiring", "expires_at", postgresql_where="deleted_at IS NULL AND expires_at IS NOT NULL"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    #: Of the key or the batch that made it; None: the tenant's default project.
    project_id: Mapped[str | None]
    filename: Mapped[str]
    purpose: Mapped[str]
    #: Of a view: known when its batch has ended, 0 before.
    num_bytes: Mapped[int]
    created_at: Mapped[Created]
    expires_at: Mapped[Moment | None]
    #: The row stays, so that batches keep what they refer to; the blob is removed.
    deleted_at: Mapped[Moment | None]
    storage_key: Mapped[str | None]
    batch_id: Mapped[str | None] = mapped_column(ForeignKey("batches.id", use_alter=True), index=True)
    view: Mapped[FileView | None] = mapped_column(text_enum(FileView, "view"))

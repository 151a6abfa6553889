"""Who has been served how much, and how much each tenant is due; see `pipeline/jobs/fairness.py`."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import CheckConstraint, ForeignKey, Numeric
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, text_enum
from pipeline.tables.batches import ServiceClass


class FairShare(Base):
    """What a tenant has been served of a model in a service class: its virtual token counter, less what is at work."""

    __tablename__ = "fair_shares"
    __table_args__ = ({"postgresql_with": {"fillfactor": 50}},)

    model: Mapped[str] = mapped_column(primary_key=True)
    service_class: Mapped[ServiceClass] = mapped_column(text_enum(ServiceClass, "service_class"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    #: Weighted tokens over the tenant's weight, and what it was lifted by when it came back.
    served: Mapped[Decimal] = mapped_column(Numeric(38, 6))


class TenantWeight(Base):
    """The share of a tenant against that of the others; 1 where there is no row."""

    __tablename__ = "tenant_weights"
    __table_args__ = (CheckConstraint("weight > 0", name="weight_positive"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    weight: Mapped[Decimal] = mapped_column(Numeric(9, 3))
    created_at: Mapped[Created]


class ClassTurn(Base):
    """When a group last began work of each class below `priority`, to within a tenth of the ageing time."""

    __tablename__ = "class_turns"

    group_id: Mapped[str] = mapped_column(primary_key=True)
    standard_at: Mapped[Created]
    flex_at: Mapped[Created]

"""SQLAlchemy tables, one file per area, and the session."""

from __future__ import annotations

from pipeline.tables.base import Base
from pipeline.tables.batches import Batch, BatchError, BatchStatus, IdempotencyKey, OnInvalid, ServiceClass
from pipeline.tables.billing import (
    LedgerAccount,
    LedgerEntry,
    LedgerTransaction,
    Meter,
    RateCard,
    RatedLine,
    UsageEvent,
)
from pipeline.tables.files import File, FileView
from pipeline.tables.fleet import Group, GroupState, ServedModel
from pipeline.tables.invoices import (
    BillingDetails,
    Invoice,
    InvoiceItem,
    InvoiceLine,
    InvoiceNumber,
    InvoiceStatus,
    LineKind,
)
from pipeline.tables.outbox import OutboxMessage
from pipeline.tables.requests import OutcomeKind, PartialOutput, Request, Result
from pipeline.tables.rollups import ArchivedUsage, Period, UsageRollup
from pipeline.tables.slices import Attempt, AttemptEnd, Slice, SliceStatus
from pipeline.tables.tenancy import ApiKey, Project, Tenant

__all__ = [
    "ApiKey",
    "ArchivedUsage",
    "Attempt",
    "AttemptEnd",
    "Base",
    "Batch",
    "BatchError",
    "BatchStatus",
    "BillingDetails",
    "File",
    "FileView",
    "Group",
    "GroupState",
    "IdempotencyKey",
    "Invoice",
    "InvoiceItem",
    "InvoiceLine",
    "InvoiceNumber",
    "InvoiceStatus",
    "LedgerAccount",
    "LedgerEntry",
    "LedgerTransaction",
    "LineKind",
    "Meter",
    "OnInvalid",
    "OutboxMessage",
    "OutcomeKind",
    "PartialOutput",
    "Period",
    "Project",
    "RateCard",
    "RatedLine",
    "Request",
    "Result",
    "ServedModel",
    "ServiceClass",
    "Slice",
    "SliceStatus",
    "Tenant",
    "UsageEvent",
    "UsageRollup",
]

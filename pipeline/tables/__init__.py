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
from pipeline.tables.outbox import OutboxMessage
from pipeline.tables.requests import OutcomeKind, PartialOutput, Request, Result
from pipeline.tables.slices import Attempt, AttemptEnd, Slice, SliceStatus
from pipeline.tables.tenancy import ApiKey, Project, Tenant

__all__ = [
    "ApiKey",
    "Attempt",
    "AttemptEnd",
    "Base",
    "Batch",
    "BatchError",
    "BatchStatus",
    "File",
    "FileView",
    "Group",
    "GroupState",
    "IdempotencyKey",
    "LedgerAccount",
    "LedgerEntry",
    "LedgerTransaction",
    "Meter",
    "OnInvalid",
    "OutboxMessage",
    "OutcomeKind",
    "PartialOutput",
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
]

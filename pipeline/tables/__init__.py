"""SQLAlchemy tables, one file per area, and the session."""

from __future__ import annotations

from pipeline.tables.audit_log import AuditEntry, Erasure
from pipeline.tables.base import Base
from pipeline.tables.batches import (
    Batch,
    BatchError,
    BatchStatus,
    IdempotencyKey,
    IdempotentAnswer,
    OnInvalid,
    ServiceClass,
)
from pipeline.tables.billing import (
    LedgerAccount,
    LedgerEntry,
    LedgerTransaction,
    Meter,
    RateCard,
    RatedLine,
    UsageEvent,
)
from pipeline.tables.budgets import Budget, BudgetPeriod, BudgetUse, Hold
from pipeline.tables.console import ConsoleSession
from pipeline.tables.credits import CreditNote, CreditReason
from pipeline.tables.fairness import ClassTurn, FairShare, TenantWeight
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
from pipeline.tables.limits import QueueLimit, RateLimit
from pipeline.tables.outbox import OutboxMessage
from pipeline.tables.partitions import ArchivedLedgerLine, DroppedBatch, DroppedMonth
from pipeline.tables.quotes import Quote, QuoteStatus
from pipeline.tables.rates import Contract, CreditGrant, Pricing, Rate, RatingCounter, Waste, WasteCause
from pipeline.tables.requests import OutcomeKind, PartialOutput, Request, Result
from pipeline.tables.rollups import ArchivedUsage, Period, UsageRollup
from pipeline.tables.slices import Attempt, AttemptEnd, Slice, SliceStatus
from pipeline.tables.tenancy import ApiKey, Project, Tenant
from pipeline.tables.usage_views import MeteredUsage, RatedUsage
from pipeline.tables.webhooks import DeliveryStatus, WebhookDelivery, WebhookEndpoint, WebhookEvent

__all__ = [
    "ApiKey",
    "ArchivedLedgerLine",
    "ArchivedUsage",
    "Attempt",
    "AttemptEnd",
    "AuditEntry",
    "Base",
    "Batch",
    "BatchError",
    "BatchStatus",
    "BillingDetails",
    "Budget",
    "BudgetPeriod",
    "BudgetUse",
    "ClassTurn",
    "ConsoleSession",
    "Contract",
    "CreditGrant",
    "CreditNote",
    "CreditReason",
    "DeliveryStatus",
    "DroppedBatch",
    "DroppedMonth",
    "Erasure",
    "FairShare",
    "File",
    "FileView",
    "Group",
    "GroupState",
    "Hold",
    "IdempotencyKey",
    "IdempotentAnswer",
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
    "MeteredUsage",
    "OnInvalid",
    "OutboxMessage",
    "OutcomeKind",
    "PartialOutput",
    "Period",
    "Pricing",
    "Project",
    "QueueLimit",
    "Quote",
    "QuoteStatus",
    "Rate",
    "RateCard",
    "RateLimit",
    "RatedLine",
    "RatedUsage",
    "RatingCounter",
    "Request",
    "Result",
    "ServedModel",
    "ServiceClass",
    "Slice",
    "SliceStatus",
    "Tenant",
    "TenantWeight",
    "UsageEvent",
    "UsageRollup",
    "Waste",
    "WasteCause",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookEvent",
]

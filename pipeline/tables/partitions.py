"""Partitions: what is kept of each request lies in tables by month, so that a month can be dropped at once.

A request's id begins with the month in which it was planned, and its result, with what it used and cost, has the id
as their key: all of it is in the partitions of one month. The database makes them, by `make_request_partitions`
(`pipeline/jobs/partitioning.py`). What was there before requests carried their month is in partitions of its own,
`…_before`.

These tables have no foreign keys. Each row of them is written in the transaction of what it hangs on or after it, and
nothing of that is ever deleted but together; that it is there is for the audit to see. The checks would be made one row
at a time, and took a third of the time of a recording.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Money

PARTITIONED_BY_ID: Final = {"postgresql_partition_by": "RANGE (id)"}
PARTITIONED_BY_REQUEST: Final = {"postgresql_partition_by": "RANGE (request_id)"}

#: Of an id, below the month.
REQUEST_NUMBER_BITS: Final = 40

#: Those that hang on others first.
PARTITIONED_TABLES: Final = ("rated_lines", "usage_events", "results", "requests")


class DroppedMonth(Base):
    """A month whose partitions retention has dropped."""

    __tablename__ = "dropped_months"

    #: `2026_11`, or `before`.
    name: Mapped[str] = mapped_column(primary_key=True)
    num_requests: Mapped[int]
    dropped_at: Mapped[Created]


class DroppedBatch(Base):
    """A batch whose requests, answers and prices went with their month; what it counted stays."""

    __tablename__ = "dropped_batches"

    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    month: Mapped[str] = mapped_column(ForeignKey("dropped_months.name"))


class ArchivedLedgerLine(Base):
    """What the dropped prices of a ledger transaction came to; those that are left add to it."""

    __tablename__ = "archived_ledger_lines"

    ledger_transaction_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    amount: Mapped[Money]

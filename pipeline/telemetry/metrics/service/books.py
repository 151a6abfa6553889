"""Whether the books of the month agree: compared now and then in a thread of its own, since it reads all of a month."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from datetime import UTC, datetime
from typing import Final

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from pipeline.billing import reconciliation
from pipeline.billing.reconciliation import Reconciliation, reconcile
from pipeline.billing.reports import Month
from pipeline.telemetry.logs import summarize_error
from pipeline.telemetry.metrics import control_names as names
from pipeline.telemetry.metrics.service.reader import Values

log = structlog.get_logger(__name__)

_TOKENS: Final = (reconciliation.ENGINE_TOKENS, reconciliation.RATED_TOKENS)
_AMOUNTS: Final = (reconciliation.RATED_AMOUNT, reconciliation.LEDGER, reconciliation.INVOICES)
#: A comparison may take this part of the time at most.
_SHARE: Final = 0.05


class Books:
    """Compares when somebody asks and the last time is long enough ago; nobody waits for it."""

    def __init__(self, database: Engine, every_seconds: float, currency: str) -> None:
        """`every_seconds` of 0 is never."""
        self._database = database
        self._every_seconds = every_seconds
        self._currency = currency
        self._due_at = 0.0
        self._thread: threading.Thread | None = None
        self._values: Values = {}

    def ask(self) -> Values:
        """What the last comparison has found; nothing before the first one."""
        is_idle = self._thread is None or not self._thread.is_alive()
        if self._every_seconds and is_idle and time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + self._every_seconds
            self._thread = threading.Thread(target=self._compare, name="metrics-books", daemon=True)
            self._thread.start()
        return self._values

    def _compare(self) -> None:
        began = time.monotonic()
        try:
            found = reconcile(self._database, months=[Month.of(datetime.now(UTC))])
        except SQLAlchemyError as error:
            log.warning("the books could not be compared for metrics", reason=summarize_error(error))
            return
        seconds = time.monotonic() - began
        self._due_at = max(self._due_at, time.monotonic() + seconds / _SHARE)
        self._values = {**values_of(found, self._currency), names.BOOKS_CHECKED: [((), time.time())]}


def values_of(found: Reconciliation, currency: str) -> Values:
    """0 where all is well; amounts are floats from here on, as Prometheus has them."""
    amounts: dict[tuple[str, str], float] = defaultdict(float)
    for drift in found.drifts:
        if drift.check in _AMOUNTS:
            amounts[drift.check.name, drift.currency] += float(drift.amount.copy_abs())
    for check in _AMOUNTS:
        amounts.setdefault((check.name, currency), 0.0)
    return {
        names.DRIFT_TOKENS: [((check.name,), float(found.total(check))) for check in _TOKENS],
        names.DRIFT_AMOUNT: list(amounts.items()),
        names.DRIFT_ENGINE: [((), float(found.total(reconciliation.ENGINE_MS)) / 1000)],
        names.UNRATED: [((), float(found.total(reconciliation.UNRATED_EVENTS)))],
    }

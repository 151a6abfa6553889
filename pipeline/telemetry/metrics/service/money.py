"""Budgets and holds. Values of Prometheus are floats by their nature: amounts become one here, and nowhere before."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from sqlalchemy import Connection, text

from pipeline.billing.holds import PERIOD_START
from pipeline.settings import get_settings
from pipeline.telemetry.metrics import control_names as names
from pipeline.telemetry.metrics.service.reader import Values
from pipeline.telemetry.metrics.service.top_tenants import TopTenants

_HOLDS: Final = text("""
    SELECT g.currency, count(*) AS num, sum(h.amount) AS amount
    FROM holds h JOIN budgets g ON g.id = h.budget_id GROUP BY g.currency
""")
# Those of single batches come and go with them.
_BUDGETS: Final = text(f"""
    SELECT g.tenant_id, g.currency,
           CASE WHEN g.amount > 0 THEN (coalesce(u.spent, 0) + coalesce(u.held, 0)) / g.amount ELSE 1 END AS used
    FROM budgets g LEFT JOIN budget_uses u ON u.budget_id = g.id AND u.period_start = {PERIOD_START}
    WHERE g.batch_id IS NULL
""")  # noqa: S608 - constants
_FULL: Final = 1.0
_HALF: Final = 0.5


class MoneySection:
    def __init__(self, tenants: TopTenants) -> None:
        self._tenants = tenants

    def read(self, conn: Connection) -> Values:
        holds = {row.currency: row for row in conn.execute(_HOLDS)}
        currencies = sorted({*holds, get_settings().default_currency})
        states = {"below_half": 0, "below_full": 0, "full": 0}
        fullest: dict[tuple[str, str], float] = defaultdict(float)
        for row in conn.execute(_BUDGETS):
            used = float(row.used)
            states["full" if used >= _FULL else "below_full" if used >= _HALF else "below_half"] += 1
            label = self._tenants.label(row.tenant_id), row.currency
            fullest[label] = max(fullest[label], used)
        return {
            names.HOLDS_OPEN: [((key,), float(holds[key].num if key in holds else 0)) for key in currencies],
            names.HOLDS_AMOUNT: [((key,), float(holds[key].amount if key in holds else 0)) for key in currencies],
            names.BUDGETS: [((state,), float(num)) for state, num in states.items()],
            names.BUDGET_USE: list(fullest.items()),
        }

"""What tenants used and what came to nothing, since ever."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, TextClause, text

from pipeline.telemetry.metrics import control_names as names
from pipeline.telemetry.metrics.service.reader import Values
from pipeline.telemetry.metrics.service.top_tenants import TenantCounter, TopTenants

# Of days that have passed nothing changes, but for what is set right at night.
_USED_BEFORE: Final = text("""
    SELECT tenant_id, model, meter, currency, sum(quantity) AS quantity, sum(amount) AS amount FROM usage_rollups
    WHERE period = 'day' AND starts_at < :day GROUP BY tenant_id, model, meter, currency
""")
# By the primary key, which begins with the tenant.
_USED_SINCE: Final = text("""
    SELECT u.* FROM tenants t CROSS JOIN LATERAL (
        SELECT r.tenant_id, r.model, r.meter, r.currency, sum(r.quantity) AS quantity, sum(r.amount) AS amount
        FROM usage_rollups r WHERE r.tenant_id = t.id AND r.period = 'day' AND r.starts_at >= :day
        GROUP BY r.tenant_id, r.model, r.meter, r.currency
    ) u
""")
_WASTED_BEFORE: Final = text("""
    SELECT model, cause, sum(num_tokens) AS quantity FROM waste WHERE created_at < :day GROUP BY model, cause
""")
_WASTED_SINCE: Final = text("""
    SELECT model, cause, sum(num_tokens) AS quantity FROM waste WHERE created_at >= :day GROUP BY model, cause
""")
_TENANTS: Final = text("SELECT id, name FROM tenants")

#: How long what was summed up of days that have passed is good for, in seconds.
_BEFORE_SECONDS: Final = 3600.0
#: Statements that sum up all days may take longer than the others.
_LONG: Final = text("SET LOCAL statement_timeout = '30s'")


class _Totals:
    """Sums of rows over all time, of which only those of today and yesterday are read each time."""

    def __init__(self, before: TextClause, since: TextClause) -> None:
        self._before = before
        self._since = since
        self._rows: Sequence[Any] = ()
        self._day = datetime.min.replace(tzinfo=UTC)
        self._read_at = float("-inf")

    def read(self, conn: Connection) -> list[Any]:
        if time.monotonic() - self._read_at > _BEFORE_SECONDS:
            today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
            # What is recorded at midnight may be of the day before.
            day = today - timedelta(days=1)
            conn.execute(_LONG)
            self._rows, self._day = conn.execute(self._before, {"day": day}).all(), day
            self._read_at = time.monotonic()
        return [*self._rows, *conn.execute(self._since, {"day": self._day})]


class UsageSection:
    def __init__(self, tenants: TopTenants) -> None:
        self._tenants = tenants
        self._totals = _Totals(_USED_BEFORE, _USED_SINCE)
        self._tokens = TenantCounter(tenants)
        self._amounts = TenantCounter(tenants)

    def read(self, conn: Connection) -> Values:
        rows = self._totals.read(conn)
        by_tenant: dict[str, float] = defaultdict(float)
        tokens: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
        amounts: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
        for row in rows:
            by_tenant[row.tenant_id] += int(row.quantity)
            tokens[row.tenant_id, (row.model, row.meter)] += int(row.quantity)
            if row.currency:
                # A value of Prometheus is a float by its nature; nobody is billed by this one.
                amounts[row.tenant_id, (row.model, row.currency)] += float(row.amount)
        self._tenants.choose(by_tenant, {row.id: row.name for row in conn.execute(_TENANTS)})
        return {
            names.TOKENS: _samples(self._tokens.count(tokens)),
            names.RATED_AMOUNT: _samples(self._amounts.count(amounts)),
        }


class WasteSection:
    def __init__(self) -> None:
        self._totals = _Totals(_WASTED_BEFORE, _WASTED_SINCE)

    def read(self, conn: Connection) -> Values:
        tokens: dict[tuple[str, str], float] = defaultdict(float)
        for row in self._totals.read(conn):
            tokens[row.model, row.cause] += int(row.quantity)
        return {names.RECORDED_WASTE: list(tokens.items())}


def _samples(values: Mapping[tuple[str, tuple[str, ...]], float]) -> list[tuple[tuple[str, ...], float]]:
    """In the order of the labels: model, tenant, and what is left."""
    return [((rest[0], tenant, *rest[1:]), value) for (tenant, rest), value in values.items()]

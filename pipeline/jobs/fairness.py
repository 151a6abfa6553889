"""Fair shares: a virtual token counter per tenant, after VTC (Sheng et al., "Fairness in Serving Large Language
Models", OSDI 2024), by model and service class.

A tenant's counter is what it was served, in weighted tokens over its weight, and what is expected of its slices that
are at work. A claim goes to the lowest counter of the tenants who wait. So a claim charges what planning expects of the
slice by the very act of being one, no group waits for another to do so, and a slice that comes back is charged no more.
The outcomes of requests are recorded with what they did cost, in place of what was expected.

Who has nothing waiting saves nothing up: with its next batch its counter is lifted to the lowest of those who wait.

docs/fairness.md states the bound that follows, and what was measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from psycopg import Cursor
from sqlalchemy import Connection, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from pipeline.errors import UserError
from pipeline.settings import Settings, get_settings
from pipeline.tables.fairness import TenantWeight
from pipeline.tenancy import audit_log

#: Weights that are taken; the column holds three decimals.
_LEAST_WEIGHT: Final = Decimal("0.001")
_GREATEST_WEIGHT: Final = Decimal(100_000)

#: What is expected of a slice `s`, in weighted tokens, requests with an outcome left out. Of a slice that a version
#: before planned only the most that it can be is known.
EXPECTED_COST: Final = """(
    CASE WHEN s.num_prompt_tokens > 0
         THEN s.num_prompt_tokens - s.num_shared_tokens * (1 - CAST(:cached_weight AS numeric))
              + s.num_answer_tokens * CAST(:output_weight AS numeric)
         ELSE s.num_tokens END * s.num_unfinished / s.num_requests
)"""

#: Whether a batch `b` is worked on. Not a plain condition: of old statistics PostgreSQL might conclude that next
#: to none are in progress, and look through all that are for each slice.
IS_WORKED_ON: Final = "(b.status = 'in_progress' AND b.expires_at > now() AND b.pause_reason IS NULL) IS TRUE"

#: The same of the batch of a slice `s`, looked up by its key whatever the statistics are.
ITS_BATCH_IS_WORKED_ON: Final = f"(SELECT {IS_WORKED_ON} FROM batches b WHERE b.id = s.batch_id)"  # noqa: S608

#: Two common tables for `WITH RECURSIVE`, of the model `:model`. `heads`: the first slice in the queue of each tenant
#: in each class, found by an index lookup each, however many slices wait. `counters`: of everyone who was ever served.
HEADS: Final = """
    heads (service_class, tenant_id, deadline, id, batch_id) AS (
        (SELECT service_class, tenant_id, deadline, id, batch_id FROM slices
         WHERE model = :model AND status = 'pending' ORDER BY service_class, tenant_id, deadline, id LIMIT 1)
        UNION ALL
        SELECT following.* FROM heads h CROSS JOIN LATERAL (
            SELECT s.service_class, s.tenant_id, s.deadline, s.id, s.batch_id FROM slices s
            WHERE s.model = :model AND s.status = 'pending'
              AND (s.service_class, s.tenant_id) > (h.service_class, h.tenant_id)
            ORDER BY s.service_class, s.tenant_id, s.deadline, s.id LIMIT 1
        ) following
    )
"""
AT_WORK: Final = f"""
    at_work AS (
        SELECT s.service_class, s.tenant_id, sum({EXPECTED_COST}) AS cost, count(*) AS num_slices
        FROM slices s WHERE s.model = :model AND s.status = 'claimed' GROUP BY s.service_class, s.tenant_id
    )
"""  # noqa: S608 - constants

#: The counter of a tenant, where its rows of `fair_shares`, `at_work` and `tenant_weights` are joined as these.
COUNTER: Final = "(coalesce(f.served, 0) + coalesce(w.cost, 0) / coalesce(weights.weight, 1))"

# One row of each tenant that outcomes are of, the last that recording locks; always in the same order.
_SETTLE: Final = """
    INSERT INTO fair_shares AS f (model, service_class, tenant_id, served)
    SELECT s.model, s.service_class, s.tenant_id, sum(o.cost) / coalesce(min(weights.weight), 1)
    FROM unnest(%(slice_ids)b::bigint[], %(costs)b::numeric[]) AS o (slice_id, cost)
    JOIN slices s ON s.id = o.slice_id LEFT JOIN tenant_weights weights ON weights.tenant_id = s.tenant_id
    GROUP BY s.model, s.service_class, s.tenant_id ORDER BY s.model, s.service_class, s.tenant_id
    ON CONFLICT (model, service_class, tenant_id) DO UPDATE SET served = f.served + excluded.served
"""

# Where nobody else waits, whoever has the highest counter is the measure: time has passed as far as there.
_LIFT: Final = text(f"""
    WITH RECURSIVE me AS (
        SELECT model, service_class, tenant_id FROM batches WHERE id = :batch_id
    ), {HEADS}, {AT_WORK}, waiting AS (
        SELECT h.tenant_id FROM heads h JOIN me ON me.service_class = h.service_class AND me.tenant_id <> h.tenant_id
        WHERE EXISTS (
            SELECT FROM slices s
            WHERE s.model = :model AND s.status = 'pending' AND s.service_class = h.service_class
              AND s.tenant_id = h.tenant_id AND {ITS_BATCH_IS_WORKED_ON}
        )
    ), tenants AS (
        SELECT f.tenant_id FROM fair_shares f JOIN me ON f.model = :model AND f.service_class = me.service_class
        UNION SELECT w.tenant_id FROM at_work w JOIN me ON w.service_class = me.service_class
        UNION SELECT tenant_id FROM waiting
    ), counters AS (
        SELECT t.tenant_id, {COUNTER} AS counter
        FROM me CROSS JOIN tenants t
        LEFT JOIN fair_shares f
            ON f.model = :model AND f.service_class = me.service_class AND f.tenant_id = t.tenant_id
        LEFT JOIN at_work w ON w.service_class = me.service_class AND w.tenant_id = t.tenant_id
        LEFT JOIN tenant_weights weights ON weights.tenant_id = t.tenant_id
    ), floor AS (
        SELECT coalesce((SELECT min(counter) FROM counters JOIN waiting USING (tenant_id)),
                        (SELECT max(counter) FROM counters), 0) AS counter
    )
    INSERT INTO fair_shares AS f (model, service_class, tenant_id, served)
    SELECT :model, me.service_class, me.tenant_id, floor.counter - coalesce(w.cost, 0) / coalesce(weights.weight, 1)
    FROM me CROSS JOIN floor
    LEFT JOIN at_work w ON w.service_class = me.service_class AND w.tenant_id = me.tenant_id
    LEFT JOIN tenant_weights weights ON weights.tenant_id = me.tenant_id
    WHERE NOT EXISTS (
        SELECT FROM slices s
        WHERE s.model = :model AND s.status = 'pending' AND s.service_class = me.service_class
          AND s.tenant_id = me.tenant_id AND s.batch_id <> :batch_id AND {ITS_BATCH_IS_WORKED_ON}
    )
    ON CONFLICT (model, service_class, tenant_id) DO UPDATE SET served = greatest(f.served, excluded.served)
""")  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Cost:
    """What the recorded outcomes of one slice took, for its tenant's counter."""

    slice_id: int
    num_uncached_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0

    def weighted(self, settings: Settings) -> Decimal:
        """In weighted tokens: those of an uncached prompt count 1."""
        return (
            self.num_uncached_tokens
            + self.num_cached_tokens * settings.fair_cached_weight
            + self.num_output_tokens * settings.fair_output_weight
        )


def weights_of(settings: Settings) -> dict[str, Decimal]:
    """The parameters of `EXPECTED_COST`."""
    return {"cached_weight": settings.fair_cached_weight, "output_weight": settings.fair_output_weight}


def settle(cursor: Cursor[Any], costs: Iterable[Cost]) -> None:
    """Charge what outcomes took, in the transaction that takes them out of what is expected of their slices.

    Waits for no answer, so that it can be one of many statements of a pipeline. Call it last: it locks a row that all
    groups of the tenant write.
    """
    settings = get_settings()
    by_slice: dict[int, Decimal] = defaultdict(Decimal)
    for cost in costs:
        by_slice[cost.slice_id] += cost.weighted(settings)
    cursor.execute(_SETTLE, {"slice_ids": list(by_slice), "costs": list(by_slice.values())})


def lift(conn: Connection, batch_id: str, model: str) -> None:
    """Lift the counter of a batch's tenant, whose slices begin to wait, unless others of its slices wait already.

    Call it in the transaction that makes them wait, near its end: it locks a row that recording writes.
    """
    conn.execute(_LIFT, {"batch_id": batch_id, "model": model, **weights_of(get_settings())})


def set_weight(session: Session, tenant_id: str, weight: Decimal) -> None:
    """Set a tenant's share against that of the others; what it was served before stays counted as it was."""
    if not weight.is_finite() or not _LEAST_WEIGHT <= weight <= _GREATEST_WEIGHT or weight != round(weight, 3):
        raise UserError(
            f"{weight} is no weight: give a number from {_LEAST_WEIGHT} to {_GREATEST_WEIGHT}, of three decimals at "
            "most. Everyone who was given none has 1."
        )
    row = insert(TenantWeight).values(tenant_id=tenant_id, weight=weight)
    session.execute(row.on_conflict_do_update(index_elements=["tenant_id"], set_={"weight": weight}))
    audit_log.record(session, act="share.set", object=tenant_id, details={"weight": f"{weight:f}"})


def weight_of(session: Session, tenant_id: str) -> Decimal:
    """A tenant's weight; 1 where none was set."""
    found = session.scalar(select(TenantWeight.weight).where(TenantWeight.tenant_id == tenant_id))
    return Decimal(1) if found is None else found


@dataclass(frozen=True, slots=True)
class ListedShare:
    """A tenant, and what it was served of one model in one class; None where it was served nothing at all."""

    tenant: str
    weight: Decimal
    model: str | None
    service_class: str | None
    served: Decimal | None


_LIST: Final = text("""
    SELECT t.name, coalesce(w.weight, 1) AS weight, f.model, f.service_class, f.served
    FROM tenants t LEFT JOIN tenant_weights w ON w.tenant_id = t.id LEFT JOIN fair_shares f ON f.tenant_id = t.id
    ORDER BY t.name, f.model, f.service_class
""")


def list_shares(session: Session) -> list[ListedShare]:
    """Every tenant, by name, with a row for each of its counters, or one without."""
    return [ListedShare(*row) for row in session.execute(_LIST)]

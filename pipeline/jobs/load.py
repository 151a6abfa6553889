"""How much work waits for a model, whose it is, and how fast it gets done: what estimates and explanations rest on.

Work is in weighted tokens, as planning expects them (`EXPECTED_COST`). How fast a group is, is measured in the same:
what was expected of the requests that it recorded, over the time that it had a slice. So answers that come out shorter
than planning counts them make a group faster, not the estimate wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

from pipeline.jobs.fairness import AT_WORK, COUNTER, EXPECTED_COST, ITS_BATCH_IS_WORKED_ON, weights_of
from pipeline.settings import get_settings
from pipeline.tables.batches import ServiceClass

#: Attempts that speed is measured by: of the last day, the newest so many.
_MAX_ATTEMPTS: Final = 300

_QUEUES: Final = text(f"""
    WITH pending AS (
        SELECT s.service_class, s.tenant_id, sum({EXPECTED_COST}) AS cost, count(*) AS num_slices
        FROM slices s WHERE s.model = :model AND s.status = 'pending' AND {ITS_BATCH_IS_WORKED_ON}
        GROUP BY s.service_class, s.tenant_id
    ), {AT_WORK}
    SELECT service_class, tenant_id, coalesce(p.cost, 0) AS pending_cost, coalesce(p.num_slices, 0) AS num_pending,
           coalesce(w.cost, 0) AS cost_at_work, coalesce(w.num_slices, 0) AS num_at_work,
           {COUNTER} AS counter, coalesce(weights.weight, 1) AS weight
    FROM pending p FULL JOIN at_work w USING (service_class, tenant_id)
    LEFT JOIN (SELECT service_class, tenant_id, served FROM fair_shares WHERE model = :model) f
        USING (service_class, tenant_id)
    LEFT JOIN tenant_weights weights USING (tenant_id)
    ORDER BY service_class, tenant_id
""")  # noqa: S608 - constants

_GROUPS: Final = text("""
    SELECT count(*) FILTER (WHERE state = 'ready') AS num_ready,
           count(*) FILTER (WHERE state IN ('starting', 'restarting')) AS num_starting,
           count(*) FILTER (WHERE state IN ('degraded', 'draining', 'drained')) AS num_away,
           clock_timestamp() AS now
    FROM groups WHERE model = :model
""")

_SPEED: Final = text(f"""
    WITH recent AS (
        SELECT a.group_id, tstzrange(a.started_at, coalesce(a.ended_at, clock_timestamp())) AS busy,
               (a.num_succeeded + a.num_unsuccessful) * e.cost AS cost
        FROM attempts a JOIN slices s ON s.id = a.slice_id,
             LATERAL (SELECT {EXPECTED_COST.replace("s.num_unfinished", "1")} AS cost) e
        WHERE s.model = :model AND a.started_at > now() - interval '1 day'
          AND (a.ended_at IS NOT NULL OR a.num_succeeded + a.num_unsuccessful > 0)
        ORDER BY a.started_at DESC LIMIT :max_attempts
    ), by_group AS (
        SELECT group_id, sum(cost) AS cost, range_agg(busy) AS busy FROM recent GROUP BY group_id
    )
    SELECT sum(cost) AS cost,
           sum((SELECT sum(extract(epoch FROM upper(period) - lower(period))) FROM unnest(busy) period)) AS seconds
    FROM by_group
""")  # noqa: S608 - constants

_WEIGHTS: Final = text("SELECT tenant_id, weight FROM tenant_weights")
_SERVED: Final = text("SELECT service_class, tenant_id, served FROM fair_shares WHERE model = :model")


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits and what is at work for one tenant in one class."""

    service_class: ServiceClass
    tenant_id: str
    pending_cost: Decimal
    num_pending: int
    cost_at_work: Decimal
    num_at_work: int
    counter: Decimal
    weight: Decimal


@dataclass(frozen=True, slots=True)
class Load:
    """The state of one model at one moment by the database's clock."""

    model: str
    now: datetime
    queues: Sequence[Queue]
    num_ready: int
    num_starting: int
    #: Groups that claim nothing: degraded, draining or drained.
    num_away: int
    #: Weighted tokens per second that one group gets done; None where none has done anything within a day.
    group_speed: Decimal | None
    #: Of the tenants that were given one.
    weights: Mapping[str, Decimal] = field(default_factory=dict)
    #: What tenants were served in a class, as far as they were.
    served: Mapping[tuple[ServiceClass, str], Decimal] = field(default_factory=dict)

    @property
    def speed(self) -> Decimal | None:
        """Of all groups that are ready; None where it is not known, or there are none."""
        return self.group_speed * self.num_ready if self.group_speed and self.num_ready else None

    @property
    def cost_at_work(self) -> Decimal:
        return sum((queue.cost_at_work for queue in self.queues), Decimal(0))

    def queue_of(self, tenant_id: str, service_class: ServiceClass) -> Queue:
        """An empty one for a tenant of whom nothing waits: it will come in level with the lowest who waits, unless it
        was served more."""
        for queue in self.queues:
            if (queue.tenant_id, queue.service_class) == (tenant_id, service_class):
                return queue
        waiting = [queue.counter for queue in self.queues if queue.service_class is service_class and queue.num_pending]
        nothing = Decimal(0)
        weight = self.weights.get(tenant_id, Decimal(1))
        counter = max(min(waiting, default=nothing), self.served.get((service_class, tenant_id), nothing))
        return Queue(service_class, tenant_id, nothing, 0, nothing, 0, counter, weight)


def load_of(session: Session | Connection, model: str) -> Load:
    """Reads every pending slice of the model once."""
    params: dict[str, Any] = {"model": model, **weights_of(get_settings())}
    groups = session.execute(_GROUPS, {"model": model}).one()
    speed = session.execute(_SPEED, {**params, "max_attempts": _MAX_ATTEMPTS}).one()
    queues = [
        Queue(
            ServiceClass(row.service_class),
            row.tenant_id,
            row.pending_cost,
            row.num_pending,
            row.cost_at_work,
            row.num_at_work,
            row.counter,
            row.weight,
        )
        for row in session.execute(_QUEUES, params)
    ]
    is_measured = speed.cost is not None and speed.cost > 0 and speed.seconds > 0
    return Load(
        model=model,
        now=groups.now,
        queues=queues,
        num_ready=groups.num_ready,
        num_starting=groups.num_starting,
        num_away=groups.num_away,
        group_speed=speed.cost / speed.seconds if is_measured else None,
        weights={row.tenant_id: row.weight for row in session.execute(_WEIGHTS)},
        served={
            (ServiceClass(row.service_class), row.tenant_id): row.served
            for row in session.execute(_SERVED, {"model": model})
        },
    )

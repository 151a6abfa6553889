"""When work will be done: from what is ahead of it by class and by share, and from how fast groups are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from pipeline.jobs.choosing import CLASS_ORDER
from pipeline.jobs.load import Load, Queue, load_of
from pipeline.settings import Settings, get_settings
from pipeline.tables.batches import ServiceClass

#: Beyond this an estimate says nothing.
_LONGEST: Final = timedelta(days=365)


@dataclass(frozen=True, slots=True)
class Ahead:
    """Weighted tokens that are served before some work of a tenant."""

    at_work: Decimal
    #: Of higher classes.
    by_class: Decimal
    #: Of other tenants of the same class.
    by_share: Decimal
    #: The tenant's own, of the same class.
    own: Decimal
    #: Slices, as far as those of a tenant are as large as its slices are on average.
    num_by_class: int = 0
    num_by_share: int = 0

    @property
    def waiting(self) -> Decimal:
        return self.by_class + self.by_share + self.own

    @property
    def total(self) -> Decimal:
        return self.at_work + self.waiting


def expected_cost(
    *, num_prompt_tokens: int, num_shared_tokens: int = 0, num_answer_tokens: int, settings: Settings | None = None
) -> Decimal:
    """Weighted tokens of work that planning would expect so much of; shared tokens are those of the prompt tokens that
    the prefix cache should have, and answers count at most as long as planning counts them."""
    weights = settings or get_settings()
    return (
        num_prompt_tokens
        - num_shared_tokens * (1 - weights.fair_cached_weight)
        + num_answer_tokens * weights.fair_output_weight
    )


def work_ahead(load: Load, queue: Queue, *, cost: Decimal, own: Decimal) -> Ahead:
    """What is served before `cost` of a tenant's work has been, behind `own` of its work in the same class.

    While a tenant is served that much, each other one is served as much by its weight, and what its counter is behind;
    and never more than it has.
    """
    place = CLASS_ORDER[queue.service_class]
    by_class, by_share = Decimal(0), Decimal(0)
    num_by_class, num_by_share = 0, 0
    for other in load.queues:
        if CLASS_ORDER[other.service_class] < place:
            by_class += other.pending_cost
            num_by_class += other.num_pending
        elif other.service_class is queue.service_class and other.tenant_id != queue.tenant_id and other.num_pending:
            due = (queue.counter - other.counter) + (own + cost) / queue.weight
            share = min(other.pending_cost, max(Decimal(0), due * other.weight))
            by_share += share
            num_by_share += math.ceil(share * other.num_pending / other.pending_cost)
    return Ahead(load.cost_at_work, by_class, by_share, own, num_by_class, num_by_share)


def time_for(load: Load, cost: Decimal) -> datetime | None:
    """When so many weighted tokens will be done; None where no group is ready, or none has been measured."""
    if load.speed is None:
        return None
    seconds = float(cost / load.speed)
    return load.now + timedelta(seconds=seconds) if seconds < _LONGEST.total_seconds() else None


def estimated_finish(
    session: Session | Connection,
    model: str,
    *,
    tenant_id: str,
    service_class: ServiceClass = ServiceClass.STANDARD,
    num_prompt_tokens: int,
    num_shared_tokens: int = 0,
    num_answer_tokens: int,
) -> datetime | None:
    """When a batch that was planned now would end; None where no group is ready, or none has been measured.

    Answers count at most as long as planning counts them, 512 tokens: how fast groups are is measured in the same.
    """
    load = load_of(session, model)
    queue = load.queue_of(tenant_id, service_class)
    cost = expected_cost(
        num_prompt_tokens=num_prompt_tokens, num_shared_tokens=num_shared_tokens, num_answer_tokens=num_answer_tokens
    )
    return time_for(load, work_ahead(load, queue, cost=cost, own=queue.pending_cost).total + cost)

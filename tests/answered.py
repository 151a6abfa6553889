"""Answers of given sizes, recorded as a group records them."""

from __future__ import annotations

from collections.abc import Sequence

from seeds import SeededTenant, seed_batch, sql
from sqlalchemy import Engine

from pipeline.billing.rating import TokenUsage
from pipeline.jobs.claiming import claim_slice, load_requests
from pipeline.jobs.recording import RequestOutcome, record_outcomes
from pipeline.tables import OutcomeKind, ServiceClass


def usage(uncached: int, cached: int = 0, output: int = 0, engine_ms: int = 3) -> TokenUsage:
    return TokenUsage(uncached + cached, cached, output, engine_ms)


def answer_requests(
    database: Engine,
    tenant: SeededTenant,
    usages: Sequence[TokenUsage],
    *,
    model: str = "tiny",
    service_class: ServiceClass = ServiceClass.STANDARD,
    num_at_once: int = 64,
    rate_card_id: int | None = None,
) -> str:
    """A batch whose requests were answered with these usages, so many in one transaction; returns its id."""
    batch_id = seed_batch(database, tenant, [len(usages)], model=model)
    sql(
        database,
        "UPDATE batches SET service_class = :service_class, rate_card_id = :card WHERE id = :id",
        service_class=service_class.value,
        card=rate_card_id,
        id=batch_id,
    )
    sql(database, "UPDATE slices SET service_class = :c WHERE batch_id = :id", c=service_class.value, id=batch_id)
    with database.begin() as conn:
        claimed = claim_slice(conn, model=model, group_id="group-0@test", lease_seconds=60)
        assert claimed is not None
        assert claimed.batch_id == batch_id
        requests = load_requests(conn, claimed)
    outcomes = [
        RequestOutcome(
            request.id,
            request.custom_id,
            claimed,
            OutcomeKind.SUCCEEDED,
            body=f'{{"usage":{{"completion_tokens":{used.num_completion_tokens}}}}}',
            usage=used,
        )
        for request, used in zip(requests, usages, strict=True)
    ]
    for first in range(0, len(outcomes), num_at_once):
        with database.begin() as conn:
            record_outcomes(conn, outcomes[first : first + num_at_once])
    return batch_id

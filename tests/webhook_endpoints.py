"""Webhook endpoints of seeded tenants, batches that end, and what is on its way."""

from __future__ import annotations

from typing import Any

from seeds import SeededTenant, sql
from submitting import Bench

from pipeline.jobs.finalizing import finalize
from pipeline.tables import BatchStatus
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal
from pipeline.webhooks.endpoints import create_endpoint
from pipeline.webhooks.events import EventType, add_event


def listen(tenant: SeededTenant, url: str, *kinds: EventType, project_id: str | None = None) -> str:
    """An endpoint of this tenant; returns its id."""
    caller = Principal(tenant_id=tenant.id, api_key_id=tenant.api_key_id, project_id=project_id)
    with transaction() as session:
        return create_endpoint(session, caller, name="hooks", url=url, event_types=kinds or list(EventType)).id


def end(bench: Bench, num_requests: int = 1) -> str:
    """A batch that completes."""
    batch_id = bench.run(num_requests)
    bench.answer(bench.claim())
    finalize(batch_id, bench.engine)
    return batch_id


def tell(bench: Bench, batch_id: str) -> None:
    """One more event of a batch that has completed."""
    with bench.engine.begin() as conn:
        add_event(conn, batch_id, BatchStatus.COMPLETED)


def deliveries(bench: Bench) -> list[dict[str, Any]]:
    rows = sql(
        bench.engine,
        "SELECT to_jsonb(d) || jsonb_build_object('pause', extract(epoch FROM d.next_attempt_at - clock_timestamp()))"
        " FROM webhook_deliveries d ORDER BY created_at, id",
    )
    return [row[0] for row in rows]


def make_due(bench: Bench) -> None:
    sql(bench.engine, "UPDATE webhook_deliveries SET next_attempt_at = now()")

"""A gateway to fuzz, with what a client may ask it for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from running_gateways import serve
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from submitting import ENDPOINT, Bench, request_lines

from pipeline.billing.forms import FORMS
from pipeline.billing.invoices import create_invoices
from pipeline.billing.reports import Month
from pipeline.jobs.preparing import prepare
from pipeline.jobs.quoting import compute, request_quote
from pipeline.tables import Batch, BatchStatus, File, OnInvalid, ServiceClass, WebhookDelivery
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal, create_key
from pipeline.webhooks.endpoints import create_endpoint
from pipeline.webhooks.events import EventType, add_event

#: Ids that are used again; the last of each kind.
MOST_KNOWN = 50


@dataclass
class Served:
    """A gateway, someone with a key, and what there is to ask for, by the parameter that takes it."""

    address: str
    key: str
    known: dict[str, list[str]] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def learn(self, body: Any) -> None:
        """Remember the id of an object that an answer shows."""
        kinds = {"file": "file_id", "batch": "batch_id", "batch.quote": "quote_id"}
        if isinstance(body, dict) and (name := kinds.get(str(body.get("object")))) and isinstance(body.get("id"), str):
            self.known[name] = [*self.known[name], body["id"]][-MOST_KNOWN:]


@contextmanager
def serve_something(database: Engine, folder: Path) -> Iterator[Served]:
    """With a batch that has ended, one that runs and one that failed."""
    bench = Bench.make(database, folder)
    done = bench.run(3)
    bench.answer(bench.claim())
    runs = bench.run(2)
    failed = bench.submit([*request_lines(1), "{"])
    prepare(failed, database)
    with Session(database) as session:
        rows = [session.get_one(Batch, batch_id) for batch_id in (done, runs, failed)]
        files = [file for row in rows for file in (row.input_file_id, row.output_file_id, row.error_file_id) if file]
    with transaction() as session:
        _, key = create_key(session, bench.tenant.id, "fuzz")
    with transaction() as session:
        quote = request_quote(
            session,
            tenant_id=bench.tenant.id,
            api_key_id=bench.tenant.api_key_id,
            project_id=None,
            input_file=session.get_one(File, rows[0].input_file_id),
            endpoint=ENDPOINT,
            on_invalid=OnInvalid.FAIL,
            service_class=ServiceClass.STANDARD,
        )
    compute(quote.id)
    with transaction() as session:
        now = datetime.now(UTC)
        [invoice] = create_invoices(session, bench.tenant.id, Month.of(now), now)
        caller = Principal(tenant_id=bench.tenant.id, api_key_id=bench.tenant.api_key_id)
        # Private, so that nothing is ever sent.
        endpoint = create_endpoint(session, caller, name="n", url="https://127.0.0.1/", event_types=list(EventType))
        add_event(session, done, BatchStatus.COMPLETED)
        of_endpoint = WebhookDelivery.endpoint_id == endpoint.id
        delivery_id = session.execute(select(WebhookDelivery.id).where(of_endpoint)).scalar_one()
    known = {
        "file_id": files,
        "batch_id": [done, runs, failed],
        "quote_id": [quote.id],
        "invoice_id": [invoice.id],
        "webhook_endpoint_id": [endpoint.id],
        "delivery_id": [delivery_id],
        "form": list(FORMS),
        "model": ["tiny"],
    }
    with serve() as address:
        yield Served(address, key, known)

"""The task of a group. What it returns is what Flower shows."""

from __future__ import annotations

from typing import Any

from pipeline.celery import GENERATE, app
from pipeline.jobs.outbox import TRACE_HEADER
from workers.attempt_trace import Ticket
from workers.bootstep import current_group


@app.task(name=GENERATE, bind=True)  # type: ignore[untyped-decorator]
def generate(self: Any, model: str) -> dict[str, Any]:
    """A ticket: claim one slice of `model`, and stay until it ends."""
    return current_group().run_ticket(Ticket.received(self.request.get(TRACE_HEADER)))

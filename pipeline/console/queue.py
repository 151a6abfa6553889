"""The queue: what waits of each model and class, who is next and why, and what Redis and the outbox hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipeline.console.rendering import render
from pipeline.console.signing_in import SignedIn
from pipeline.jobs.queue_views import TurnReason, view_queues, with_tickets
from pipeline.tables.session import transaction

router = APIRouter()

#: Tenants of a model that are shown, those that are next first.
_MOST_WAITING: Final = 50
_REASONS: Final[Mapping[TurnReason, str]] = {
    TurnReason.ONLY: "nobody else waits",
    TurnReason.CLASS: "it waits in the highest class that there is",
    TurnReason.SHARE: "of those who wait in its class it was served least",
    TurnReason.DEADLINE: "others of its class were served as little, and its deadline is the nearest",
}


@router.get("/queue")
def show_queue(request: Request, viewer: SignedIn) -> Response:
    with transaction() as session:
        view = view_queues(session, None if viewer.is_operator else viewer.principal.tenant_id)
    if viewer.is_operator:
        view = with_tickets(view)
    return render(request, "queue.html", view=view, most_waiting=_MOST_WAITING, reasons=_REASONS)

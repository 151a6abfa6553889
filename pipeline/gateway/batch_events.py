"""`/v1/batches/{batch_id}/events`: how far a batch is, as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from pipeline.gateway.auth import BatchesReader
from pipeline.gateway.errors import ApiError
from pipeline.gateway.progress_feed import LONGEST_STREAM, ProgressFeed
from pipeline.jobs.progress import BatchProgress, read_progress
from pipeline.schemas.progress import ProgressObject
from pipeline.tables import Batch
from pipeline.tables.session import transaction
from pipeline.tenancy.keys import Principal
from pipeline.tenancy.scopes import is_in_project

router = APIRouter(prefix="/v1/batches", tags=["batches"])

_MEDIA_TYPE = "text/event-stream"
#: Of one event; its data is the JSON of a `ProgressObject`.
_EVENT_SCHEMA = {
    "type": "object",
    "required": ["event", "id", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["status", "progress"]},
        "id": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}


async def _place(request: Request, caller: BatchesReader) -> AsyncIterator[None]:
    """Held until the stream has ended."""
    feed: ProgressFeed = request.app.state.progress
    with feed.place(caller):
        yield


@router.get(
    "/{batch_id}/events",
    dependencies=[Depends(_place)],
    response_class=StreamingResponse,
    responses={
        200: {"content": {_MEDIA_TYPE: {"schema": _EVENT_SCHEMA}}},
        204: {"description": "The batch has ended, and `Last-Event-ID` names its last event: open no other stream."},
    },
)
async def stream_batch_events(
    request: Request,
    caller: BatchesReader,
    batch_id: str,
    timeout: Annotated[int, Query(ge=0, le=int(LONGEST_STREAM))] = int(LONGEST_STREAM),
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """An event for each change, with the whole of what is known: first how the batch is, unless `Last-Event-ID` says
    that the client knows; `status` where its status or its pause has changed, else `progress`.

    It ends when the batch has ended, or after `timeout` seconds; 0 sends what is known now.
    """
    feed: ProgressFeed = request.app.state.progress
    first = await run_in_threadpool(_read, caller, batch_id)
    if first.has_ended and last_event_id == ProgressObject.of(first).event_id:
        return Response(status_code=204)
    return StreamingResponse(
        feed.stream(first, caller, last_event_id, timeout),
        media_type=_MEDIA_TYPE,
        headers={"x-accel-buffering": "no"},  # nginx, which would collect events
    )


def _read(caller: Principal, batch_id: str) -> BatchProgress:
    with transaction() as session:
        query = select(Batch.id).where(is_in_project(Batch, caller.tenant_id, caller.project_id), Batch.id == batch_id)
        if session.execute(query).first() is None:
            raise ApiError(404, f"No batch found with id '{batch_id[:128]}'.", param="batch_id", code="batch_not_found")
        return read_progress(session.connection(), [batch_id])[batch_id]

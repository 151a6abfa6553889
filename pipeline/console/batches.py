"""The list of batches."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from sqlalchemy import select

from pipeline.console.batch_rows import FILTERS, list_rows, rows_of
from pipeline.console.rendering import render
from pipeline.console.signing_in import viewer_with
from pipeline.tables import ServedModel
from pipeline.tables.session import transaction
from pipeline.tenancy.console_sessions import Viewer
from pipeline.tenancy.scopes import Scope

router = APIRouter()

#: Batches on a page.
_PAGE = 25
#: Longest text that is looked for.
_MOST_CHARS = 256

Reader = Annotated[Viewer, Depends(viewer_with(Scope.BATCHES_READ))]
Words = Annotated[str, Query(max_length=_MOST_CHARS)]


@router.get("/batches")
def list_batches(
    request: Request,
    viewer: Reader,
    status: Words = "",
    model: Words = "",
    search: Words = "",
    after: Annotated[str | None, Query(max_length=_MOST_CHARS)] = None,
) -> Response:
    """The newest first. A status that is none narrows nothing."""
    chosen = {"status": status if status in FILTERS else "", "model": model.strip(), "search": search.strip()}
    with transaction() as session:
        page = list_rows(
            session,
            viewer.principal,
            only=chosen["status"],
            model=chosen["model"],
            search=chosen["search"],
            after=after,
            limit=_PAGE,
        )
        rows = rows_of(session, page.rows)
        models = session.scalars(select(ServedModel.name).order_by(ServedModel.name)).all()
    given = {name: value for name, value in chosen.items() if value}
    return render(
        request,
        "batches.html",
        rows=rows,
        chosen=chosen,
        is_narrowed=bool(given),
        filters=FILTERS,
        models=models,
        first_url=f"/console/batches?{urlencode(given)}" if after else None,
        next_url=f"/console/batches?{urlencode({**given, 'after': page.last_id})}" if page.has_more else None,
    )

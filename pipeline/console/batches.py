"""The list of batches."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from pipeline.console.rendering import render
from pipeline.console.signing_in import viewer_with
from pipeline.paging import read_page
from pipeline.tables import Batch
from pipeline.tables.session import transaction
from pipeline.tenancy.console_sessions import Viewer
from pipeline.tenancy.scopes import Scope

router = APIRouter()

#: Batches on a page.
_PAGE = 25

Reader = Annotated[Viewer, Depends(viewer_with(Scope.BATCHES_READ))]


@router.get("/batches")
def list_batches(request: Request, viewer: Reader, after: str | None = None) -> Response:
    caller = viewer.principal
    with transaction() as session:
        page = read_page(session, Batch, caller.tenant_id, project_id=caller.project_id, after=after, limit=_PAGE)
    return render(request, "batches.html", batches=page.rows, next_after=page.last_id if page.has_more else None)

"""`/v1/batches/{batch_id}/explain`."""

from __future__ import annotations

from fastapi import APIRouter

from pipeline.gateway.auth import BatchesReader
from pipeline.gateway.errors import ApiError
from pipeline.jobs.cancelling import BatchNotFoundError
from pipeline.jobs.explaining import explain
from pipeline.schemas.explanations import BatchExplanation
from pipeline.tables.session import transaction

router = APIRouter(prefix="/v1/batches", tags=["batches"])


@router.get("/{batch_id}/explain")
def explain_batch(caller: BatchesReader, batch_id: str) -> BatchExplanation:
    """Why a batch waits, with numbers, and when it would be done."""
    try:
        with transaction() as session:
            return BatchExplanation.of(explain(session, batch_id, caller.tenant_id, caller.project_id))
    except BatchNotFoundError:
        raise ApiError(
            404, f"No batch found with id '{batch_id[:128]}'.", param="batch_id", code="batch_not_found"
        ) from None

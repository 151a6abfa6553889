"""Submission: a batch and the message to prepare it, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal

from sqlalchemy import func
from sqlalchemy.orm import Session

from pipeline.celery import CONTROL_QUEUE, PREPARE
from pipeline.ids import new_id
from pipeline.jobs import outbox
from pipeline.schemas.windows import window_seconds
from pipeline.tables import Batch, BatchStatus, File, OnInvalid, Quote, ServiceClass
from pipeline.telemetry import tracing
from pipeline.tenancy.tenants import default_project_id


def submit_batch(
    session: Session,
    *,
    tenant_id: str,
    api_key_id: str,
    project_id: str | None = None,
    service_class: ServiceClass = ServiceClass.STANDARD,
    input_file: File,
    endpoint: str,
    completion_window: str,
    metadata: Mapping[str, str] | None = None,
    on_invalid: OnInvalid = OnInvalid.FAIL,
    output_expires_after_seconds: int | None = None,
    has_receipts: bool = False,
    quote: Quote | None = None,
    max_cost: Decimal | None = None,
    batch_id: str | None = None,
) -> Batch:
    """Write a batch that is `validating`, with this id if one is given, in this project or the default one.

    Call `outbox.publish_soon` after the commit. It has the prices of `quote`, and pauses before it costs `max_cost`.

    The caller has checked the arguments, and that the file is this tenant's. The window is counted by the database's
    clock. Raises ValueError for a window that is none.
    """
    batch = Batch(
        id=batch_id or new_id("batch"),
        tenant_id=tenant_id,
        api_key_id=api_key_id,
        project_id=project_id or default_project_id(tenant_id),
        service_class=service_class,
        input_file_id=input_file.id,
        endpoint=endpoint,
        completion_window=completion_window,
        on_invalid=on_invalid,
        metadata_=None if metadata is None else dict(metadata),
        output_expires_after_seconds=output_expires_after_seconds,
        has_receipts=has_receipts,
        quote_id=quote.id if quote else None,
        rate_card_id=quote.rate_card_id if quote else None,
        max_cost=max_cost,
        status=BatchStatus.VALIDATING,
        trace_context=tracing.current_context(),
        expires_at=func.now() + timedelta(seconds=window_seconds(completion_window)),
    )
    session.add(batch)
    session.flush()
    outbox.add(session, queue=CONTROL_QUEUE, task=PREPARE, args=[batch.id])
    session.refresh(batch)
    return batch

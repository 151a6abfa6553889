"""The input file that a batch or a quote names."""

from __future__ import annotations

from sqlalchemy.orm import Session

from pipeline.files import FileNotFoundForTenantError, find_file
from pipeline.gateway.errors import invalid
from pipeline.schemas.files import BATCH_PURPOSE
from pipeline.tables import File
from pipeline.tenancy.keys import Principal


def batch_input_file(session: Session, caller: Principal, file_id: str) -> File:
    """Locked, so that it is not deleted before what refers to it is there. Raises ApiError (400)."""
    try:
        file = find_file(session, caller.tenant_id, file_id, project_id=caller.project_id, lock=True)
    except FileNotFoundForTenantError:
        raise invalid(
            "input_file_id", f"Invalid 'input_file_id': no such File object: {file_id[:128]}.", "file_not_found"
        ) from None
    if file.purpose != BATCH_PURPOSE:
        raise invalid(
            "input_file_id",
            f"Invalid 'input_file_id': {file_id} was uploaded for '{file.purpose}'; upload it with the purpose "
            f"'{BATCH_PURPOSE}'.",
        )
    return file

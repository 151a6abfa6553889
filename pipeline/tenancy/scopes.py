"""What a key may do, and what it may see."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import ColumnElement, or_

from pipeline.errors import UserError
from pipeline.tables import Batch, File
from pipeline.tenancy.tenants import default_project_id


class Scope(StrEnum):
    """A kind of call. A key without scopes of its own has all of them, those of later versions too."""

    FILES_READ = "files:read"  #: List, look at and download files, outputs too.
    FILES_WRITE = "files:write"  #: Upload and delete files.
    BATCHES_READ = "batches:read"  #: List and look at batches.
    BATCHES_WRITE = "batches:write"  #: Quote, create and cancel batches.
    WEBHOOKS_READ = "webhooks:read"  #: List webhooks and what was sent to them.
    WEBHOOKS_WRITE = "webhooks:write"  #: Make, change, try and delete webhooks, and send events again.
    USAGE_READ = "usage:read"  #: Usage and costs: of the key's project, or of the whole tenant.
    INVOICES_READ = "invoices:read"  #: Invoices, of the whole tenant; a key of a project has no use for it.
    KEYS_READ = "keys:read"  #: List keys, without their secrets: of the key's project, or of the whole tenant.
    KEYS_WRITE = "keys:write"  #: Make, rotate and revoke keys, none of which can do more than it can itself.


def read_scopes(names: Iterable[str]) -> tuple[Scope, ...]:
    """In the order of the class, each once. Raises UserError for a name that is none, or where there is no name."""
    given = {name.strip() for name in names} - {""}
    if unknown := sorted(given - set(Scope)):
        raise UserError(f"{unknown[0]!r} is no scope. Scopes: {', '.join(Scope)}.")
    if not given:
        raise UserError(f"Give at least one scope: {', '.join(Scope)}.")
    return tuple(scope for scope in Scope if scope in given)


def is_in_project(entity: type[Batch] | type[File], tenant_id: str, project_id: str | None) -> ColumnElement[bool]:
    """Rows of one project of the tenant, or, where that is None, of all of them.

    A row without a project is of the default one.
    """
    is_of_tenant = entity.tenant_id == tenant_id
    if project_id is None:
        return is_of_tenant
    is_of_project = entity.project_id == project_id
    if project_id == default_project_id(tenant_id):
        is_of_project = or_(is_of_project, entity.project_id.is_(None))
    return is_of_tenant & is_of_project


def is_within(project_id: str | None, of_row: str | None, tenant_id: str) -> bool:
    """The same of a row that is at hand, whose tenant is the caller's."""
    return project_id is None or project_id == (of_row or default_project_id(tenant_id))

"""Tenants: made once, found by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from pipeline.errors import UserError
from pipeline.ids import new_id
from pipeline.tables import Project, Tenant
from pipeline.tenancy import audit_log

#: Of the tenant that `ryzanstein up` makes.
DEFAULT_TENANT = "default"
#: Of the project that every tenant has.
DEFAULT_PROJECT = "default"


class UnknownTenantError(UserError):
    """There is no tenant of this name."""


def ensure_tenant(session: Session, name: str) -> Tenant:
    """The tenant called `name`, made if it is not there. Safe if two do it at once."""
    if not name.strip() or "\x00" in name:
        raise UserError(f"{name!r} can't be the name of a tenant: give at least one visible character.")
    made = session.execute(
        insert(Tenant)
        .values(id=new_id("tenant"), name=name)
        .on_conflict_do_nothing(index_elements=["name"])
        .returning(Tenant.id)
    ).scalar_one_or_none()
    tenant = session.execute(select(Tenant).where(Tenant.name == name)).scalar_one()
    session.execute(
        insert(Project)
        .values(id=default_project_id(tenant.id), tenant_id=tenant.id, name=DEFAULT_PROJECT)
        .on_conflict_do_nothing()
    )
    if made is not None:
        audit_log.record(session, act="tenant.create", object=made, details={"name": name})
    return tenant


def default_project_id(tenant_id: str) -> str:
    """Derived from the tenant's, so that no look-up is needed to know it."""
    return f"proj_{hashlib.md5(tenant_id.encode(), usedforsecurity=False).hexdigest()}"


def find_tenant(session: Session, name: str) -> Tenant:
    """Raises UnknownTenantError, which lists the tenants that there are."""
    tenant = session.execute(select(Tenant).where(Tenant.name == name)).scalar_one_or_none()
    if tenant is None:
        known = ", ".join(other.name for other in list_tenants(session)) or "none yet"
        raise UnknownTenantError(f"There is no tenant {name!r}. Tenants: {known}.")
    return tenant


def list_tenants(session: Session) -> Sequence[Tenant]:
    """All tenants, by name."""
    return session.execute(select(Tenant).order_by(Tenant.name)).scalars().all()

"""Tenants: made once, found by name."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from pipeline.errors import UserError
from pipeline.ids import new_id
from pipeline.tables import Tenant

#: Of the tenant that `ryzanstein up` makes.
DEFAULT_TENANT = "default"


class UnknownTenantError(UserError):
    """There is no tenant of this name."""


def ensure_tenant(session: Session, name: str) -> Tenant:
    """The tenant called `name`, made if it is not there. Safe if two do it at once."""
    if not name.strip() or "\x00" in name:
        raise UserError(f"{name!r} can't be the name of a tenant: give at least one visible character.")
    session.execute(
        insert(Tenant).values(id=new_id("tenant"), name=name).on_conflict_do_nothing(index_elements=["name"])
    )
    return session.execute(select(Tenant).where(Tenant.name == name)).scalar_one()


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

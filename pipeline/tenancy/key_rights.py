"""What a key may do to keys: never may one bring about more than it may do itself.

A key of a project makes keys of that project alone, one with scopes none with others, one that ends none that lasts
longer, and one with a limit or a budget of its own none at all, since the new key would not have it. Operators' keys
are made on the command line alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from pipeline.errors import UserError
from pipeline.tables import ApiKey, Project
from pipeline.tenancy.keys import (
    InvalidKeyError,
    Principal,
    UnknownKeyError,
    create_key,
    find_key,
    revoke_key,
    rotate_key,
)
from pipeline.tenancy.scopes import Scope, read_scopes


class TooFewRightsError(UserError):
    """The key may not bring about what was asked, since it could not do that itself."""


_OWN: Final = text("""
    SELECT k.expires_at, now() AS now,
           EXISTS (SELECT FROM rate_limits WHERE tenant_id = k.tenant_id AND api_key_id = k.id)
           OR EXISTS (SELECT FROM budgets WHERE api_key_id = k.id) AS is_limited,
           k.revoked_at IS NOT NULL OR coalesce(k.expires_at <= now(), false) AS is_over
    FROM api_keys k WHERE k.id = :id FOR SHARE OF k
""")


def create_key_for(
    session: Session,
    caller: Principal,
    name: str,
    *,
    project_id: str | None,
    scopes: Iterable[str] | None,
    expires_after: timedelta | None,
) -> tuple[ApiKey, str]:
    """A key that can do no more than the caller's: its row, and the key itself.

    Without scopes it has all of them, which only a key that has all itself can give. Raises TooFewRightsError and
    UserError.
    """
    chosen = None if scopes is None else frozenset(read_scopes(scopes))
    _check_rights(caller, project_id, chosen)
    _check_own(session, caller, expires_after)
    if project_id is not None:
        _check_project(session, caller, project_id)
    return create_key(
        session,
        caller.tenant_id,
        name,
        project_id=project_id,
        scopes=chosen,
        expires_after=expires_after,
        actor=caller.api_key_id,
    )


def rotate_key_for(session: Session, caller: Principal, key_id: str, grace: timedelta) -> tuple[ApiKey, str]:
    """A key in place of one that can do no more than the caller's. Raises UnknownKeyError, TooFewRightsError."""
    old = _covered(session, caller, key_id)
    _check_own(session, caller, None if old.expires_at is None else old.expires_at - old.created_at)
    return rotate_key(session, key_id, grace, actor=caller.api_key_id)


def revoke_key_for(session: Session, caller: Principal, key_id: str) -> ApiKey:
    """Revoke a key that can do no more than the caller's. Raises UnknownKeyError, TooFewRightsError."""
    _covered(session, caller, key_id)
    return revoke_key(session, key_id, actor=caller.api_key_id)


def covers(caller: Principal, key: ApiKey) -> bool:
    """Whether a key of the caller's tenant can do no more than the caller's own, but for how long."""
    if key.is_operator and not caller.is_operator:
        return False
    if caller.project_id is not None and key.project_id != caller.project_id:
        return False
    return caller.scopes is None or (key.scopes is not None and caller.scopes >= set(key.scopes))


def _covered(session: Session, caller: Principal, key_id: str) -> ApiKey:
    """The key, locked. What the caller may not see is not there."""
    key = session.get(ApiKey, key_id)
    is_visible = key is not None and key.tenant_id == caller.tenant_id
    if key is None or not is_visible or (caller.project_id is not None and key.project_id != caller.project_id):
        raise UnknownKeyError("There is no such key, or your key may not see it.")
    if not covers(caller, key):
        raise TooFewRightsError(f"The key {key.id} may do more than yours. Use one that may do as much.")
    return find_key(session, key_id)


def _check_rights(caller: Principal, project_id: str | None, scopes: frozenset[Scope] | None) -> None:
    if caller.project_id is not None and project_id != caller.project_id:
        raise TooFewRightsError("Your key is of one project, and can make keys of that project alone.")
    if caller.scopes is None:
        return
    if scopes is None:
        raise TooFewRightsError("Your key has not all scopes, and can't make a key that has. Choose its scopes.")
    if more := sorted(scopes - caller.scopes):
        raise TooFewRightsError(f"Your key lacks the scope '{more[0]}', and can't make a key that has it.")


def _check_own(session: Session, caller: Principal, lifetime: timedelta | None) -> None:
    """What of the caller's key a new one would not inherit. Nobody revokes it until the transaction ends."""
    own = session.execute(_OWN, {"id": caller.api_key_id}).one()
    if own.is_over:  # since it signed in
        raise InvalidKeyError
    if own.is_limited:
        raise TooFewRightsError(
            "Your key has a limit or a budget of its own, which a new key would not have. Use one without."
        )
    ends_at: datetime | None = own.expires_at
    if ends_at is not None and (lifetime is None or own.now + lifetime > ends_at):
        raise TooFewRightsError(
            f"Your key ends at {ends_at:%Y-%m-%d %H:%M} UTC, and the new one would last longer. Give it a shorter life."
        )


def _check_project(session: Session, caller: Principal, project_id: str) -> None:
    found = session.execute(
        select(Project.id).where(
            Project.id == project_id, Project.tenant_id == caller.tenant_id, Project.archived_at.is_(None)
        )
    ).first()
    if found is None:
        raise UserError("There is no such project, or it is archived. Choose another.")

"""API keys: `rz_SHORTID_SECRET`, shown once and kept as a hash."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, func, or_, select, text, update
from sqlalchemy.orm import Session

from pipeline.billing.budgets import inherit_budgets
from pipeline.errors import PipelineError, UserError
from pipeline.ids import new_id
from pipeline.tables import ApiKey, Project
from pipeline.tenancy import audit_log
from pipeline.tenancy.limits import inherit_rate_limits
from pipeline.tenancy.scopes import Scope, read_scopes

_KEY = re.compile(r"rz_([0-9a-f]{12})_[0-9a-f]{48}")
#: Compared with when there is no such key, so that the answer takes as long.
_NO_HASH = bytes(32)

# At every call, so that it is one query, by keys, whatever it brings. `last_used_at` is exact to a minute: writing it
# at every call would make reads into writes.
PRINCIPAL_COLUMNS = """
    k.id, k.tenant_id, k.project_id, k.scopes, k.secret_hash, k.is_operator,
    k.revoked_at IS NOT NULL OR coalesce(k.expires_at <= now(), false) AS is_over,
    coalesce(k.last_used_at < now() - interval '1 minute', true) AS is_stale,
    t.requests_per_minute AS tenant_requests, t.tokens_per_minute AS tenant_tokens,
    o.requests_per_minute AS key_requests, o.tokens_per_minute AS key_tokens
"""
JOIN_LIMITS = """
    LEFT JOIN rate_limits t ON t.tenant_id = k.tenant_id AND t.api_key_id = ''
    LEFT JOIN rate_limits o ON o.tenant_id = k.tenant_id AND o.api_key_id = k.id
"""
_WITH_LIMITS = text(f"SELECT {PRINCIPAL_COLUMNS} FROM api_keys k {JOIN_LIMITS} WHERE k.short_id = :short_id")  # noqa: S608
# Of many calls at once, one writes and none waits.
_USED = text("""
    UPDATE api_keys SET last_used_at = now()
    WHERE id IN (SELECT id FROM api_keys WHERE id = :id FOR NO KEY UPDATE SKIP LOCKED)
""")


class InvalidKeyError(PipelineError):
    """The API key is unknown, was revoked, or has expired."""


class UnknownKeyError(UserError):
    """There is no such key."""


@dataclass(frozen=True)
class CallLimits:
    """Calls, or tokens of submissions, in a minute. None: as the settings say; 0: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who calls."""

    tenant_id: str
    api_key_id: str
    #: None: of the whole tenant.
    project_id: str | None = None
    #: None: all of them.
    scopes: frozenset[str] | None = None
    #: Whether its owner operates this installation; the API asks nobody, the console does.
    is_operator: bool = False
    #: Of all keys of the tenant together, and of this one.
    tenant_limits: CallLimits = field(default_factory=CallLimits)
    key_limits: CallLimits = field(default_factory=CallLimits)

    def may(self, scope: Scope) -> bool:
        return self.scopes is None or scope in self.scopes


def create_key(
    session: Session,
    tenant_id: str,
    name: str,
    *,
    project_id: str | None = None,
    scopes: Iterable[str] | None = None,
    expires_after: timedelta | None = None,
    is_operator: bool = False,
    actor: str | None = None,
) -> tuple[ApiKey, str]:
    """A new key of a tenant or of a project: its row, and the key itself, which can't be had again.

    Without scopes it has all of them; without `expires_after` it holds until it is revoked. `actor` is who makes it,
    for the audit log, as in the other functions here. Raises UserError.
    """
    if "\x00" in name:
        raise UserError("A key's name can't contain NUL characters.")
    chosen = None if scopes is None else [scope.value for scope in read_scopes(scopes)]
    row, key = _make(
        session, tenant_id, name, project_id, chosen, _moment_after(expires_after), is_operator=is_operator
    )
    _record(session, "key.create", row, actor)
    return row, key


def rotate_key(session: Session, reference: str, grace: timedelta, *, actor: str | None = None) -> tuple[ApiKey, str]:
    """A new key in place of an old one, which may do the same and cost as much; the old one holds for `grace` longer.

    An expiry of the old one that comes sooner stays; the new one lasts as long as the old one was meant to. Raises
    UnknownKeyError, and UserError for a key that was revoked, has expired, or was replaced before.
    """
    old = find_key(session, reference)
    is_over = session.execute(select(_is_over()).where(ApiKey.id == old.id)).scalar_one()
    if is_over:
        raise UserError(f"The key {old.id} was revoked or has expired. `ryzanstein keys create` makes another.")
    if session.execute(select(ApiKey.id).where(ApiKey.rotated_from == old.id)).first() is not None:
        raise UserError(f"The key {old.id} has been replaced already. Revoke it, or rotate the key that replaced it.")
    lifetime = None if old.expires_at is None else old.expires_at - old.created_at
    row, key = _make(
        session,
        old.tenant_id,
        old.name,
        old.project_id,
        old.scopes,
        _moment_after(lifetime),
        old.id,
        is_operator=old.is_operator,
    )
    end = func.least(ApiKey.expires_at, _moment_after(grace))
    session.execute(update(ApiKey).where(ApiKey.id == old.id).values(expires_at=end))
    session.refresh(old)
    inherit_budgets(session, old.tenant_id, old_key_id=old.id, new_key_id=row.id)
    inherit_rate_limits(session, old.tenant_id, old_key_id=old.id, new_key_id=row.id)
    _record(session, "key.rotate", row, actor, replaces=old.id, old_expires_at=_text(old.expires_at))
    return row, key


def list_keys(session: Session, tenant_id: str | None = None) -> Sequence[ApiKey]:
    """Keys of one tenant or of all, oldest first, revoked and expired ones included."""
    query = select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)
    if tenant_id is not None:
        query = query.where(ApiKey.tenant_id == tenant_id)
    return session.execute(query).scalars().all()


def find_key(session: Session, reference: str) -> ApiKey:
    """The key with this id, short id, or the key itself; locked.

    Raises UnknownKeyError, which does not repeat the reference: it could be a secret.
    """
    whole = _KEY.fullmatch(reference)
    short_id = whole[1] if whole else reference.removeprefix("rz_")
    row = session.execute(
        select(ApiKey).where((ApiKey.id == reference) | (ApiKey.short_id == short_id)).with_for_update()
    ).scalar_one_or_none()
    if row is None:
        raise UnknownKeyError("There is no such key. `ryzanstein keys list` shows the ids.")
    return row


def revoke_key(session: Session, reference: str, *, actor: str | None = None) -> ApiKey:
    """Revoke a key from the next call on; again is fine. Raises UnknownKeyError."""
    row = find_key(session, reference)
    if row.revoked_at is None:
        session.execute(update(ApiKey).where(ApiKey.id == row.id).values(revoked_at=func.now()))
        session.refresh(row)
        _record(session, "key.revoke", row, actor)
    return row


def authenticate(session: Session, bearer: str) -> Principal:
    """Whose key this is. Raises InvalidKeyError for one that is malformed, unknown, revoked or expired, all alike."""
    matched = _KEY.fullmatch(bearer)
    if matched is None:
        raise InvalidKeyError
    found = session.execute(_WITH_LIMITS, {"short_id": matched[1]}).one_or_none()
    is_right = hmac.compare_digest(_hash(bearer), found.secret_hash if found else _NO_HASH)
    if found is None or not is_right or found.is_over:
        raise InvalidKeyError
    return principal_of(session, found)


def principal_of(session: Session, found: Row[Any]) -> Principal:
    """Whose key the row of PRINCIPAL_COLUMNS is, which has just been used."""
    if found.is_stale:
        session.execute(_USED, {"id": found.id})
    return Principal(
        tenant_id=found.tenant_id,
        api_key_id=found.id,
        project_id=found.project_id,
        scopes=None if found.scopes is None else frozenset(found.scopes),
        is_operator=found.is_operator,
        tenant_limits=CallLimits(found.tenant_requests, found.tenant_tokens),
        key_limits=CallLimits(found.key_requests, found.key_tokens),
    )


def check_still_valid(session: Session, caller: Principal) -> None:
    """For a call that takes long, or leaves something: nothing is left by a key that was revoked meanwhile.

    Call it after what is left was written, in its transaction. Raises InvalidKeyError.
    """
    if session.execute(select(_is_over()).where(ApiKey.id == caller.api_key_id)).scalar_one():
        raise InvalidKeyError


def _is_over() -> ColumnElement[bool]:
    return or_(ApiKey.revoked_at.is_not(None), func.coalesce(ApiKey.expires_at <= func.now(), False))


def _moment_after(time: timedelta | None) -> ColumnElement[datetime] | None:
    """By the database's clock."""
    return None if time is None else func.now() + time


def _make(
    session: Session,
    tenant_id: str,
    name: str,
    project_id: str | None,
    scopes: list[str] | None,
    expires_at: ColumnElement[datetime] | None,
    rotated_from: str | None = None,
    *,
    is_operator: bool,
) -> tuple[ApiKey, str]:
    if project_id is not None:
        _check_is_open(session, project_id)
    short_id = secrets.token_hex(6)
    key = f"rz_{short_id}_{secrets.token_hex(24)}"
    row = ApiKey(
        id=new_id("key"),
        tenant_id=tenant_id,
        project_id=project_id,
        name=name,
        short_id=short_id,
        secret_hash=_hash(key),
        scopes=scopes,
        expires_at=expires_at,
        rotated_from=rotated_from,
        is_operator=is_operator,
    )
    session.add(row)
    session.flush()
    return row, key


def _check_is_open(session: Session, project_id: str) -> None:
    """It stays so until the transaction ends. Raises UserError."""
    archived_at = session.execute(
        select(Project.archived_at).where(Project.id == project_id).with_for_update(read=True)
    ).scalar_one()
    if archived_at is not None:
        raise UserError(f"The project {project_id} is archived: there are no new keys of it.")


def _record(session: Session, act: str, row: ApiKey, actor: str | None, **details: str | None) -> None:
    audit_log.record(
        session,
        act=act,
        actor=actor,
        object=row.id,
        details={
            "tenant": row.tenant_id,
            "project": row.project_id,
            "name": row.name,
            "scopes": row.scopes,
            "is_operator": row.is_operator,
            "expires_at": _text(row.expires_at),
            **details,
        },
    )


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


def _hash(key: str) -> bytes:
    # The secret has 192 random bits: there is nothing to guess that a slow hash would protect.
    return hashlib.sha256(key.encode()).digest()

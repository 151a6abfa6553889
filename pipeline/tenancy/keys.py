"""API keys: `rz_SHORTID_SECRET`, shown once and kept as a hash."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from pipeline.errors import PipelineError, UserError
from pipeline.ids import new_id
from pipeline.tables import ApiKey

_KEY = re.compile(r"rz_([0-9a-f]{12})_[0-9a-f]{48}")
#: Compared with when there is no such key, so that the answer takes as long.
_NO_HASH = bytes(32)
#: `last_used_at` is this exact; writing it at every call would make reads into writes.
_LAST_USED_INTERVAL = text("interval '1 minute'")


class InvalidKeyError(PipelineError):
    """The API key is unknown or has been revoked."""


class UnknownKeyError(UserError):
    """There is no such key."""


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who calls."""

    tenant_id: str
    api_key_id: str
    #: None: of the whole tenant.
    project_id: str | None = None


def create_key(session: Session, tenant_id: str, name: str) -> tuple[ApiKey, str]:
    """A new key of a tenant: its row, and the key itself, which can't be had again."""
    if "\x00" in name:
        raise UserError("A key's name can't contain NUL characters.")
    short_id = secrets.token_hex(6)
    key = f"rz_{short_id}_{secrets.token_hex(24)}"
    row = ApiKey(id=new_id("key"), tenant_id=tenant_id, name=name, short_id=short_id, secret_hash=_hash(key))
    session.add(row)
    session.flush()
    return row, key


def list_keys(session: Session, tenant_id: str | None = None) -> Sequence[ApiKey]:
    """Keys of one tenant or of all, oldest first, revoked ones included."""
    query = select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)
    if tenant_id is not None:
        query = query.where(ApiKey.tenant_id == tenant_id)
    return session.execute(query).scalars().all()


def revoke_key(session: Session, reference: str) -> ApiKey:
    """Revoke the key with this id, short id, or the key itself, from the next call on; again is fine.

    Raises UnknownKeyError, which does not repeat the reference: it could be a secret.
    """
    whole = _KEY.fullmatch(reference)
    short_id = whole[1] if whole else reference.removeprefix("rz_")
    row = session.execute(
        select(ApiKey).where((ApiKey.id == reference) | (ApiKey.short_id == short_id)).with_for_update()
    ).scalar_one_or_none()
    if row is None:
        raise UnknownKeyError("There is no such key. `ryzanstein keys list` shows the ids.")
    if row.revoked_at is None:
        session.execute(update(ApiKey).where(ApiKey.id == row.id).values(revoked_at=func.now()))
        session.refresh(row)
    return row


def authenticate(session: Session, bearer: str) -> Principal:
    """Whose key this is. Raises InvalidKeyError for one that is malformed, unknown or revoked, all alike."""
    matched = _KEY.fullmatch(bearer)
    if matched is None:
        raise InvalidKeyError
    is_stale = (ApiKey.last_used_at.is_(None)) | (ApiKey.last_used_at < func.now() - _LAST_USED_INTERVAL)
    found = session.execute(
        select(ApiKey.id, ApiKey.tenant_id, ApiKey.project_id, ApiKey.secret_hash, ApiKey.revoked_at, is_stale).where(
            ApiKey.short_id == matched[1]
        )
    ).one_or_none()
    is_right = hmac.compare_digest(_hash(bearer), found.secret_hash if found else _NO_HASH)
    if found is None or not is_right or found.revoked_at is not None:
        raise InvalidKeyError
    if found[5]:
        # Of many calls at once, one writes and none waits.
        unlocked = select(ApiKey.id).where(ApiKey.id == found.id).with_for_update(skip_locked=True)
        session.execute(update(ApiKey).where(ApiKey.id.in_(unlocked)).values(last_used_at=func.now()))
    return Principal(tenant_id=found.tenant_id, api_key_id=found.id, project_id=found.project_id)


def _hash(key: str) -> bytes:
    # The secret has 192 random bits: there is nothing to guess that a slow hash would protect.
    return hashlib.sha256(key.encode()).digest()

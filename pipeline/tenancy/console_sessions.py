"""Sessions of the console: a random token in a cookie stands for a key, as long as the key holds.

Only the token's hash is kept, so that who reads the table can't sign in. The key is in neither.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from sqlalchemy import delete, func, text
from sqlalchemy.orm import Session

from pipeline.settings import get_settings
from pipeline.tables import ConsoleSession
from pipeline.tenancy.keys import JOIN_LIMITS, PRINCIPAL_COLUMNS, Principal, principal_of

#: A session that nobody has used for so long is over.
IDLE: Final = timedelta(hours=2)

# One query at every page: the session, its key with limits, and the names that pages show.
_FIND: Final = text(f"""
    SELECT {PRINCIPAL_COLUMNS}, k.name AS key_name, tenants.name AS tenant_name, projects.name AS project_name,
           s.csrf_token, s.last_seen_at < now() - interval '1 minute' AS is_long_unseen
    FROM console_sessions s
    JOIN api_keys k ON k.id = s.api_key_id
    JOIN tenants ON tenants.id = k.tenant_id
    LEFT JOIN projects ON projects.id = k.project_id
    {JOIN_LIMITS}
    WHERE s.token_hash = :token_hash AND s.expires_at > now() AND s.last_seen_at > now() - CAST(:idle AS interval)
""")  # noqa: S608 - constants
# Of many pages at once, one writes and none waits.
_SEEN: Final = text("""
    UPDATE console_sessions SET last_seen_at = now()
    WHERE token_hash IN (
        SELECT token_hash FROM console_sessions WHERE token_hash = :token_hash FOR NO KEY UPDATE SKIP LOCKED
    )
""")


@dataclass(frozen=True, kw_only=True)
class Viewer:
    """Who looks at the console."""

    principal: Principal
    key_name: str
    tenant_name: str
    #: None: a key of the whole tenant.
    project_name: str | None
    csrf_token: str = field(repr=False)

    @property
    def is_operator(self) -> bool:
        return self.principal.is_operator


def begin_session(session: Session, principal: Principal) -> str:
    """The token of a new session for the owner of this key; what has expired of all sessions is removed."""
    session.execute(delete(ConsoleSession).where(ConsoleSession.expires_at <= func.now()))
    token = secrets.token_urlsafe(32)
    session.add(
        ConsoleSession(
            token_hash=_hash(token),
            api_key_id=principal.api_key_id,
            csrf_token=secrets.token_urlsafe(32),
            expires_at=func.now() + timedelta(hours=get_settings().console_session_hours),
        )
    )
    session.flush()
    return token


def find_viewer(session: Session, token: str, *, is_in_use: bool = True) -> Viewer | None:
    """Whose session this is; None for one that is unknown, was ended, or has expired, or whose key has.

    It is noted that somebody uses it, unless nobody does: a page has only looked what is new.
    """
    token_hash = _hash(token)
    found = session.execute(_FIND, {"token_hash": token_hash, "idle": IDLE}).one_or_none()
    if found is None or found.is_over:
        return None
    if is_in_use and found.is_long_unseen:
        session.execute(_SEEN, {"token_hash": token_hash})
    return Viewer(
        principal=principal_of(session, found),
        key_name=found.key_name,
        tenant_name=found.tenant_name,
        project_name=found.project_name,
        csrf_token=found.csrf_token,
    )


def end_session(session: Session, token: str) -> None:
    """Sign out; again is fine."""
    session.execute(delete(ConsoleSession).where(ConsoleSession.token_hash == _hash(token)))


def _hash(token: str) -> bytes:
    # 256 random bits: there is nothing to guess that a slow hash would protect.
    return hashlib.sha256(token.encode()).digest()

"""Sessions of people who have signed in to the console."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.tables.base import Base, Created, Moment


class ConsoleSession(Base):
    """One browser that was given a cookie for a key. The cookie's token and the key itself are nowhere kept."""

    __tablename__ = "console_sessions"
    # What has expired is looked for.
    __table_args__ = (Index("ix_console_sessions_expires_at", "expires_at"),)

    #: SHA-256 of the token in the cookie.
    token_hash: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    #: It ends with its key.
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    #: What every form of the session sends back.
    csrf_token: Mapped[str]
    created_at: Mapped[Created]
    #: However much it is used.
    expires_at: Mapped[Moment]
    #: Exact to a minute, so that reads are not writes.
    last_seen_at: Mapped[Created]

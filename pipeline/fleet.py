"""Groups as a person names them, and what can be asked of them."""

from __future__ import annotations

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from pipeline.errors import UserError
from pipeline.tables import Group, GroupState
from pipeline.tenancy import audit_log


class UnknownGroupError(UserError):
    """No group, or more than one, has that name."""


def want_drain(session: Session, name: str, *, is_wanted: bool, actor: str | None = None) -> str:
    """Ask a group to take nothing and hold nothing, or to go on; it heeds that with its next heartbeat.

    `name` is an id, or what stands before its host if that is one group alone. `actor` is who asks, for the audit
    log. Returns the id. Raises UnknownGroupError.
    """
    query = select(Group.id).where(or_(Group.id == name, Group.id.startswith(f"{name}@", autoescape=True)))
    ids = list(session.scalars(query.where(Group.state != GroupState.STOPPED).order_by(Group.id)))
    if not ids:
        running = session.scalars(select(Group.id).where(Group.state != GroupState.STOPPED).order_by(Group.id)).all()
        raise UnknownGroupError(f"No group {name!r} runs; there are: {', '.join(running) or 'none'}.")
    if len(ids) > 1:
        raise UnknownGroupError(f"{name!r} is more than one group; name one of {', '.join(ids)}.")
    session.execute(update(Group).where(Group.id == ids[0]).values(is_drain_wanted=is_wanted))
    audit_log.record(session, act="group.drain" if is_wanted else "group.resume", object=ids[0], actor=actor)
    return ids[0]


def state_of(session: Session, group_id: str) -> GroupState:
    return session.execute(select(Group.state).where(Group.id == group_id)).scalar_one()

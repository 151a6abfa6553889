"""A group's row in SQL: what it serves, how it is, and when it was last heard of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, func
from sqlalchemy.dialects.postgresql import insert

from pipeline.tables.fleet import Group, GroupState, ServedModel


@dataclass(frozen=True, kw_only=True)
class GroupIdentity:
    """Who a group is and what it serves."""

    #: `NAME@HOST`, the Celery node name.
    id: str
    model: str
    #: Folder of the model, as control sees it too.
    model_path: str
    #: Longest prompt + max_tokens.
    context_length: int
    pid: int
    #: Engine kind, tensor parallelism, device, dtype.
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GroupCondition:
    """How a group is."""

    state: GroupState
    reason: str | None = None
    rank_pids: Sequence[int] = ()
    info: Mapping[str, Any] = field(default_factory=dict)


_STARTING: Final = GroupCondition(state=GroupState.STARTING)


def register(conn: Connection, identity: GroupIdentity) -> bool:
    """Serve the model, and take the row over from a group of that name that was before. Returns what `report` does."""
    model = insert(ServedModel).values(
        name=identity.model, path=identity.model_path, context_length=identity.context_length
    )
    conn.execute(
        model.on_conflict_do_update(
            index_elements=["name"],
            set_={"path": model.excluded.path, "context_length": model.excluded.context_length},
        )
    )
    return report(conn, identity, _STARTING, is_start=True)


def report(conn: Connection, identity: GroupIdentity, condition: GroupCondition, *, is_start: bool = False) -> bool:
    """Say how the group is. The row is made where it is missing. Returns whether the group is wanted to be drained."""
    values: dict[str, Any] = {
        "model": identity.model,
        "state": condition.state,
        "reason": condition.reason,
        "pid": identity.pid,
        "rank_pids": list(condition.rank_pids),
        "info": {**identity.info, **condition.info},
        "heartbeat_at": func.clock_timestamp(),
    }
    if is_start:
        values["started_at"] = func.clock_timestamp()
    row = insert(Group).values(id=identity.id, **values).on_conflict_do_update(index_elements=["id"], set_=values)
    return bool(conn.scalar(row.returning(Group.is_drain_wanted)))

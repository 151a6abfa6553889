"""What the groups of a stack say about themselves in SQL."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from pipeline.tables import Group, GroupState
from pipeline.tables.session import make_engine


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """A group that this machine runs."""

    pid: int
    state: GroupState
    reason: str | None
    #: Rank 0 first.
    rank_pids: list[int]
    #: How often its engine was replaced.
    num_restarts: int


class Fleet:
    """Asks the database; a database that does not answer knows of no group."""

    def __init__(self, database_url: str) -> None:
        self._engine = make_engine(database_url, pool_size=1)

    def groups(self) -> dict[int, GroupReport]:
        """Every group by its pid."""
        query = select(Group.pid, Group.state, Group.reason, Group.rank_pids, Group.info)
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(query).all()
        except SQLAlchemyError:
            return {}
        return {
            row.pid: GroupReport(
                pid=row.pid,
                state=row.state,
                reason=row.reason,
                rank_pids=list(row.rank_pids),
                num_restarts=int(row.info.get("restarts", 0)),
            )
            for row in rows
        }

    def state_of(self, pid: int) -> GroupState | None:
        """The state of the group that runs as this process; None if it has not said anything yet."""
        group = self.groups().get(pid)
        return None if group is None else group.state

    def close(self) -> None:
        self._engine.dispose()

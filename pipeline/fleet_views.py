"""Groups as a person looks at them: what they are, what they hold, how fast they are, and whether their ranks live."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from pipeline.processes import resident_bytes
from pipeline.settings import get_settings
from pipeline.tables import GroupState

#: How far back the speed of a group is looked at, in seconds.
SPEED_SECONDS: Final = 600
#: Groups that ended longer ago than this, in seconds, are history.
_FORGET_SECONDS: Final = 86_400

# The speed is of the time in which a group had a slice: an idle one is not a slow one.
_GROUPS: Final = text("""
    WITH recent AS (
        SELECT a.group_id, a.num_tokens, a.num_wasted_tokens,
               tstzrange(a.started_at, coalesce(a.ended_at, clock_timestamp())) AS busy
        FROM attempts a WHERE a.started_at > now() - make_interval(secs => :speed_seconds)
    ), speeds AS (
        SELECT group_id, sum(num_tokens) AS num_tokens, sum(num_wasted_tokens) AS num_wasted_tokens,
               (SELECT sum(extract(epoch FROM upper(p) - lower(p))) FROM unnest(range_agg(busy)) p) AS busy_seconds
        FROM recent GROUP BY group_id
    ), held AS (
        SELECT group_id, count(*) AS num_slices, sum(num_unfinished) AS num_requests
        FROM slices WHERE status = 'claimed' GROUP BY group_id
    )
    SELECT g.id, g.model, g.state, g.reason, g.pid, g.rank_pids, g.info, g.is_drain_wanted, g.started_at,
           g.heartbeat_at, extract(epoch FROM clock_timestamp() - g.heartbeat_at)::float8 AS silent_seconds,
           coalesce(h.num_slices, 0) AS num_slices, coalesce(h.num_requests, 0)::bigint AS num_requests,
           coalesce(s.num_tokens, 0)::bigint AS num_tokens,
           coalesce(s.num_wasted_tokens, 0)::bigint AS num_wasted_tokens,
           coalesce(s.busy_seconds, 0)::float8 AS busy_seconds
    FROM groups g LEFT JOIN speeds s ON s.group_id = g.id LEFT JOIN held h ON h.group_id = g.id
    WHERE g.state <> 'stopped' OR g.heartbeat_at > now() - make_interval(secs => :forget_seconds)
    ORDER BY g.model, g.id
""")


@dataclass(frozen=True, slots=True)
class RankView:
    """One shard process."""

    rank: int
    pid: int
    #: None where that can't be seen from here: the group runs on another machine.
    is_alive: bool | None
    #: Main memory that it has, in bytes; None where that can't be seen, or it is dead.
    num_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """A group at one moment by the database's clock."""

    id: str
    model: str
    state: GroupState
    #: Why it is in its state, where that is not as it should be.
    reason: str | None
    pid: int
    #: Main memory of the parent process, in bytes; None where that can't be seen from here, or it is gone.
    parent_bytes: int | None
    ranks: Sequence[RankView]
    #: As the group reports it: engine kind, tensor parallelism, device, dtype, KV tokens, what runs, restarts.
    info: Mapping[str, Any]
    #: A person wants it to hold nothing.
    is_drain_wanted: bool
    started_at: datetime
    heartbeat_at: datetime
    silent_seconds: float
    #: Slices that it holds a lease on, one attempt each, and their requests without an outcome.
    num_slices: int
    num_requests: int
    #: Recorded by attempts of the last `SPEED_SECONDS`, and thrown away by them.
    num_tokens: int
    num_wasted_tokens: int
    #: Seconds of these in which it had a slice.
    busy_seconds: float

    @property
    def name(self) -> str:
        return self.id.partition("@")[0]

    @property
    def host(self) -> str:
        return self.id.partition("@")[2]

    @property
    def is_lost(self) -> bool:
        """Whether it has been silent for so long that its leases have run out."""
        return self.state is not GroupState.STOPPED and self.silent_seconds > get_settings().lease_seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Of the time in which it had work; None where it had none of late."""
        return self.num_tokens / self.busy_seconds if self.busy_seconds >= 1 and self.num_tokens else None

    @property
    def kv_use(self) -> float | None:
        """Part of its KV cache that is in use; None before its engine has said how large that is."""
        num_tokens = self.number("kv_tokens")
        return self.number("kv_tokens_used") / num_tokens if num_tokens else None

    @property
    def rank_bytes(self) -> int | None:
        """Main memory of its ranks together; None where none can be seen."""
        seen = [rank.num_bytes for rank in self.ranks if rank.num_bytes is not None]
        return sum(seen) if seen else None

    def number(self, name: str) -> int:
        """A count of `info`; 0 where the group has not said it."""
        value = self.info.get(name)
        return value if isinstance(value, int) else 0


def view_groups(session: Session) -> list[GroupView]:
    """All groups by model and id, but for those that have been stopped for a day."""
    rows = session.execute(_GROUPS, {"speed_seconds": SPEED_SECONDS, "forget_seconds": _FORGET_SECONDS})
    here = socket.gethostname()
    return [_view(dict(row._mapping), here) for row in rows]


def _view(row: dict[str, Any], here: str) -> GroupView:
    state = GroupState(row.pop("state"))
    is_here = row["id"].partition("@")[2] == here and state is not GroupState.STOPPED
    ranks = _ranks(row.pop("rank_pids"), is_here)
    parent_bytes = resident_bytes(row["pid"]) if is_here else None
    return GroupView(**row, state=state, parent_bytes=parent_bytes, ranks=ranks)


def _ranks(pids: Sequence[int], is_here: bool) -> list[RankView]:
    return [_look_at(rank, pid) if is_here else RankView(rank, pid, None, None) for rank, pid in enumerate(pids)]


def _look_at(rank: int, pid: int) -> RankView:
    num_bytes = resident_bytes(pid)
    return RankView(rank, pid, num_bytes is not None, num_bytes)

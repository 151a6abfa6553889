"""What `ryzanstein top` shows: three tables that fit the terminal, or one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from sqlalchemy import text
from sqlalchemy.orm import Session

from pipeline.cli.rendering import duration
from pipeline.fleet_views import GroupView, view_groups
from pipeline.jobs.queue_views import QueueView, view_queues
from pipeline.tables import GroupState, ServiceClass

# What attempts that began long ago have computed lately can't be told apart: those of the last ten minutes, then, over
# the time since they began.
_TENANTS: Final = text("""
    SELECT t.name, s.tenant_id,
           coalesce(sum(a.num_tokens), 0)::bigint AS num_tokens,
           extract(epoch FROM clock_timestamp() - min(a.started_at))::float8 AS seconds
    FROM attempts a JOIN slices s ON s.id = a.slice_id JOIN tenants t ON t.id = s.tenant_id
    WHERE a.started_at > now() - interval '10 minutes' GROUP BY t.name, s.tenant_id
""")

_STYLES: Final[Mapping[GroupState, str]] = {
    GroupState.READY: "green",
    GroupState.STARTING: "yellow",
    GroupState.RESTARTING: "yellow",
    GroupState.DRAINING: "yellow",
    GroupState.DRAINED: "yellow",
    GroupState.DEGRADED: "red",
    GroupState.STOPPED: "dim",
}
#: Narrowest terminal that is shown the columns of this rank.
_WIDTHS: Final = {0: 0, 1: 70, 2: 100}


@dataclass(frozen=True)
class TenantRow:
    """A tenant that waits, is worked for, or was of late."""

    tenant: str
    num_pending: int
    num_at_work: int
    waiting_since: datetime | None
    tokens_per_second: float


@dataclass(frozen=True)
class Snapshot:
    groups: Sequence[GroupView]
    queues: QueueView
    tenants: Sequence[TenantRow]


def take_snapshot(session: Session) -> Snapshot:
    """Without what Redis holds: see `with_tickets`."""
    queues = view_queues(session)
    return Snapshot(view_groups(session), queues, _tenants(session, queues))


def _tenants(session: Session, queues: QueueView) -> list[TenantRow]:
    """Those with the most at work first."""
    speeds = {row.tenant_id: (row.name, row.num_tokens / max(row.seconds, 1.0)) for row in session.execute(_TENANTS)}
    found: dict[str, TenantRow] = {
        tenant_id: TenantRow(name, 0, 0, None, speed) for tenant_id, (name, speed) in speeds.items()
    }
    for model in queues.models:
        for one in model.waiting:
            before = found.get(one.queue.tenant_id) or TenantRow(one.tenant, 0, 0, None, 0.0)
            moments = [moment for moment in (before.waiting_since, one.since) if moment is not None]
            found[one.queue.tenant_id] = TenantRow(
                one.tenant,
                before.num_pending + one.queue.num_pending,
                before.num_at_work + one.queue.num_at_work,
                min(moments, default=None),
                before.tokens_per_second,
            )
    shown = [row for row in found.values() if row.num_pending or row.num_at_work or row.tokens_per_second]
    return sorted(shown, key=lambda row: (-row.num_at_work, -row.num_pending, row.tenant))


def screen(snapshot: Snapshot, width: int) -> RenderableType:
    """Of so many columns; the narrower, the less of each row."""
    return Lines(
        _summary(snapshot),
        Text(),
        _table(width, _GROUP_COLUMNS, [_group_row(group) for group in snapshot.groups], "No group has registered."),
        Text(),
        _table(width, _QUEUE_COLUMNS, _queue_rows(snapshot.queues), "No model is served."),
        Text(),
        _table(width, _TENANT_COLUMNS, _tenant_rows(snapshot), "No tenant waits or is worked for."),
    )


def _summary(snapshot: Snapshot) -> Text:
    queues = snapshot.queues
    num_ready = sum(group.state is GroupState.READY and not group.is_lost for group in snapshot.groups)
    speed = sum(group.tokens_per_second or 0.0 for group in snapshot.groups)
    line = Text(
        f"{queues.now:%H:%M:%S}  groups {num_ready}/{len(snapshot.groups)} ready, {speed:,.0f} tokens/s   "
        f"batches {queues.num_in_progress} in progress, {queues.num_preparing} validating, {queues.num_paused} paused"
    )
    if not queues.is_redis_reachable:
        line.append("   Redis is away", style="red")
    if queues.outbox_seconds > 5:
        line.append(f"   outbox {queues.num_outbox_messages}, {queues.outbox_seconds:.0f} s old", style="red")
    return line


#: Header, rank (see `_WIDTHS`); `#` marks a column of numbers.
_GROUP_COLUMNS: Final = (
    *(("group", 0), ("state", 0), ("model", 1), ("#slices", 1), ("#requests", 0), ("#tokens/s", 0)),
    *(("#KV", 1), ("#ranks", 2), ("#memory", 2), ("#restarts", 2), ("#silent", 2), ("why", 2)),
)
_QUEUE_COLUMNS: Final = (
    *(("queue", 0), ("class", 1), ("#pending", 0), ("#at work", 0), ("#tenants", 1), ("#tickets", 2)),
    *(("#waits", 0), ("next", 1), ("because", 2)),
)
_TENANT_COLUMNS: Final = (("tenant", 0), ("#pending", 0), ("#at work", 0), ("#waits", 1), ("#tokens/s", 0))


def _group_row(group: GroupView) -> list[Text]:
    state = "lost" if group.is_lost else group.state.value
    style = "red" if group.is_lost else _STYLES[group.state]
    speed, use, memory = group.tokens_per_second, group.kv_use, group.rank_bytes
    num_alive = sum(rank.is_alive is not False for rank in group.ranks)
    return [
        Text(group.name),
        Text(state, style=style),
        Text(group.model),
        Text(str(group.num_slices)),
        Text(str(group.num_requests)),
        Text("" if speed is None else f"{speed:,.0f}"),
        Text("" if use is None else f"{use:.0%}"),
        Text(f"{num_alive}/{len(group.ranks)}", style="" if num_alive == len(group.ranks) else "red"),
        Text("" if memory is None else f"{memory / 1024**3:.1f}G"),
        Text(str(group.number("restarts"))),
        Text(f"{group.silent_seconds:.0f}s"),
        Text(group.reason or ""),
    ]


def _queue_rows(queues: QueueView) -> list[list[Text]]:
    rows = []
    for model in queues.models:
        found = {one.queue.service_class for one in model.waiting}
        classes: list[ServiceClass | None] = [kind for kind in ServiceClass if kind in found]
        classes = classes or [None]
        for number, kind in enumerate(classes):
            ones = [one for one in model.waiting if one.queue.service_class is kind]
            since = min((one.since for one in ones if one.since is not None), default=None)
            turn = model.turn if model.turn and model.turn.waiting.queue.service_class is kind else None
            cells = [
                model.model if number == 0 else "",
                kind.value if kind else "",
                str(sum(one.queue.num_pending for one in ones)),
                str(sum(one.queue.num_at_work for one in ones)),
                str(sum(one.queue.num_pending > 0 for one in ones)),
                ("?" if model.num_tickets is None else str(model.num_tickets)) if number == 0 else "",
                _since(since, queues.now),
                turn.waiting.tenant if turn else "",
                turn.reason.value if turn else "",
            ]
            rows.append([Text(cell) for cell in cells])
    return rows


def _tenant_rows(snapshot: Snapshot) -> list[list[Text]]:
    rows = []
    for row in snapshot.tenants:
        cells = [row.tenant, str(row.num_pending), str(row.num_at_work)]
        cells += [_since(row.waiting_since, snapshot.queues.now), f"{row.tokens_per_second:,.0f}"]
        rows.append([Text(cell) for cell in cells])
    return rows


def _table(
    width: int, columns: Sequence[tuple[str, int]], rows: Sequence[Sequence[Text]], otherwise: str
) -> RenderableType:
    if not rows:
        return Text(otherwise, style="dim")
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=False)
    shown = [number for number, (_, rank) in enumerate(columns) if width >= _WIDTHS[rank]]
    for number in shown:
        header = columns[number][0]
        table.add_column(
            header.removeprefix("#"),
            justify="right" if header.startswith("#") else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=4,
        )
    for row in rows:
        table.add_row(*(row[number] for number in shown))
    return table


def _since(moment: datetime | None, now: datetime) -> str:
    return "" if moment is None else duration((now - moment).total_seconds())


def record_of(snapshot: Snapshot) -> dict[str, Any]:
    """The same for programs; moments in ISO 8601."""
    queues = snapshot.queues
    return {
        "now": queues.now.isoformat(),
        "groups": [
            {
                "id": group.id,
                "model": group.model,
                "state": "lost" if group.is_lost else group.state.value,
                "reason": group.reason,
                "slices": group.num_slices,
                "requests": group.num_requests,
                "tokens_per_second": group.tokens_per_second,
                "kv_use": group.kv_use,
                "ranks": [{"rank": rank.rank, "pid": rank.pid, "alive": rank.is_alive} for rank in group.ranks],
                "silent_seconds": round(group.silent_seconds, 3),
            }
            for group in snapshot.groups
        ],
        "queues": [
            {
                "model": model.model,
                "pending_slices": model.num_pending,
                "tickets": model.num_tickets,
                "next_tenant": model.turn.waiting.tenant if model.turn else None,
                "next_because": model.turn.reason.value if model.turn else None,
            }
            for model in queues.models
        ],
        "tenants": [
            {
                "tenant": row.tenant,
                "pending_slices": row.num_pending,
                "slices_at_work": row.num_at_work,
                "waiting_since": row.waiting_since and row.waiting_since.isoformat(),
                "tokens_per_second": round(row.tokens_per_second, 3),
            }
            for row in snapshot.tenants
        ],
        "batches": {
            "validating": queues.num_preparing,
            "in_progress": queues.num_in_progress,
            "paused": queues.num_paused,
        },
        "outbox": {"messages": queues.num_outbox_messages, "seconds": round(queues.outbox_seconds, 3)},
        "redis": queues.is_redis_reachable,
    }

"""The board of what everything rests on: queues, control, PostgreSQL, Redis, gateways."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.panels import Board, Kind, Panel, Query, Row, Unit


def _max(metric: str) -> str:
    """Of the service, whichever control worker says it."""
    return f"max without (instance) ({metric})"


_REACHABLE: Final = Row(
    "Reachable",
    (
        Panel(
            title="PostgreSQL",
            description="1 if it answers control in time.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query("min(ryzanstein_database_up)"),),
            bad=1,
            is_low_bad=True,
        ),
        Panel(
            title="Redis",
            description="1 if it answers control in time. Work goes on without it, a few seconds later.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query("min(ryzanstein_redis_up)"),),
            bad=1,
            is_low_bad=True,
        ),
        Panel(
            title="Processes that do not answer",
            description="Of those that Prometheus asks.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query('count(up{process!=""} == 0) or vector(0)'),),
            bad=1,
        ),
        Panel(
            title="Last sweep",
            description="How long ago. The sweeper takes lost slices back and refills queues.",
            unit=Unit.SECONDS,
            kind=Kind.STAT,
            queries=(Query("time() - max(ryzanstein_sweeper_last_run_timestamp_seconds)"),),
            bad=30,
        ),
        Panel(
            title="Oldest unpublished message",
            description="In the outbox. The relay empties it every second.",
            unit=Unit.SECONDS,
            kind=Kind.STAT,
            queries=(Query("max(ryzanstein_outbox_oldest_seconds)"),),
            bad=15,
        ),
        Panel(
            title="Versions that run",
            description="More than one: an upgrade is under way.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query("count(count by (version) (ryzanstein_build_info))"),),
        ),
    ),
)

_QUEUES: Final = Row(
    "Queues and control",
    (
        Panel(
            title="Messages in Redis",
            description="By queue. Tickets wait while engines are full; those of control are to be few.",
            unit=Unit.COUNT,
            queries=(Query(_max("ryzanstein_queue_messages"), "{{queue}}"),),
        ),
        Panel(
            title="Messages in the outbox",
            description="Committed, and not yet published.",
            unit=Unit.COUNT,
            queries=(Query(_max("ryzanstein_outbox_messages"), "{{queue}}"),),
        ),
        Panel(
            title="Control tasks",
            description="Per second, by task and result.",
            unit=Unit.PER_SECOND,
            queries=(
                Query(
                    "sum by (task, result) (rate(ryzanstein_task_runs_total[$__rate_interval]))",
                    "{{task}} {{result}}",
                ),
            ),
        ),
        Panel(
            title="Time of control tasks",
            description="What one of twenty takes longer than. Long `control.prepare` ones are large uploads.",
            unit=Unit.SECONDS,
            queries=(
                Query(
                    "histogram_quantile(0.95, sum by (le, task) "
                    "(rate(ryzanstein_task_seconds_bucket[$__rate_interval])))",
                    "{{task}}",
                ),
            ),
        ),
        Panel(
            title="What sweeps set right",
            description="`lost_slices` are leases that ran out; much of the rest is messages that Redis lost.",
            unit=Unit.PER_SECOND,
            queries=(Query("sum by (part) (rate(ryzanstein_swept_total[$__rate_interval]))", "{{part}}"),),
        ),
        Panel(
            title="Leases that ran out",
            description="Their slices were taken back, and run elsewhere.",
            unit=Unit.PER_SECOND,
            queries=(Query("sum(rate(ryzanstein_leases_lost_total[$__rate_interval]))", "leases"),),
        ),
    ),
)

_POSTGRES: Final = Row(
    "PostgreSQL",
    (
        Panel(
            title="Transactions",
            description="Committed, and rolled back.",
            unit=Unit.PER_SECOND,
            queries=(
                Query("max(rate(ryzanstein_database_commits_total[$__rate_interval]))", "committed"),
                Query("max(rate(ryzanstein_database_rollbacks_total[$__rate_interval]))", "rolled back"),
            ),
        ),
        Panel(
            title="Connections",
            description="By state, and how many there may be.",
            unit=Unit.COUNT,
            queries=(
                Query(_max("ryzanstein_database_connections"), "{{state}}"),
                Query("max(ryzanstein_database_max_connections)", "limit"),
            ),
        ),
        Panel(
            title="Pools",
            description="Connections of each process that are in use, over what it may have.",
            unit=Unit.SHARE,
            queries=(
                Query(
                    'ryzanstein_sql_connections{state="in_use"}'
                    ' / ignoring (state) ryzanstein_sql_connections{state="limit"}',
                    "{{process}} {{instance}}",
                ),
            ),
        ),
        Panel(
            title="Oldest open transaction",
            description="One that stays open keeps vacuum from its work: look for `idle in transaction`.",
            unit=Unit.SECONDS,
            queries=(Query("max(ryzanstein_database_oldest_transaction_seconds)", "oldest"),),
        ),
        Panel(
            title="Deadlocks",
            description="That PostgreSQL broke; whoever lost one tries again by itself.",
            unit=Unit.COUNT,
            queries=(Query("max(increase(ryzanstein_database_deadlocks_total[$__rate_interval]))", "deadlocks"),),
        ),
        Panel(
            title="Size",
            description="Of the database, and of its largest tables with their indexes.",
            unit=Unit.BYTES,
            queries=(
                Query("max(ryzanstein_database_size_bytes)", "database"),
                Query(_max("ryzanstein_table_size_bytes"), "{{table}}"),
            ),
        ),
        Panel(
            title="Dead rows",
            description="That vacuum has yet to remove.",
            unit=Unit.COUNT,
            queries=(Query(_max("ryzanstein_table_dead_rows"), "{{table}}"),),
        ),
    ),
)

_EDGE: Final = Row(
    "Redis and gateways",
    (
        Panel(
            title="Memory of Redis",
            description="It holds messages alone, and is to stay small.",
            unit=Unit.BYTES,
            queries=(Query("max(ryzanstein_redis_memory_bytes)", "memory"),),
        ),
        Panel(
            title="Connections to Redis",
            description="Of all processes.",
            unit=Unit.COUNT,
            queries=(Query("max(ryzanstein_redis_clients)", "connections"),),
        ),
        Panel(
            title="Calls per second",
            description="By route.",
            unit=Unit.PER_SECOND,
            queries=(
                Query(
                    "sum by (method, route) (rate(ryzanstein_http_requests_total[$__rate_interval]))",
                    "{{method}} {{route}}",
                ),
            ),
            is_stacked=True,
        ),
        Panel(
            title="Time of calls",
            description="What one of twenty takes longer than; uploads and downloads take what their size takes.",
            unit=Unit.SECONDS,
            queries=(
                Query(
                    "histogram_quantile(0.95, sum by (le, route) "
                    "(rate(ryzanstein_http_request_duration_seconds_bucket[$__rate_interval])))",
                    "{{route}}",
                ),
            ),
        ),
        Panel(
            title="Calls that failed here",
            description="Part of the calls that were answered by 5xx.",
            unit=Unit.SHARE,
            queries=(
                Query(
                    '(sum(rate(ryzanstein_http_requests_total{status=~"5.."}[$__rate_interval])) or vector(0))'
                    " / sum(rate(ryzanstein_http_requests_total[$__rate_interval]))",
                    "failed",
                ),
            ),
        ),
        Panel(
            title="Calls under way",
            description="Calls whose answer has not ended; long uploads and downloads are among them.",
            unit=Unit.COUNT,
            queries=(Query("sum(ryzanstein_http_requests_in_progress)", "calls"),),
        ),
        Panel(
            title="Bytes under way",
            description="Of these calls so far: `in` of bodies, `out` of answers.",
            unit=Unit.BYTES,
            queries=(Query("sum by (direction) (ryzanstein_http_bytes_in_flight)", "{{direction}}"),),
        ),
    ),
)

_OUTSIDE: Final = Row(
    "Disks and webhooks",
    (
        Panel(
            title="Room on disks",
            description="Of local blobs, and of a stack's data folder. Below 5 GiB make room.",
            unit=Unit.BYTES,
            queries=(Query("ryzanstein_disk_free_bytes", "{{folder}}"),),
        ),
        Panel(
            title="Receivers of webhooks",
            description="To failing ones nothing was delivered since their last success; all is tried for 72 hours.",
            unit=Unit.COUNT,
            queries=(Query(_max("ryzanstein_webhook_endpoints"), "{{state}}"),),
            is_stacked=True,
        ),
        Panel(
            title="Webhooks to be sent",
            description="Events on their way to a receiver, those that wait for another attempt included.",
            unit=Unit.COUNT,
            queries=(Query("max(ryzanstein_webhook_deliveries_pending)", "waiting"),),
        ),
        Panel(
            title="Webhooks overdue",
            description="For how long an attempt has been due that was not made.",
            unit=Unit.SECONDS,
            queries=(Query("max(ryzanstein_webhook_overdue_seconds)", "overdue"),),
        ),
    ),
)

QUEUE_AND_SQL: Final = Board(
    uid="ryzanstein-queue-and-sql",
    title="Ryzanstein: queue and SQL",
    description="Queues, control, PostgreSQL, Redis, gateways, disks and webhooks.",
    variables=(),
    rows=(_REACHABLE, _QUEUES, _POSTGRES, _EDGE, _OUTSIDE),
)

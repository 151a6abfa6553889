"""The board of what everything rests on: queues, control, PostgreSQL, Redis."""

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

_CELERY: Final = Row(
    "Celery, as Flower sees it",
    (
        Panel(
            title="Workers online",
            description="1 of each control worker and each group that Flower hears of.",
            unit=Unit.COUNT,
            queries=(Query("max by (worker) (flower_worker_online)", "{{worker}}"),),
        ),
        Panel(
            title="Events of tasks",
            description="Sent, received, started, succeeded, failed. A ticket is a task, too.",
            unit=Unit.PER_SECOND,
            queries=(Query("sum by (task, type) (rate(flower_events_total[$__rate_interval]))", "{{task}} {{type}}"),),
        ),
        Panel(
            title="Tasks that are executed",
            description="By worker; a group executes a ticket for as long as it works on its slice.",
            unit=Unit.COUNT,
            queries=(Query("max by (worker) (flower_worker_number_of_currently_executing_tasks)", "{{worker}}"),),
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

_REDIS: Final = Row(
    "Redis",
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
    ),
)

QUEUE_AND_SQL: Final = Board(
    uid="ryzanstein-queue-and-sql",
    title="Ryzanstein: queue and SQL",
    description="Queues, control, PostgreSQL and Redis.",
    variables=(),
    rows=(_REACHABLE, _QUEUES, _CELERY, _POSTGRES, _REDIS),
)

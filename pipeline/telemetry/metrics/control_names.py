"""The metrics of control: how the whole service stands, read from SQL and Redis when somebody asks.

They are of the service and not of the process: where several control workers run, each says the same, so take the
`max` over them and not the `sum`. What a control worker did itself (tasks, sweeps) is its own, and to be summed.
"""

from __future__ import annotations

from typing import Final

from pipeline.telemetry.metrics.metric import Kind, Metric, Source

#: Label of the tenants that are not among the top ones.
OTHER_TENANTS: Final = "_other"

_TASK_SECONDS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"ryzanstein_{name}", Kind.GAUGE, help, Source.CONTROL, labels)


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(f"ryzanstein_{name}_total", Kind.COUNTER, help, Source.CONTROL, labels)


# --- whether it can be asked
DATABASE_UP: Final = _gauge("database_up", "1 if PostgreSQL answered in time, else 0.")
REDIS_UP: Final = _gauge("redis_up", "1 if Redis answered in time, else 0.")
SECTION_UP: Final = _gauge(
    "metrics_section_up", "1 if this part of the metrics could be read; else it is absent.", "section"
)
SECTION_SECONDS: Final = _gauge("metrics_section_seconds", "How long reading it took.", "section")

# --- batches and requests
BATCHES: Final = _gauge("batches", "Batches by their status.", "status")
BATCHES_PAUSED: Final = _gauge("batches_paused", "Batches in progress of which nothing is claimed for now.")
REQUESTS: Final = _gauge(
    "requests",
    "Requests without an outcome: `pending`, or `claimed` with their slice.",
    "model",
    "service_class",
    "state",
)
FINISHED_REQUESTS: Final = _counter(
    "finished_requests", "Requests with an outcome: succeeded, unsuccessful.", "model", "result"
)
SLICES: Final = _gauge("slices", "Slices that are not done: pending, claimed.", "model", "service_class", "state")
OLDEST_PENDING: Final = _gauge(
    "oldest_pending_seconds", "Since the oldest batch with a pending slice was planned.", "model", "service_class"
)
SLICE_WAIT: Final = _gauge(
    "slice_wait_seconds",
    "From the planning of a batch to the claim of a slice, of those claimed within 15 minutes; quantiles 0.5 and 0.95.",
    *("model", "service_class", "quantile"),
)
DEADLINE_SLACK: Final = _gauge(
    "deadline_slack_seconds",
    "Least over batches: time to the deadline, less the time that all work due by then takes. Below 0, it is missed.",
    *("model", "service_class"),
)
AT_RISK: Final = _gauge("batches_at_risk", "Batches whose slack is negative.", "model", "service_class")
MISSED_WINDOWS: Final = _counter("missed_windows", "Batches that had not ended when their window did.")

# --- tenants: the top ones by tokens, and `_other`
TOKENS: Final = _counter(
    "tokens",
    "Tokens metered: input_uncached, input_cached, output. Of a named tenant all that it ever used; of `_other` what "
    "came since this process started.",
    *("model", "tenant", "kind"),
)
RATED_AMOUNT: Final = _counter(
    "rated_amount", "What these tokens cost, before invoices.", "model", "tenant", "currency"
)
TENANT_WAIT: Final = _gauge(
    "tenant_wait_seconds",
    "Since the oldest waiting batch of the tenant came, by what it waits for: preparing, paused, budget, no_group, "
    "cold_start, class_ahead, share_ahead, engines_full.",
    *("tenant", "cause"),
)
SERVICE_GAP: Final = _gauge(
    "fairness_service_gap_tokens",
    "Between the highest and the lowest counter of the tenants who wait, in weighted tokens.",
    *("model", "service_class"),
)

# --- tickets and messages
OUTBOX_MESSAGES: Final = _gauge("outbox_messages", "Messages that were committed and not published.", "queue")
OUTBOX_AGE: Final = _gauge("outbox_oldest_seconds", "Since the oldest of these was written; 0 where there is none.")
QUEUE_MESSAGES: Final = _gauge("queue_messages", "Messages that wait in Redis.", "queue")
REDIS_MEMORY: Final = _gauge("redis_memory_bytes", "Memory that Redis uses.")
REDIS_CLIENTS: Final = _gauge("redis_clients", "Connections to Redis.")

# --- money
HOLDS_OPEN: Final = _gauge("holds_open", "Holds of claimed slices.", "currency")
HOLDS_AMOUNT: Final = _gauge("holds_open_amount", "Their amount.", "currency")
BUDGETS: Final = _gauge("budgets", "Budgets by use of this period: below_half, below_full, full.", "state")
BUDGET_USE: Final = _gauge(
    "budget_utilization_ratio", "Spent and held over the amount, of the tenant's fullest budget.", "tenant", "currency"
)
DRIFT_TOKENS: Final = _gauge("billing_drift_tokens", "Tokens by which the books of this month differ.", "stage")
DRIFT_AMOUNT: Final = _gauge("billing_drift_amount", "Amount by which they differ.", "stage", "currency")
DRIFT_ENGINE: Final = _gauge("billing_drift_engine_seconds", "Engine time by which attempts and usage events differ.")
UNRATED: Final = _gauge("unrated_events", "Usage events of this month without a price.")
BOOKS_CHECKED: Final = _gauge("books_checked_timestamp_seconds", "When the books were last compared for these metrics.")

# --- webhooks
WEBHOOK_ENDPOINTS: Final = _gauge(
    "webhook_endpoints", "Endpoints of tenants: working, failing (since their last success), disabled.", "state"
)
WEBHOOKS_PENDING: Final = _gauge(
    "webhook_deliveries_pending", "Events that are being sent to an endpoint, or wait for another attempt."
)
WEBHOOKS_OVERDUE: Final = _gauge(
    "webhook_overdue_seconds", "For how long an attempt has been due that was not made; 0 where there is none."
)

# --- groups, as SQL knows them
GROUPS: Final = _gauge(
    "groups",
    "Groups by state; `silent` ones have sent no heartbeat for a lease, or were lost within the hour.",
    "model",
    "state",
)
GROUP_HEARTBEAT_AGE: Final = _gauge(
    "group_heartbeat_age_seconds", "Since a group that has not stopped was last heard of.", "group", "model"
)
RECORDED_WASTE: Final = _counter("recorded_waste_tokens", "Tokens computed for nothing, by SQL.", "model", "cause")

# --- what this control worker did
SWEPT: Final = _counter("swept", "What sweeps set right, by part; `lost_slices` are leases that ran out.", "part")
LEASES_LOST: Final = _counter("leases_lost", "Leases that ran out, and whose slices were taken back.")
SWEEP_AT: Final = _gauge("sweeper_last_run_timestamp_seconds", "When this control worker last ended a sweep.")
TASK_RUNS: Final = _counter("task_runs", "Runs of control tasks: succeeded, failed.", "task", "result")
TASK_SECONDS: Final = Metric(
    "ryzanstein_task_seconds", Kind.HISTOGRAM, "Time of a control task.", Source.CONTROL, ("task",), _TASK_SECONDS
)

# --- disks of control's machine
DISK_FREE: Final = _gauge(
    "disk_free_bytes", "Room for what grows: local blob `storage`, and the `data folder` of a stack.", "folder"
)
DISK_SIZE: Final = _gauge("disk_size_bytes", "Size of these disks.", "folder")

# --- PostgreSQL
DATABASE_SIZE: Final = _gauge("database_size_bytes", "Size of the database.")
DATABASE_CONNECTIONS: Final = _gauge("database_connections", "Connections to the database, by state.", "state")
DATABASE_MAX_CONNECTIONS: Final = _gauge("database_max_connections", "Connections that PostgreSQL takes.")
DATABASE_OLDEST_TRANSACTION: Final = _gauge(
    "database_oldest_transaction_seconds", "Age of the oldest open transaction."
)
DATABASE_COMMITS: Final = _counter("database_commits", "Transactions committed.")
DATABASE_ROLLBACKS: Final = _counter("database_rollbacks", "Transactions rolled back.")
DATABASE_DEADLOCKS: Final = _counter("database_deadlocks", "Deadlocks that PostgreSQL broke.")
TABLE_SIZE: Final = _gauge(
    "table_size_bytes", "Size with indexes of the ten largest tables, partitions added up.", "table"
)
TABLE_DEAD: Final = _gauge("table_dead_rows", "Rows of these that vacuum has yet to remove.", "table")

CONTROL_METRICS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

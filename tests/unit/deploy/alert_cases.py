"""What each alert is raised by, and what it isn't raised by, as series that promtool feeds into the rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Samples in promtool's words, five seconds apart: `1+0x20` is a 1 that stays.
Series = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    alert: str
    #: Raised at `at`, or quiet at `at`.
    is_raised: bool
    series: Series
    at: str = "2m"


_STAYS = "x300"
_SLICES = 'ryzanstein_slices{model="m", service_class="standard", instance="c", state="%s"}'
_OLDEST = 'ryzanstein_oldest_pending_seconds{model="m", service_class="standard", instance="c"}'
_GROUPS = 'ryzanstein_groups{model="m", instance="c", state="%s"}'
_GROUP = '{model="m", group="g"}'


def _stuck(is_raised: bool, **changes: str) -> Case:
    """Slices pend for a minute by now, a group is ready, and nothing is claimed; but for `changes`."""
    values = {"claimed": f"0+0{_STAYS}", "ready": f"1+0{_STAYS}", "age": f"0+5{_STAYS}"}
    values |= changes
    series = {
        _SLICES % "claimed": values["claimed"],
        _GROUPS % "ready": values["ready"],
        _OLDEST: values["age"],
    }
    return Case("QueueStuck", is_raised, series, "1m")


def _pair(alert: str, series: str, bad: str, good: str, at: str = "2m") -> tuple[Case, Case]:
    return Case(alert, True, {series: bad}, at), Case(alert, False, {series: good}, at)


def _gauge(alert: str, series: str, bad: float, good: float, at: str = "2m") -> tuple[Case, Case]:
    return _pair(alert, series, f"{bad}+0{_STAYS}", f"{good}+0{_STAYS}", at)


CASES: tuple[Case, ...] = (
    *_gauge("GroupDown", 'up{process="group", instance="g"}', 0, 1),
    Case("GroupDown", False, {'up{process="gateway", instance="g"}': f"0+0{_STAYS}"}),
    # One of two ranks is dead.
    *(
        Case(
            "RankDead",
            is_raised,
            {
                'ryzanstein_rank_up{model="m", group="g", rank="0"}': f"1+0{_STAYS}",
                'ryzanstein_rank_up{model="m", group="g", rank="1"}': rank,
                f"ryzanstein_group_up{_GROUP}": group,
                f"ryzanstein_engine_steps_total{_GROUP}": f"{steps}+0{_STAYS}",
            },
        )
        for is_raised, rank, group, steps in (
            (True, f"1+0x20 0+0{_STAYS}", f"1+0{_STAYS}", 7),
            (False, f"1+0{_STAYS}", f"1+0{_STAYS}", 7),
            # Others have taken its place, and load.
            (True, f"1+0{_STAYS}", f"1+0x20 0+0{_STAYS}", 7),
            # The group starts, for the first time or again.
            (False, f"0+0{_STAYS}", f"0+0{_STAYS}", 0),
            (False, f"1+0{_STAYS}", f"1+0x20 0+0{_STAYS}", 0),
        )
    ),
    # Nobody saw it dead, but it was replaced within the minute; later that is over.
    Case("RankDead", True, {f"ryzanstein_engine_restarts_total{_GROUP}": f"0+0x20 1+0{_STAYS}"}, "2m"),
    Case("RankDead", False, {f"ryzanstein_engine_restarts_total{_GROUP}": f"0+0x20 1+0{_STAYS}"}, "4m"),
    *_pair(
        "EngineRestartsOften",
        f"ryzanstein_engine_restarts_total{_GROUP}",
        f"0+1x3 4+0{_STAYS}",
        f"0+1x1 1+0{_STAYS}",
        "10m",
    ),
    *_gauge("GroupDegraded", _GROUPS % "degraded", 1, 0),
    *_pair("GroupNotReady", f"ryzanstein_group_up{_GROUP}", f"0+0{_STAYS}", f"0+0x10 1+0{_STAYS}", "21m"),
    *(
        Case(
            "EngineStuck",
            is_raised,
            {
                f"ryzanstein_engine_requests_running{_GROUP}": running,
                f"ryzanstein_engine_requests_waiting{_GROUP}": f"0+0{_STAYS}",
                f"ryzanstein_engine_steps_total{_GROUP}": steps,
            },
        )
        for is_raised, running, steps in (
            (True, f"4+0{_STAYS}", f"100+0{_STAYS}"),
            (False, f"4+0{_STAYS}", f"100+3{_STAYS}"),
            # Idle, and then a request that has just come.
            (False, f"0+0x22 4+0{_STAYS}", f"100+0{_STAYS}"),
        )
    ),
    *_pair("LeasesLostOften", "ryzanstein_leases_lost_total", f"0+1x4 4+0{_STAYS}", f"1+0{_STAYS}", "10m"),
    *(
        Case(
            "MuchWaste",
            is_raised,
            {
                'ryzanstein_waste_tokens_total{model="m", group="g", cause="crash"}': f"0+{waste}{_STAYS}",
                f"ryzanstein_engine_prompt_tokens_total{_GROUP}": f"0+50{_STAYS}",
                f"ryzanstein_engine_generation_tokens_total{_GROUP}": f"0+50{_STAYS}",
            },
            "20m",
        )
        for is_raised, waste in ((True, 30), (False, 10))
    ),
    _stuck(True),
    _stuck(False, claimed=f"1+0{_STAYS}"),
    _stuck(False, ready=f"0+0{_STAYS}"),
    # They came just now, or are of paused batches.
    _stuck(False, age=f"0+0{_STAYS}"),
    Case("NoGroupForModel", True, {_OLDEST: f"0+5{_STAYS}", _GROUPS % "silent": f"1+0{_STAYS}"}),
    Case("NoGroupForModel", True, {_OLDEST: f"0+5{_STAYS}"}),
    Case("NoGroupForModel", False, {_OLDEST: f"0+5{_STAYS}", _GROUPS % "starting": f"1+0{_STAYS}"}),
    Case("NoGroupForModel", False, {_OLDEST: f"0+0{_STAYS}"}),
    *_gauge("OutboxLag", 'ryzanstein_outbox_oldest_seconds{instance="c"}', 20, 3),
    *_gauge("DeadlineAtRisk", 'ryzanstein_batches_at_risk{model="m", service_class="flex"}', 2, 0),
    *_pair("WindowMissed", "ryzanstein_missed_windows_total", f"3+0x10 4+0{_STAYS}", f"3+0{_STAYS}"),
    *_gauge("DatabaseLost", 'ryzanstein_database_up{instance="c"}', 0, 1),
    *_gauge("RedisLost", 'ryzanstein_redis_up{instance="c"}', 0, 1),
    *_gauge("ControlLost", 'up{process="control", instance="c"}', 0, 1),
    # It is no longer among the targets, either.
    Case("ControlLost", True, {}),
    # One of two is enough.
    Case(
        "ControlLost",
        False,
        {
            'up{process="control", instance="c"}': f"0+0{_STAYS}",
            'up{process="control", instance="d"}': f"1+0{_STAYS}",
        },
    ),
    *_pair("SweepsStopped", "ryzanstein_sweeper_last_run_timestamp_seconds", f"0+0{_STAYS}", f"0+5{_STAYS}"),
    *_gauge("GatewayLost", 'up{process="gateway", instance="a"}', 0, 1),
    *_gauge("ProcessDown", 'up{process="flower", instance="f"}', 0, 1),
    *(
        Case(
            "GatewayErrors",
            is_raised,
            {
                'ryzanstein_http_requests_total{status="200"}': f"0+100{_STAYS}",
                'ryzanstein_http_requests_total{status="503"}': f"0+{failed}{_STAYS}",
            },
        )
        for is_raised, failed in ((True, 20), (False, 1))
    ),
    *_pair(
        "KeysGuessed",
        'ryzanstein_auth_failures_total{reason="blocked"}',
        f"0+1{_STAYS}",
        f"7+0{_STAYS}",
    ),
    Case("KeysGuessed", False, {'ryzanstein_auth_failures_total{reason="invalid"}': f"0+1{_STAYS}"}),
    *_pair(
        "TasksFail",
        'ryzanstein_task_runs_total{task="control.prepare", result="failed"}',
        f"0+1x10 10+0{_STAYS}",
        f"0+1x1 1+0{_STAYS}",
    ),
    Case(
        "MetricsIncomplete",
        True,
        {'ryzanstein_metrics_section_up{section="money"}': "1+0x10 stale", "ryzanstein_database_up": f"1+0{_STAYS}"},
    ),
    Case(
        "MetricsIncomplete",
        False,
        {
            'ryzanstein_metrics_section_up{section="money"}': f"1+0{_STAYS}",
            "ryzanstein_database_up": f"1+0{_STAYS}",
        },
    ),
    *(
        Case(
            "ConnectionsFull",
            is_raised,
            {
                'ryzanstein_database_connections{state="active", instance="c"}': f"{active}+0{_STAYS}",
                'ryzanstein_database_connections{state="idle", instance="c"}': f"50+0{_STAYS}",
                'ryzanstein_database_max_connections{instance="c"}': f"100+0{_STAYS}",
            },
        )
        for is_raised, active in ((True, 45), (False, 10))
    ),
    *(
        Case(
            "PoolFull",
            is_raised,
            {
                'ryzanstein_sql_connections{process="gateway", instance="a", state="in_use"}': f"{used}+0{_STAYS}",
                'ryzanstein_sql_connections{process="gateway", instance="a", state="limit"}': f"10+0{_STAYS}",
            },
        )
        for is_raised, used in ((True, 10), (False, 9))
    ),
    *_gauge("TransactionOpen", "ryzanstein_database_oldest_transaction_seconds", 1000, 10),
    *_gauge("DiskFilling", 'ryzanstein_disk_free_bytes{folder="storage"}', 1e9, 1e11),
    *_gauge("WebhooksLate", "ryzanstein_webhook_overdue_seconds", 300, 30),
    *(
        Case(
            "WebhooksFail",
            is_raised,
            {
                'ryzanstein_webhook_endpoints{state="failing"}': f"{failing}+0{_STAYS}",
                'ryzanstein_webhook_endpoints{state="working"}': f"2+0{_STAYS}",
            },
            "6m",
        )
        for is_raised, failing in ((True, 3), (False, 1))
    ),
    *_gauge("BooksDiffer", 'ryzanstein_billing_drift_tokens{stage="ledger"}', -3, 0),
    *_gauge("BooksDiffer", 'ryzanstein_billing_drift_amount{stage="ledger", currency="USD"}', 0.01, 0),
    *_gauge("UsageUnrated", "ryzanstein_unrated_events", 4, 0),
)

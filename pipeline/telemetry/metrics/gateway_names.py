"""The metrics of a gateway, and those that every process has."""

from __future__ import annotations

from typing import Final

from pipeline.telemetry.metrics.metric import Kind, Metric, Source

HTTP_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


def _metric(name: str, kind: Kind, help: str, *labels: str, buckets: tuple[float, ...] = ()) -> Metric:
    return Metric(f"ryzanstein_{name}", kind, help, Source.GATEWAY, labels, buckets)


HTTP_REQUESTS: Final = _metric(
    "http_requests_total",
    Kind.COUNTER,
    "Calls that were answered. `route` is a template, or `unknown`; status 0 had no answer, since its client left.",
    *("method", "route", "status"),
)
HTTP_DURATION: Final = _metric(
    "http_request_duration_seconds",
    Kind.HISTOGRAM,
    "From a call's coming to the end of its answer, a download's included.",
    *("method", "route"),
    buckets=HTTP_SECONDS,
)
HTTP_IN_PROGRESS: Final = _metric("http_requests_in_progress", Kind.GAUGE, "Calls whose answer has not ended.")
HTTP_BYTES_IN_FLIGHT: Final = _metric(
    "http_bytes_in_flight", Kind.GAUGE, "Bytes of these calls so far: `in` of bodies, `out` of answers.", "direction"
)
HTTP_BYTES: Final = _metric(
    "http_bytes_total", Kind.COUNTER, "Bytes of bodies (`in`) and answers (`out`).", "direction"
)
RATE_REFUSALS: Final = _metric(
    "rate_limit_refusals_total",
    Kind.COUNTER,
    "Calls that were refused since their tenant or key was too fast (`requests`, `tokens`) or has too much enqueued.",
    "kind",
)
AUTH_FAILURES: Final = _metric(
    "auth_failures_total",
    Kind.COUNTER,
    "Calls without a right key: `missing`, `invalid`, `blocked` (too many invalid ones), `scope` (it may not do this).",
    "reason",
)

GATEWAY_METRICS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

BUILD_INFO: Final = Metric("ryzanstein_build_info", Kind.GAUGE, "1; the version that runs.", Source.EVERY, ("version",))
SQL_CONNECTIONS: Final = Metric(
    "ryzanstein_sql_connections",
    Kind.GAUGE,
    "Connections of this process's pool: `in_use`, `idle`, and `limit`, the most that there can be.",
    Source.EVERY,
    ("state",),
)

COMMON_METRICS: Final = (BUILD_INFO, SQL_CONNECTIONS)

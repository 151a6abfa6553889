"""The board of what meets the outside: calls of clients, webhooks to them, and disks."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.panels import Board, Panel, Query, Row, Unit

_CALLS: Final = Row(
    "Calls",
    (
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
            queries=(Query("max without (instance) (ryzanstein_webhook_endpoints)", "{{state}}"),),
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

EDGE: Final = Board(
    uid="ryzanstein-edge",
    title="Ryzanstein: edge",
    description="Calls of clients, webhooks to them, and disks.",
    variables=(),
    rows=(_CALLS, _OUTSIDE),
)

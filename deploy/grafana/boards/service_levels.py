"""The board of promises: does what was accepted end within its window, and how long does it wait."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.panels import MODEL, Board, Kind, Panel, Query, Row, Unit

_HERE: Final = '{model=~"$model"}'


def _max(metric: str, matchers: str = _HERE) -> str:
    """Of the service, whichever control worker says it."""
    return f"max without (instance) ({metric}{matchers})"


_DEADLINES: Final = Row(
    "Deadlines",
    (
        Panel(
            title="Batches at risk",
            description="Batches that will not end within their window at the present rate.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query(f"sum({_max('ryzanstein_batches_at_risk')}) or vector(0)"),),
            bad=1,
        ),
        Panel(
            title="Windows missed",
            description="In the time shown. Each may have cost a credit.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query("max(increase(ryzanstein_missed_windows_total[$__range]))"),),
            bad=1,
        ),
        Panel(
            title="Least slack",
            description="Time to the deadline, less the time that all work due by then takes, of the batch that is "
            "closest. Without one there is no deadline to miss.",
            unit=Unit.SECONDS,
            kind=Kind.STAT,
            queries=(Query(f"min({_max('ryzanstein_deadline_slack_seconds')})"),),
            bad=0,
            is_low_bad=True,
        ),
        Panel(
            title="Batches that run",
            description="In validating, in_progress, finalizing or cancelling.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(
                Query(
                    "sum("
                    + _max("ryzanstein_batches", '{status=~"validating|in_progress|finalizing|cancelling"}')
                    + ") or vector(0)"
                ),
            ),
        ),
        Panel(
            title="Batches paused",
            description="In progress, and nothing of them is claimed for now: by their tenant, or a budget is full.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query("max(ryzanstein_batches_paused)"),),
        ),
        Panel(
            title="Requests without an outcome",
            description="Of all batches that run.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query(f"sum({_max('ryzanstein_requests')}) or vector(0)"),),
        ),
        Panel(
            title="Slack by class",
            description="The least of each class and model. Below 0 a window will be missed: start groups.",
            unit=Unit.SECONDS,
            queries=(Query(_max("ryzanstein_deadline_slack_seconds"), "{{model}} {{service_class}}"),),
        ),
        Panel(
            title="Batches at risk by class",
            description="Those whose slack is negative.",
            unit=Unit.COUNT,
            queries=(Query(_max("ryzanstein_batches_at_risk"), "{{model}} {{service_class}}"),),
        ),
        Panel(
            title="Batches by status",
            description="`validating` ones that stay so: look at control.",
            unit=Unit.COUNT,
            queries=(Query(_max("ryzanstein_batches", ""), "{{status}}"),),
        ),
    ),
)

_WAITING: Final = Row(
    "Waiting",
    (
        Panel(
            title="Wait for a claim",
            description="From the planning of a batch to the claim of a slice, over the last 15 minutes.",
            unit=Unit.SECONDS,
            queries=(Query(_max("ryzanstein_slice_wait_seconds"), "{{model}} {{service_class}} {{quantile}}"),),
        ),
        Panel(
            title="Oldest that waits",
            description="Since the oldest batch with a pending slice was planned, by class.",
            unit=Unit.SECONDS,
            queries=(Query(_max("ryzanstein_oldest_pending_seconds"), "{{model}} {{service_class}}"),),
        ),
        Panel(
            title="Slices by state",
            description="Pending ones wait for a group; claimed ones are with one.",
            unit=Unit.COUNT,
            queries=(
                Query(
                    f"sum by (service_class, state) ({_max('ryzanstein_slices')})",
                    "{{service_class}} {{state}}",
                ),
            ),
            is_stacked=True,
        ),
        Panel(
            title="Requests by state",
            description="Without an outcome.",
            unit=Unit.COUNT,
            queries=(
                Query(
                    f"sum by (service_class, state) ({_max('ryzanstein_requests')})",
                    "{{service_class}} {{state}}",
                ),
            ),
            is_stacked=True,
        ),
        Panel(
            title="Requests finished per minute",
            description="Those that succeeded, and the others.",
            unit=Unit.COUNT,
            queries=(
                Query(
                    "60 * sum by (model, result) (max without (instance) "
                    f"(rate(ryzanstein_finished_requests_total{_HERE}[$__rate_interval])))",
                    "{{model}} {{result}}",
                ),
            ),
        ),
        Panel(
            title="Share that did not succeed",
            description="Of the requests that ended: failed, cancelled or expired ones.",
            unit=Unit.SHARE,
            queries=(
                Query(
                    "sum by (model) (max without (instance) (rate(ryzanstein_finished_requests_total"
                    '{model=~"$model", result="unsuccessful"}[$__rate_interval])))'
                    " / sum by (model) (max without (instance) "
                    f"(rate(ryzanstein_finished_requests_total{_HERE}[$__rate_interval])))",
                    "{{model}}",
                ),
            ),
        ),
    ),
)

SERVICE_LEVELS: Final = Board(
    uid="ryzanstein-service-levels",
    title="Ryzanstein: service levels",
    description="Whether what was accepted ends within its window, and what waits.",
    variables=(MODEL,),
    rows=(_DEADLINES, _WAITING),
)

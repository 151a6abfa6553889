"""The board of money: what comes in, what is held, what hardware costs, and whether the books agree."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.panels import MODEL, TENANT, Board, Kind, Number, Panel, Query, Row, Unit

_HERE: Final = '{model=~"$model", tenant=~"$tenant"}'
_TOKENS: Final = (
    'sum by (model) (rate(ryzanstein_engine_prompt_tokens_total{model=~"$model"}[15m])'
    ' + rate(ryzanstein_engine_generation_tokens_total{model=~"$model"}[15m]))'
)
_IDLE: Final = 'clamp_min(1 - avg by (model) (rate(ryzanstein_engine_busy_seconds_total{model=~"$model"}[15m])), 0)'
_COST: Final = '$group_hour_cost * sum by (model) (ryzanstein_group_up{model=~"$model"})'


def _amount(by: str, over: str) -> str:
    return f"sum by ({by}) (max without (instance) ({over}(ryzanstein_rated_amount_total{_HERE}[RANGE])))"


def _max(metric: str) -> str:
    return f"max without (instance) ({metric})"


_REVENUE: Final = Row(
    "Revenue",
    (
        Panel(
            title="Revenue in this time",
            description="What was rated in the time shown, before credits and invoices.",
            unit=Unit.AMOUNT,
            kind=Kind.STAT,
            queries=(Query(_amount("currency", "increase").replace("RANGE", "$__range"), "{{currency}}"),),
        ),
        Panel(
            title="Revenue per hour by model",
            description="At the rate of the last 15 minutes.",
            unit=Unit.AMOUNT,
            queries=(
                Query("3600 * " + _amount("model, currency", "rate").replace("RANGE", "15m"), "{{model}} {{currency}}"),
            ),
            is_stacked=True,
        ),
        Panel(
            title="Revenue by tenant",
            description="In the time shown; `_other` are all that are not among the top tenants by tokens.",
            unit=Unit.AMOUNT,
            kind=Kind.BARS,
            queries=(
                Query(
                    f"sort_desc({_amount('tenant, currency', 'increase').replace('RANGE', '$__range')})",
                    "{{tenant}} {{currency}}",
                ),
            ),
        ),
    ),
)

_COSTS: Final = Row(
    "Cost of the hardware, by the price of a group's hour that is typed in above",
    (
        Panel(
            title="Cost per 1,000,000 tokens",
            description="The hour of all ready groups over the tokens that they compute in it, prompts included. It "
            "falls as groups are busier.",
            unit=Unit.AMOUNT,
            queries=(Query(f"1e6 * {_COST} / (3600 * {_TOKENS} > 0)", "{{model}}"),),
        ),
        Panel(
            title="Idle share",
            description="Part of the time in which ready groups had no step to run.",
            unit=Unit.SHARE,
            queries=(
                Query(
                    _IDLE,
                    "{{model}}",
                ),
            ),
        ),
        Panel(
            title="Cost of idle time per hour",
            description="What is paid for groups that had nothing to do.",
            unit=Unit.AMOUNT,
            queries=(
                Query(
                    f"{_COST} * {_IDLE}",
                    "{{model}}",
                ),
            ),
        ),
    ),
)

_BUDGETS: Final = Row(
    "Holds and budgets",
    (
        Panel(
            title="Held for claimed slices",
            description="The most that they can cost; what they do cost is taken from it as they are recorded.",
            unit=Unit.AMOUNT,
            queries=(Query(_max("ryzanstein_holds_open_amount"), "{{currency}}"),),
        ),
        Panel(
            title="Open holds",
            description="One of each claimed slice and budget. Any that stay while nothing runs: `ryzanstein audit`.",
            unit=Unit.COUNT,
            queries=(Query(_max("ryzanstein_holds_open"), "{{currency}}"),),
        ),
        Panel(
            title="Budgets by use",
            description="Of this period. Batches of a full one wait.",
            unit=Unit.COUNT,
            queries=(Query(_max("ryzanstein_budgets"), "{{state}}"),),
            is_stacked=True,
        ),
        Panel(
            title="Fullest budgets",
            description="Spent and held over the amount.",
            unit=Unit.SHARE,
            kind=Kind.BARS,
            queries=(
                Query(
                    'topk(15, max without (instance) (ryzanstein_budget_utilization_ratio{tenant=~"$tenant"}))',
                    "{{tenant}}",
                ),
            ),
            bad=1,
        ),
    ),
)

_BOOKS: Final = Row(
    "Books",
    (
        Panel(
            title="Drift in tokens",
            description="By which the books of this month differ: answers, usage events, rated lines, roll-ups. Not 0: "
            "no invoice is issued; see `ryzanstein bill audit`.",
            unit=Unit.TOKENS,
            kind=Kind.STAT,
            queries=(Query("sum(abs(max without (instance) (ryzanstein_billing_drift_tokens)))"),),
            bad=1,
        ),
        Panel(
            title="Unrated events",
            description="Usage events of this month that nothing prices. Publish a price, then `ryzanstein bill rate`.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query("max(ryzanstein_unrated_events)"),),
            bad=1,
        ),
        Panel(
            title="Engine time that differs",
            description="Between attempts and usage events, this month.",
            unit=Unit.SECONDS,
            kind=Kind.STAT,
            queries=(Query("max(abs(ryzanstein_billing_drift_engine_seconds))"),),
            bad=1,
        ),
        Panel(
            title="Books compared",
            description="How long ago, for these metrics.",
            unit=Unit.SECONDS,
            kind=Kind.STAT,
            queries=(Query("time() - max(ryzanstein_books_checked_timestamp_seconds)"),),
        ),
        Panel(
            title="Drift by stage",
            description="Where the books part.",
            unit=Unit.TOKENS,
            queries=(Query(_max("ryzanstein_billing_drift_tokens"), "{{stage}}"),),
        ),
        Panel(
            title="Drift in money by stage",
            description="Amounts by which they differ.",
            unit=Unit.AMOUNT,
            queries=(Query(_max("ryzanstein_billing_drift_amount"), "{{stage}} {{currency}}"),),
        ),
    ),
)

MONEY: Final = Board(
    uid="ryzanstein-money",
    title="Ryzanstein: money",
    description="What comes in, what is held, what hardware costs, and whether the books agree.",
    variables=(MODEL, TENANT, Number("group_hour_cost", "Price of a group's hour", "1")),
    rows=(_REVENUE, _COSTS, _BUDGETS, _BOOKS),
)

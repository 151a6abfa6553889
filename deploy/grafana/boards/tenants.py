"""The board of tenants: who uses how much, who waits for what, and who is refused."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.panels import MODEL, TENANT, Board, Kind, Panel, Query, Row, Unit

_HERE: Final = '{model=~"$model", tenant=~"$tenant"}'
_RATE: Final = f"max without (instance) (rate(ryzanstein_tokens_total{_HERE}[$__rate_interval]))"
_RATE_OF_ALL: Final = 'max without (instance) (rate(ryzanstein_tokens_total{model=~"$model"}[$__rate_interval]))'

_USE: Final = Row(
    "Use",
    (
        Panel(
            title="Tokens by tenant",
            description="The top tenants by tokens; `_other` are all that are not among them.",
            unit=Unit.TOKENS_PER_SECOND,
            queries=(Query(f"sum by (tenant) ({_RATE})", "{{tenant}}"),),
            is_stacked=True,
        ),
        Panel(
            title="Share of tokens",
            description="Of all tokens of these models.",
            unit=Unit.SHARE,
            queries=(Query(f"sum by (tenant) ({_RATE}) / on () group_left () sum({_RATE_OF_ALL})", "{{tenant}}"),),
        ),
        Panel(
            title="Tokens by kind",
            description="Uncached and cached input, and output, as they are metered.",
            unit=Unit.TOKENS_PER_SECOND,
            queries=(Query(f"sum by (kind) ({_RATE})", "{{kind}}"),),
            is_stacked=True,
        ),
        Panel(
            title="Tokens in this time",
            description="By tenant, over the time shown.",
            unit=Unit.TOKENS,
            kind=Kind.BARS,
            queries=(
                Query(
                    "sort_desc(sum by (tenant) (max without (instance) "
                    f"(increase(ryzanstein_tokens_total{_HERE}[$__range]))))",
                    "{{tenant}}",
                ),
            ),
        ),
        Panel(
            title="Input found in the cache",
            description="Cached input tokens over all input tokens, by tenant.",
            unit=Unit.SHARE,
            queries=(
                Query(
                    "sum by (tenant) (max without (instance) (rate(ryzanstein_tokens_total"
                    '{model=~"$model", tenant=~"$tenant", kind="input_cached"}[$__rate_interval])))'
                    " / sum by (tenant) (max without (instance) (rate(ryzanstein_tokens_total"
                    '{model=~"$model", tenant=~"$tenant", kind=~"input_.*"}[$__rate_interval])))',
                    "{{tenant}}",
                ),
            ),
        ),
    ),
)

_FAIRNESS: Final = Row(
    "Fairness and waiting",
    (
        Panel(
            title="Gap between tenants",
            description="Between the highest and the lowest counter of the tenants who wait, in weighted tokens. It "
            "stays about a slice's size while shares are kept.",
            unit=Unit.TOKENS,
            queries=(
                Query(
                    'max without (instance) (ryzanstein_fairness_service_gap_tokens{model=~"$model"})',
                    "{{model}} {{service_class}}",
                ),
            ),
        ),
        Panel(
            title="Wait by cause",
            description="Since each tenant's oldest waiting batch came. `no_group`, `cold_start` and `engines_full` "
            "are yours to end; `budget` is the tenant's.",
            unit=Unit.SECONDS,
            queries=(
                Query(
                    'max without (instance) (ryzanstein_tenant_wait_seconds{tenant=~"$tenant"})',
                    "{{tenant}} {{cause}}",
                ),
            ),
        ),
        Panel(
            title="Longest wait by cause",
            description="Over all tenants.",
            unit=Unit.SECONDS,
            kind=Kind.BARS,
            queries=(Query("max by (cause) (ryzanstein_tenant_wait_seconds)", "{{cause}}"),),
        ),
    ),
)

_REFUSALS: Final = Row(
    "Refusals",
    (
        Panel(
            title="Calls over a rate limit",
            description="Answered by 429, by what was counted.",
            unit=Unit.PER_SECOND,
            queries=(
                Query("sum by (kind) (rate(ryzanstein_rate_limit_refusals_total[$__rate_interval]))", "{{kind}}"),
            ),
        ),
        Panel(
            title="Calls without a right key",
            description="`blocked` ones come from an address that has tried too many wrong keys.",
            unit=Unit.PER_SECOND,
            queries=(Query("sum by (reason) (rate(ryzanstein_auth_failures_total[$__rate_interval]))", "{{reason}}"),),
        ),
        Panel(
            title="Calls by status",
            description="4xx are the callers' faults, 5xx are ours.",
            unit=Unit.PER_SECOND,
            queries=(Query("sum by (status) (rate(ryzanstein_http_requests_total[$__rate_interval]))", "{{status}}"),),
            is_stacked=True,
        ),
    ),
)

TENANTS: Final = Board(
    uid="ryzanstein-tenants",
    title="Ryzanstein: tenants",
    description="Who uses how much, who waits for what, and who is refused.",
    variables=(MODEL, TENANT),
    rows=(_USE, _FAIRNESS, _REFUSALS),
)

"""The board of who runs the groups: are they up, how busy are they, and what do they compute for nothing."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.panels import GROUP, MODEL, Board, Kind, Panel, Query, Row, Unit

_HERE: Final = '{model=~"$model", group=~"$group"}'


def _rate(metric: str, by: str = "model") -> str:
    return f"sum by ({by}) (rate({metric}{_HERE}[$__rate_interval]))"


def _percentiles(metric: str) -> tuple[Query, ...]:
    """The median, and what one of twenty and one of a hundred wait longer than."""
    return tuple(
        Query(
            f"histogram_quantile({quantile}, sum by (le) (rate({metric}_bucket{_HERE}[$__rate_interval])))",
            f"p{quantile * 100:g}",
        )
        for quantile in (0.5, 0.95, 0.99)
    )


_GROUPS: Final = Row(
    "Groups",
    (
        Panel(
            title="Groups ready",
            description="Groups whose engine takes requests.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query(f"sum(ryzanstein_group_up{_HERE})"),),
            bad=1,
            is_low_bad=True,
        ),
        Panel(
            title="Groups not ready",
            description="Groups that can be reached and whose engine starts, restarts or has given up.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query(f"count(ryzanstein_group_up{_HERE}) - sum(ryzanstein_group_up{_HERE})"),),
            bad=1,
        ),
        Panel(
            title="Ranks alive",
            description="Rank processes that live, of all groups.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query(f"sum(ryzanstein_rank_up{_HERE})"),),
            bad=1,
            is_low_bad=True,
        ),
        Panel(
            title="Ranks missing",
            description="Ranks that their groups are to have, less those that live. Above 0 for longer than a model "
            "loads: read the group's log.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query(f"sum(ryzanstein_group_ranks{_HERE}) - sum(ryzanstein_rank_up{_HERE})"),),
            bad=1,
        ),
        Panel(
            title="Restarts in this time",
            description="How often ranks were replaced since one of them died or hung.",
            unit=Unit.COUNT,
            kind=Kind.STAT,
            queries=(Query(f"sum(increase(ryzanstein_engine_restarts_total{_HERE}[$__range]))"),),
            bad=1,
        ),
        Panel(
            title="Tokens per second",
            description="Prompt tokens, found or computed, and generated ones.",
            unit=Unit.TOKENS_PER_SECOND,
            kind=Kind.STAT,
            queries=(
                Query(
                    f"sum(rate(ryzanstein_engine_prompt_tokens_total{_HERE}[$__rate_interval]))"
                    f" + sum(rate(ryzanstein_engine_generation_tokens_total{_HERE}[$__rate_interval]))"
                ),
            ),
        ),
        Panel(
            title="Groups by state",
            description="As SQL knows them; `silent` ones have sent no heartbeat for a lease.",
            unit=Unit.COUNT,
            queries=(
                Query(
                    'sum by (state) (max without (instance) (ryzanstein_groups{model=~"$model"}))',
                    "{{state}}",
                ),
            ),
            is_stacked=True,
        ),
        Panel(
            title="Age of leases' renewal",
            description="Since each group last renewed its leases. At RYZANSTEIN_LEASE_SECONDS it loses them.",
            unit=Unit.SECONDS,
            queries=(Query(f"ryzanstein_lease_renewal_age_seconds{_HERE}", "{{group}}"),),
        ),
        Panel(
            title="Memory of ranks",
            description="What each rank occupies.",
            unit=Unit.BYTES,
            queries=(Query(f"ryzanstein_rank_memory_bytes{_HERE}", "{{group}} rank {{rank}} {{kind}}"),),
        ),
    ),
)

_LOAD: Final = Row(
    "Work",
    (
        Panel(
            title="Tokens per second by kind",
            description="Prompt tokens computed, prompt tokens found in the prefix cache, and tokens generated.",
            unit=Unit.TOKENS_PER_SECOND,
            queries=(
                # Of the queries, not of the prompts: each choice of a request looks for the one prompt that they have.
                Query(
                    f"sum(rate(ryzanstein_engine_prefix_query_tokens_total{_HERE}[$__rate_interval]))"
                    f" - sum(rate(ryzanstein_engine_prefix_hit_tokens_total{_HERE}[$__rate_interval]))",
                    "prompt, computed",
                ),
                Query(
                    f"sum(rate(ryzanstein_engine_prefix_hit_tokens_total{_HERE}[$__rate_interval]))",
                    "prompt, found",
                ),
                Query(f"sum(rate(ryzanstein_engine_generation_tokens_total{_HERE}[$__rate_interval]))", "generated"),
            ),
            is_stacked=True,
        ),
        Panel(
            title="Tokens generated by group",
            description="A group far below its like has slow hardware, or little to do.",
            unit=Unit.TOKENS_PER_SECOND,
            queries=(Query(_rate("ryzanstein_engine_generation_tokens_total", "group"), "{{group}}"),),
        ),
        Panel(
            title="Requests in the engines",
            description="Running, and waiting to be admitted. Waiting ones mean that the KV cache or the number of "
            "sequences is the limit.",
            unit=Unit.COUNT,
            queries=(
                Query(f"sum(ryzanstein_engine_requests_running{_HERE})", "running"),
                Query(f"sum(ryzanstein_engine_requests_waiting{_HERE})", "waiting"),
            ),
        ),
        Panel(
            title="KV cache in use",
            description="Part of the blocks that running requests use, by group.",
            unit=Unit.SHARE,
            queries=(Query(f"ryzanstein_engine_kv_usage_ratio{_HERE}", "{{group}}"),),
        ),
        Panel(
            title="Prompt tokens found in the cache",
            description="Hits of the prefix cache over what was looked for.",
            unit=Unit.SHARE,
            queries=(
                Query(
                    f"{_rate('ryzanstein_engine_prefix_hit_tokens_total')}"
                    f" / {_rate('ryzanstein_engine_prefix_query_tokens_total')}",
                    "{{model}}",
                ),
            ),
        ),
        Panel(
            title="Preemptions",
            description="Requests per second that gave their KV cache to an older one, to be computed again. If it "
            "stays above 0: a larger RYZANSTEIN_KV_CACHE_TOKENS, or a smaller RYZANSTEIN_MAX_NUM_SEQUENCES.",
            unit=Unit.PER_SECOND,
            queries=(Query(_rate("ryzanstein_engine_preemptions_total", "group"), "{{group}}"),),
        ),
        Panel(
            title="Idle share",
            description="Part of the time in which the engine had no step to run: hardware paid for and not used.",
            unit=Unit.SHARE,
            queries=(
                Query(
                    f"clamp_min(1 - avg by (model) (rate(ryzanstein_engine_busy_seconds_total{_HERE}"
                    "[$__rate_interval])), 0)",
                    "{{model}}",
                ),
            ),
        ),
        Panel(
            title="Requests that left the engine",
            description="By how they ended; `crash` and `error` are worth a look into the logs.",
            unit=Unit.PER_SECOND,
            queries=(Query(_rate("ryzanstein_engine_requests_total", "finish_reason"), "{{finish_reason}}"),),
        ),
        Panel(
            title="Slices held",
            description="Slices that each group has a lease on.",
            unit=Unit.COUNT,
            queries=(Query(f"ryzanstein_group_slices_held{_HERE}", "{{group}}"),),
        ),
    ),
)

_SPEED: Final = Row(
    "How fast",
    (
        Panel(
            title="Time to the first token",
            description="From a request's coming to the engine. In batches it is mostly the wait for room.",
            unit=Unit.SECONDS,
            queries=_percentiles("ryzanstein_request_time_to_first_token_seconds"),
        ),
        Panel(
            title="Time between tokens",
            description="Between two tokens of one choice.",
            unit=Unit.SECONDS,
            queries=_percentiles("ryzanstein_inter_token_latency_seconds"),
        ),
        Panel(
            title="Time of a step",
            description="One step over all that runs. RYZANSTEIN_STEP_SECONDS is where it counts as hung.",
            unit=Unit.SECONDS,
            queries=_percentiles("ryzanstein_engine_step_seconds"),
        ),
        Panel(
            title="Time of a request",
            description="From its coming to the engine to its end.",
            unit=Unit.SECONDS,
            queries=_percentiles("ryzanstein_request_duration_seconds"),
        ),
        Panel(
            title="Wait in the engine",
            description="From a request's coming to the engine to its first step.",
            unit=Unit.SECONDS,
            queries=_percentiles("ryzanstein_request_queue_seconds"),
        ),
        Panel(
            title="Time of a recording",
            description="One transaction that writes outcomes, usage and ledger.",
            unit=Unit.SECONDS,
            queries=_percentiles("ryzanstein_recording_seconds"),
        ),
    ),
)

_WASTE: Final = Row(
    "What was for nothing",
    (
        Panel(
            title="Wasted tokens by cause",
            description="Computed, and thrown away: nobody pays for them.",
            unit=Unit.TOKENS_PER_SECOND,
            queries=(Query(_rate("ryzanstein_waste_tokens_total", "cause"), "{{cause}}"),),
            is_stacked=True,
        ),
        Panel(
            title="Engine time wasted by cause",
            description="Engine seconds per second that went into them.",
            unit=Unit.SHARE,
            queries=(Query(_rate("ryzanstein_waste_engine_seconds_total", "cause"), "{{cause}}"),),
            is_stacked=True,
        ),
        Panel(
            title="Attempts by how they ended",
            description="`lost` ones ran out of their lease; `returned` ones were given back by a drain or a crash.",
            unit=Unit.PER_SECOND,
            queries=(Query(_rate("ryzanstein_attempts_total", "end"), "{{end}}"),),
        ),
        Panel(
            title="Leases found lost",
            description="A group that loses leases can't reach PostgreSQL in time, or stands still.",
            unit=Unit.PER_SECOND,
            queries=(Query(_rate("ryzanstein_lease_losses_total", "group"), "{{group}}"),),
        ),
        Panel(
            title="Engine restarts",
            description="Ranks that were replaced, per group. Five within ten minutes, and the group claims no more.",
            unit=Unit.COUNT,
            queries=(
                Query(
                    f"sum by (group) (increase(ryzanstein_engine_restarts_total{_HERE}[$__rate_interval]))",
                    "{{group}}",
                ),
            ),
        ),
        Panel(
            title="Outcomes not yet recorded",
            description="Grows while PostgreSQL is away; nothing of it is lost while the group lives.",
            unit=Unit.COUNT,
            queries=(Query(f"ryzanstein_unrecorded_outcomes{_HERE}", "{{group}}"),),
        ),
    ),
)

OPERATORS: Final = Board(
    uid="ryzanstein-operators",
    title="Ryzanstein: operators",
    description="Groups, their ranks, and what their engines do.",
    variables=(MODEL, GROUP),
    rows=(_GROUPS, _LOAD, _SPEED, _WASTE),
)

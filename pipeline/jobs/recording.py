"""Recording of outcomes: result, usage, price and counters in one transaction, or nothing of it.

Whatever was answered is written and billed exactly once: the slice's row is locked first, a lease epoch that is not
the row's writes nothing, and a request that has an outcome is passed over. So a group that does not know whether
its COMMIT arrived records the same outcomes again: the lock waits for the first transaction to end, whichever way,
and the outcomes that are there show what it wrote.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import psycopg
from psycopg import Cursor
from sqlalchemy import Connection

from pipeline.billing import holds
from pipeline.billing.cards_in_effect import ask_rates, found_rates
from pipeline.billing.charges_by_slice import SliceAnswers, SliceCharge
from pipeline.billing.charging import Charged, charge
from pipeline.billing.holds import SliceCost
from pipeline.billing.rating import TokenUsage
from pipeline.billing.rollups import add_usage
from pipeline.celery import CONTROL_QUEUE, FINALIZE
from pipeline.jobs.answers import insert_answers
from pipeline.jobs.claiming import ClaimedSlice
from pipeline.jobs.fairness import Cost, settle
from pipeline.jobs.waste import WastePart, add_waste, thrown_away
from pipeline.tables.requests import OutcomeKind


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """The one terminal result of a request, as the group that generated it hands it over."""

    request_id: int
    custom_id: str
    claimed: ClaimedSlice
    kind: OutcomeKind
    #: JSON of the answer, and what it took; of succeeded requests alone.
    body: str | None = None
    usage: TokenUsage | None = None
    #: Its tokens, of a slice with receipts: see `pipeline.billing.receipts.pack_choices`.
    output_token_ids: bytes | None = None
    #: Of failed requests.
    error_code: str | None = None
    error_message: str | None = None
    #: What came to nothing of the slice's work since the outcome before.
    waste: tuple[WastePart, ...] = ()

    @property
    def num_wasted_tokens(self) -> int:
        return thrown_away(self.waste)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recording came to."""

    #: Slices whose lease was lost; nothing was written for them, nor will be.
    stale: frozenset[int]
    #: Slices of which no request is without an outcome any more.
    done: frozenset[int]
    #: Batches of the same kind; a message to finalize them is in the outbox.
    finished_batches: tuple[str, ...]


# Every statement here looks up few rows by key, and is planned once: a plan that was made while a table was all but
# empty must not read the whole of it, or of its index, when it has grown.
_USE_INDEXES: Final = """
    SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
           set_config('enable_mergejoin', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true)
"""

_LOCK: Final = """
    SELECT s.id, s.status = 'done' AS is_done
    FROM slices s JOIN unnest(%(slice_ids)b::bigint[], %(epochs)b::bigint[]) AS held (id, epoch)
        ON s.id = held.id AND s.lease_epoch = held.epoch
    WHERE s.group_id = %(group_id)s AND s.status IN ('claimed', 'done') ORDER BY s.id FOR NO KEY UPDATE OF s
"""

# Sees the slices as they are under the lock. The span of ids leaves out partitions before they are opened.
_SET_OUTCOMES: Final = """
    UPDATE requests r SET outcome = o.outcome, error_code = o.code, error_message = o.message
    FROM unnest(%(ids)b::bigint[], %(slice_ids)b::bigint[], %(epochs)b::bigint[], %(outcomes)b::text[],
                %(codes)b::text[], %(messages)b::text[]) AS o (id, slice_id, epoch, outcome, code, message)
    JOIN slices s ON s.id = o.slice_id AND s.lease_epoch = o.epoch
    WHERE s.group_id = %(group_id)s AND s.status = 'claimed'
      AND r.id = o.id AND r.slice_id = o.slice_id AND r.outcome IS NULL
      AND r.id BETWEEN %(first_id)b AND %(last_id)b
    RETURNING r.id, r.num_prompt_tokens
"""

_DELETE_PARTS: Final = "DELETE FROM partial_outputs WHERE request_id = ANY(%(ids)b::bigint[])"

_COUNT_IN_SLICES: Final = """
    WITH counted AS (
        SELECT * FROM unnest(%(ids)b::bigint[], %(succeeded)b::bigint[], %(unsuccessful)b::bigint[],
                             %(tokens)b::bigint[], %(wasted)b::bigint[], %(engine_ms)b::bigint[])
            AS c (slice_id, succeeded, unsuccessful, tokens, wasted, engine_ms)
    ), slice AS (
        UPDATE slices s
        SET num_unfinished = num_unfinished - c.succeeded - c.unsuccessful,
            status = CASE WHEN num_unfinished > c.succeeded + c.unsuccessful THEN status ELSE 'done' END,
            lease_expires_at = CASE WHEN num_unfinished > c.succeeded + c.unsuccessful THEN lease_expires_at END
        FROM counted c WHERE s.id = c.slice_id
        RETURNING s.id, s.lease_epoch, s.status = 'done' AS is_done
    ), attempt AS (
        UPDATE attempts a
        SET num_succeeded = num_succeeded + c.succeeded, num_unsuccessful = num_unsuccessful + c.unsuccessful,
            num_tokens = num_tokens + c.tokens, num_wasted_tokens = num_wasted_tokens + c.wasted,
            engine_ms = coalesce(a.engine_ms, 0) + c.engine_ms,
            "end" = CASE WHEN slice.is_done THEN 'finished' END,
            ended_at = CASE WHEN slice.is_done THEN clock_timestamp() END
        FROM counted c JOIN slice ON slice.id = c.slice_id
        WHERE a.slice_id = slice.id AND a.lease_epoch = slice.lease_epoch
    )
    SELECT id FROM slice WHERE is_done
"""

# The rows that all groups of a batch write: last, so that they are locked for as short a time as can be.
_COUNT_IN_BATCHES: Final = """
    WITH counted AS (
        SELECT * FROM unnest(%(ids)b::text[], %(succeeded)b::bigint[], %(unsuccessful)b::bigint[],
                             %(prompt)b::bigint[], %(cached)b::bigint[], %(completion)b::bigint[],
                             %(released)b::bigint[])
            AS c (batch_id, succeeded, unsuccessful, prompt, cached, completion, released)
        ORDER BY batch_id
    ), locked AS (
        SELECT b.id FROM batches b JOIN counted c ON c.batch_id = b.id ORDER BY b.id FOR NO KEY UPDATE OF b
    ), batch AS (
        UPDATE batches b
        SET num_succeeded = num_succeeded + c.succeeded, num_unsuccessful = num_unsuccessful + c.unsuccessful,
            num_prompt_tokens = num_prompt_tokens + c.prompt, num_cached_tokens = num_cached_tokens + c.cached,
            num_completion_tokens = num_completion_tokens + c.completion,
            num_released_tokens = num_released_tokens + c.released
        FROM locked JOIN counted c ON c.batch_id = locked.id WHERE b.id = locked.id
        RETURNING b.id, b.num_requests - b.num_succeeded - b.num_unsuccessful AS num_unfinished
    ), message AS (
        INSERT INTO outbox (queue, task, args)
        SELECT %(queue)s, %(task)s, jsonb_build_array(id) FROM batch WHERE num_unfinished = 0
    )
    SELECT id FROM batch WHERE num_unfinished = 0
"""


def record_outcomes(conn: Connection, outcomes: Sequence[RequestOutcome]) -> Recorded:
    """Write what one group generated, in the caller's transaction. Outcomes of different batches and tenants may mix.

    Call `outbox.publish_soon` after the commit. Where the commit's fate is unknown, call this again with the same
    outcomes. Raises psycopg.Error as the driver does.
    """
    slices = {outcome.claimed.id: outcome.claimed for outcome in outcomes}
    driver = cast("psycopg.Connection[Any]", conn.connection.driver_connection)
    # A pipeline: the database is waited for twice, not once per statement.
    with driver.pipeline(), driver.cursor() as cursor:
        cursor.execute(_USE_INDEXES)
        cards, locked, written = driver.cursor(), driver.cursor(), driver.cursor()
        # First, so that the database looks while the rest is put together. What a slice costs does not change while
        # the group has its lease, nor by what is published after the transaction began.
        ask_rates(cards, slices)
        _lock(locked, list(slices.values()))
        _set_outcomes(written, outcomes)
        mine = dict(locked.fetchall())
        recorded = dict(written.fetchall())

        new = [outcome for outcome in outcomes if outcome.request_id in recorded]
        done, finished = {slice_id for slice_id, is_done in mine.items() if is_done}, ()
        if new:
            cursor.execute(_DELETE_PARTS, {"ids": [outcome.request_id for outcome in new]})
            holds.announce(cursor, {outcome.claimed.tenant_id for outcome in new})
            add_waste(cursor, [(outcome.claimed, part) for outcome in new for part in outcome.waste])
            _count_in_slices(locked, new)
            succeeded = [outcome for outcome in new if outcome.kind is OutcomeKind.SUCCEEDED]
            charged = Charged()
            if succeeded:
                charged = charge(cursor, _by_slice(succeeded), *found_rates(cards))
                insert_answers(cursor, succeeded, charged)
            holds.settle(cursor, {outcome.claimed.id for outcome in new}, _slice_costs(charged.slices))
            _count_in_batches(written, new, recorded)
            settle(cursor, [_cost(outcome) for outcome in new])
            add_usage(cursor, charged.slices)
            done |= {row[0] for row in locked.fetchall()}
            finished = tuple(row[0] for row in written.fetchall())
    return Recorded(stale=frozenset(slices.keys() - mine.keys()), done=frozenset(done), finished_batches=finished)


def _lock(cursor: Cursor[Any], slices: Sequence[ClaimedSlice]) -> None:
    """Lock those of `slices` whose lease is still the group's."""
    cursor.execute(
        _LOCK,
        {
            "slice_ids": [claimed.id for claimed in slices],
            "epochs": [claimed.lease_epoch for claimed in slices],
            "group_id": slices[0].group_id,
        },
    )


def _set_outcomes(cursor: Cursor[Any], outcomes: Sequence[RequestOutcome]) -> None:
    """Give requests their outcomes, and find those that had none."""
    cursor.execute(
        _SET_OUTCOMES,
        {
            "group_id": outcomes[0].claimed.group_id,
            "ids": [outcome.request_id for outcome in outcomes],
            "first_id": min(outcome.request_id for outcome in outcomes),
            "last_id": max(outcome.request_id for outcome in outcomes),
            "slice_ids": [outcome.claimed.id for outcome in outcomes],
            "epochs": [outcome.claimed.lease_epoch for outcome in outcomes],
            "outcomes": [outcome.kind.value for outcome in outcomes],
            "codes": [outcome.error_code for outcome in outcomes],
            "messages": [_storable(outcome.error_message) for outcome in outcomes],
        },
    )


def _by_slice(succeeded: Sequence[RequestOutcome]) -> Sequence[SliceAnswers]:
    found: dict[int, SliceAnswers] = {}
    for outcome in succeeded:
        if outcome.usage is None:
            raise ValueError(f"Request {outcome.request_id} succeeded without usage.")
        of_slice = found.get(outcome.claimed.id)
        if of_slice is None:
            claimed = outcome.claimed
            of_slice = found[claimed.id] = SliceAnswers(claimed.id, claimed.tenant_id, claimed.model, [], [])
        of_slice.request_ids.append(outcome.request_id)
        of_slice.usages.append(outcome.usage)
    return list(found.values())


def _slice_costs(charges: Sequence[SliceCharge]) -> list[SliceCost]:
    return [
        SliceCost(charge.slice_id, charge.currency, charge.amount) for charge in charges if charge.currency is not None
    ]


def _cost(outcome: RequestOutcome) -> Cost:
    """What it took. Work for a request that did not succeed is not billed, but it was served."""
    if outcome.usage is None:
        return Cost(outcome.claimed.id, num_uncached_tokens=outcome.num_wasted_tokens)
    usage = outcome.usage
    return Cost(
        outcome.claimed.id,
        num_uncached_tokens=usage.num_uncached_tokens,
        num_cached_tokens=usage.num_cached_tokens,
        num_output_tokens=usage.num_completion_tokens,
    )


@dataclass(slots=True)
class _Count:
    """What a group of outcomes adds to the counters of a slice or a batch."""

    succeeded: int = 0
    unsuccessful: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    wasted: int = 0
    engine_ms: int = 0

    def add(self, outcome: RequestOutcome) -> None:
        self.wasted += outcome.num_wasted_tokens
        if outcome.kind is not OutcomeKind.SUCCEEDED or outcome.usage is None:
            self.unsuccessful += 1
            return
        self.succeeded += 1
        self.prompt += outcome.usage.num_prompt_tokens
        self.cached += outcome.usage.num_cached_tokens
        self.completion += outcome.usage.num_completion_tokens
        self.engine_ms += outcome.usage.engine_ms

    @property
    def num_computed_tokens(self) -> int:
        return self.prompt - self.cached + self.completion


def _count_in_slices(cursor: Cursor[Any], outcomes: Sequence[RequestOutcome]) -> None:
    """Keep the counters of slices and attempts, and find the slices that are done with it."""
    counts: dict[int, _Count] = defaultdict(_Count)
    for outcome in outcomes:
        counts[outcome.claimed.id].add(outcome)
    cursor.execute(
        _COUNT_IN_SLICES,
        {
            "ids": list(counts),
            "succeeded": [count.succeeded for count in counts.values()],
            "unsuccessful": [count.unsuccessful for count in counts.values()],
            "tokens": [count.num_computed_tokens for count in counts.values()],
            "wasted": [count.wasted for count in counts.values()],
            "engine_ms": [count.engine_ms for count in counts.values()],
        },
    )


def _count_in_batches(
    cursor: Cursor[Any], outcomes: Sequence[RequestOutcome], num_prompt_tokens: Mapping[int, int]
) -> None:
    """Keep the counters of batches, and find those that have no request without an outcome left.

    The prompt tokens of each request are no longer counted against its tenant's limit.
    """
    counts: dict[str, _Count] = defaultdict(_Count)
    released: dict[str, int] = defaultdict(int)
    for outcome in outcomes:
        counts[outcome.claimed.batch_id].add(outcome)
        released[outcome.claimed.batch_id] += num_prompt_tokens[outcome.request_id]
    cursor.execute(
        _COUNT_IN_BATCHES,
        {
            "ids": list(counts),
            "succeeded": [count.succeeded for count in counts.values()],
            "unsuccessful": [count.unsuccessful for count in counts.values()],
            "prompt": [count.prompt for count in counts.values()],
            "cached": [count.cached for count in counts.values()],
            "completion": [count.completion for count in counts.values()],
            "released": [released[batch_id] for batch_id in counts],
            "queue": CONTROL_QUEUE,
            "task": FINALIZE,
        },
    )


def _storable(message: str | None) -> str | None:
    """TEXT holds no NUL and no lone surrogate."""
    if message is None:
        return None
    return message.replace("\0", "\ufffd").encode(errors="replace").decode()

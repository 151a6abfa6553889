"""Claims on slices and their leases: who works on what, by the database's clock alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, text

from pipeline.billing import holds
from pipeline.jobs import outbox
from pipeline.jobs.choosing import BEST, TAKE_TURN, queue_params
from pipeline.jobs.pausing import hold_or_pause
from pipeline.jobs.planning import EXPECTED_ANSWER_TOKENS
from pipeline.jobs.waste import WastePart, add_waste_of, thrown_away
from pipeline.schemas.generation import GenerationParams
from pipeline.settings import get_settings
from pipeline.tables.requests import OutcomeKind
from pipeline.tables.slices import AttemptEnd
from pipeline.tokenization import unpack_token_ids


@dataclass(frozen=True, slots=True)
class ClaimedSlice:
    """A slice with a lease on it, and what is the same for all of its requests."""

    id: int
    lease_epoch: int
    group_id: str
    batch_id: str
    position: int
    deadline: datetime
    tenant_id: str
    api_key_id: str
    model: str
    endpoint: str
    #: Whether the tokens of its answers are kept, for receipts.
    has_receipts: bool = False
    #: W3C `traceparent` of the call that made the batch; None where traces are off.
    trace_context: str | None = None
    #: PostgreSQL's id of the transaction of the claim: see `is_committed`.
    transaction_id: int = 0

    @property
    def ids(self) -> dict[str, Any]:
        """What logs say of it: tenant, batch, slice and attempt."""
        return {"tenant": self.tenant_id, "batch": self.batch_id, "slice": self.id, "attempt": self.lease_epoch}


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A request that has no outcome yet."""

    id: int
    custom_id: str
    prompt_token_ids: list[int]
    params: GenerationParams
    num_crash_exposures: int
    #: What earlier attempts have generated of its answer: `PartialOutput.data`, in order.
    output_parts: tuple[bytes, ...] = ()
    #: Tokens in those of the parts that are in SQL.
    num_saved_tokens: int = 0

    @property
    def num_expected_tokens(self) -> int:
        """The tokens that planning counted for it: the prompt, and an answer as long as most are."""
        return len(self.prompt_token_ids) + min(self.params.n * self.params.max_tokens, EXPECTED_ANSWER_TOKENS)

    def exposed(self, num_crash_exposures: int) -> PlannedRequest:
        """The same request after so many engine crashes."""
        return replace(self, num_crash_exposures=num_crash_exposures)

    def with_output(self, parts: tuple[bytes, ...]) -> PlannedRequest:
        """The same request with all that is known of its answer, of which some may not be in SQL yet."""
        return replace(self, output_parts=parts)


@dataclass(frozen=True, slots=True)
class Renewal:
    """What became of the leases that a group tried to renew."""

    #: Slices that are still the group's.
    held: frozenset[int]
    #: Of these, slices whose batch ends early, and the outcome of their requests.
    ending: Mapping[int, OutcomeKind]


_PARAMS: Final = msgspec.json.Decoder(GenerationParams)

_CLAIM: Final = text(f"""
    WITH RECURSIVE {BEST}, claimed AS (
        UPDATE slices s
        SET status = 'claimed', lease_epoch = lease_epoch + 1, group_id = :group_id,
            lease_expires_at = clock_timestamp() + make_interval(secs => :lease_seconds)
        FROM best WHERE s.id = best.id
        RETURNING s.id, s.lease_epoch, s.batch_id, s.position, s.deadline, s.tenant_id, best.service_class,
                  best.api_key_id, best.endpoint
    ), attempt AS (
        INSERT INTO attempts (slice_id, lease_epoch, batch_id, group_id)
        SELECT id, lease_epoch, batch_id, :group_id FROM claimed
    ), {TAKE_TURN}
    SELECT claimed.*, b.has_receipts, b.trace_context,
           CAST(CAST(pg_current_xact_id() AS text) AS bigint) AS transaction_id
    FROM claimed JOIN batches b ON b.id = claimed.batch_id
""")  # noqa: S608 - constants

# A claim that was rolled back may have been made again by the same group, with the same epoch: only the transaction
# that wrote the attempt tells them apart.
_IS_COMMITTED: Final = text("""
    SELECT EXISTS (
        SELECT FROM slices s JOIN attempts a ON a.slice_id = s.id AND a.lease_epoch = s.lease_epoch
        WHERE s.id = :id AND s.lease_epoch = :epoch AND s.group_id = :group_id AND s.status = 'claimed'
          AND a.xmin = CAST(CAST(CAST(:transaction_id AS text) AS xid8) AS xid)
    )
""")

_REQUESTS: Final = text("""
    SELECT id, custom_id, prompt_token_ids, params::text, num_crash_exposures FROM requests
    WHERE slice_id = :slice_id AND outcome IS NULL ORDER BY id
""")
_PARTS: Final = text("""
    SELECT p.request_id, p.position, p.num_tokens, p.data
    FROM partial_outputs p JOIN requests r ON r.id = p.request_id
    WHERE r.slice_id = :slice_id AND r.outcome IS NULL ORDER BY p.request_id, p.position
""")

# Locks in the order of ids, as recording does, so that the two never wait for each other. A slice that was done
# while the group asked is still its own.
_RENEW: Final = text("""
    WITH mine AS (
        SELECT s.id FROM slices s JOIN unnest(CAST(:ids AS bigint[]), CAST(:epochs AS bigint[])) AS held (id, epoch)
            ON s.id = held.id AND s.lease_epoch = held.epoch
        WHERE s.group_id = :group_id AND s.status IN ('claimed', 'done') ORDER BY s.id FOR NO KEY UPDATE OF s
    )
    UPDATE slices s
    SET lease_expires_at = CASE WHEN s.status = 'claimed' THEN clock_timestamp() + make_interval(secs => :lease_seconds)
                           END
    FROM mine, batches b WHERE s.id = mine.id AND b.id = s.batch_id
    RETURNING s.id, b.status, b.expires_at <= clock_timestamp() AND b.pause_reason IS NULL
""")

_EXPIRE: Final = text("""
    UPDATE slices SET lease_expires_at = clock_timestamp() WHERE group_id = :group_id AND status = 'claimed'
""")

_RETURN: Final = text("""
    WITH returned AS (
        UPDATE slices SET status = 'pending', lease_expires_at = NULL
        WHERE id = :id AND lease_epoch = :epoch AND group_id = :group_id AND status = 'claimed'
        RETURNING id, lease_epoch
    )
    UPDATE attempts a SET ended_at = clock_timestamp(), "end" = :end, num_wasted_tokens = num_wasted_tokens + :wasted
    FROM returned WHERE a.slice_id = returned.id AND a.lease_epoch = returned.lease_epoch
""")


def claim_slice(
    conn: Connection, *, model: str, group_id: str, lease_seconds: float, last_slice: ClaimedSlice | None = None
) -> ClaimedSlice | None:
    """Claim the best pending slice of `model`, if there is one. `last_slice` is what this group claimed before."""
    params = {
        "model": model,
        "group_id": group_id,
        "lease_seconds": lease_seconds,
        "last_batch_id": last_slice.batch_id if last_slice else "",
        "next_position": last_slice.position + 1 if last_slice else 0,
        "last_tenant_id": last_slice.tenant_id if last_slice else "",
        **queue_params(get_settings()),
    }
    # Each batch that has no room in its budgets is paused, and passed over when the next is looked for.
    while (row := conn.execute(_CLAIM, params).one_or_none()) is not None:
        claimed = ClaimedSlice(
            id=row.id,
            lease_epoch=row.lease_epoch,
            group_id=group_id,
            batch_id=row.batch_id,
            position=row.position,
            deadline=row.deadline,
            tenant_id=row.tenant_id,
            api_key_id=row.api_key_id,
            model=model,
            endpoint=row.endpoint,
            has_receipts=row.has_receipts,
            trace_context=row.trace_context,
            transaction_id=row.transaction_id,
        )
        if hold_or_pause(conn, claimed):
            return claimed
    return None


def is_committed(conn: Connection, claimed: ClaimedSlice) -> bool:
    """Whether a claim whose commit was not answered was committed, and its slice is the group's still.

    To be asked before anything is written for it, in another transaction.
    """
    # A statement of its own: it waits for a commit that is still under way, and the next one sees that.
    conn.execute(text("SELECT FROM slices WHERE id = :id FOR NO KEY UPDATE"), {"id": claimed.id})
    params = {"id": claimed.id, "epoch": claimed.lease_epoch, "group_id": claimed.group_id}
    return bool(conn.scalar(_IS_COMMITTED, {**params, "transaction_id": claimed.transaction_id}))


def load_requests(conn: Connection, claimed: ClaimedSlice) -> list[PlannedRequest]:
    """The requests of a slice that have no outcome, in planned order."""
    rows = conn.execute(_REQUESTS, {"slice_id": claimed.id}).all()
    parts: dict[int, tuple[bytes, ...]] = {}
    num_saved: dict[int, int] = {}
    if claimed.lease_epoch > 1:  # else nobody has generated anything
        for request_id, position, num_tokens, data in conn.execute(_PARTS, {"slice_id": claimed.id}):
            if position == num_saved.get(request_id, 0):  # a gap can't be gone on from
                parts[request_id] = (*parts.get(request_id, ()), data)
                num_saved[request_id] = position + num_tokens
    return [
        PlannedRequest(
            row_id,
            custom_id,
            unpack_token_ids(packed),
            _PARAMS.decode(params),
            num_exposures,
            parts.get(row_id, ()),
            num_saved.get(row_id, 0),
        )
        for row_id, custom_id, packed, params, num_exposures in rows
    ]


def renew_leases(conn: Connection, group_id: str, held: Sequence[ClaimedSlice], lease_seconds: float) -> Renewal:
    """Renew the leases of `held`. A slice that is not in the answer was lost: nothing can be written for it."""
    if not held:
        return Renewal(frozenset(), {})
    rows = conn.execute(
        _RENEW,
        {
            "ids": [claimed.id for claimed in held],
            "epochs": [claimed.lease_epoch for claimed in held],
            "group_id": group_id,
            "lease_seconds": lease_seconds,
        },
    ).all()
    ending = {}
    for slice_id, status, is_past_window in rows:
        if status == "cancelling":
            ending[slice_id] = OutcomeKind.CANCELLED
        elif is_past_window:
            ending[slice_id] = OutcomeKind.EXPIRED
    return Renewal(frozenset(row[0] for row in rows), ending)


def expire_leases(conn: Connection, group_id: str) -> int:
    """End the leases of a group's former life, so that the sweeper need not wait for them; returns how many."""
    return conn.execute(_EXPIRE, {"group_id": group_id}).rowcount


def return_slice(conn: Connection, claimed: ClaimedSlice, waste: Sequence[WastePart] = ()) -> bool:
    """Give a slice back: pending again, with a ticket. False where it was no longer this group's.

    What was computed for requests without an outcome is waste of the attempt. Call `outbox.publish_soon` after the
    commit.
    """
    returned = conn.execute(
        _RETURN,
        {
            "id": claimed.id,
            "epoch": claimed.lease_epoch,
            "group_id": claimed.group_id,
            "end": AttemptEnd.RETURNED.value,
            "wasted": thrown_away(waste),
        },
    )
    if returned.rowcount == 0:
        return False
    add_waste_of(conn, claimed, waste)
    holds.release(conn, [claimed.id])
    outbox.add_tickets(conn, claimed.model, 1)
    return True


# What a group knows plus one, and not what stands there plus one: the same crash, noted twice, counts once.
_COUNT_CRASH_EXPOSURES: Final = text("""
    UPDATE requests r SET num_crash_exposures = greatest(r.num_crash_exposures, known.num + 1)
    FROM unnest(CAST(:ids AS bigint[]), CAST(:nums AS integer[])) AS known(id, num)
    WHERE r.id = known.id AND r.outcome IS NULL RETURNING r.id, r.num_crash_exposures
""")


def count_crash_exposures(conn: Connection, requests: Iterable[PlannedRequest]) -> dict[int, int]:
    """Note that an engine crashed with these requests in it; returns how often that has happened to each.

    By id; a request that has an outcome is not there. May be done again after a commit of unknown fate.
    """
    known = sorted((request.id, request.num_crash_exposures) for request in requests)
    rows = conn.execute(_COUNT_CRASH_EXPOSURES, {"ids": [id for id, _ in known], "nums": [num for _, num in known]})
    return {row.id: row.num_crash_exposures for row in rows}

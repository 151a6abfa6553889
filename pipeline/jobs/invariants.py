"""What must be true of SQL at any moment, each as a query for whatever breaks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Invariant:
    statement: str
    #: Rows of (subject, found) for whatever breaks it.
    query: str


#: Of batches, slices, requests and attempts.
OF_BATCHES: Final = (
    Invariant(
        "a batch that has ended has an outcome for every request",
        """
        SELECT 'batch ' || b.id, count(*) || ' requests without an outcome, and the batch is ' || b.status
        FROM batches b JOIN requests r ON r.batch_id = b.id
        WHERE b.status IN ('completed', 'cancelled', 'expired') AND r.outcome IS NULL GROUP BY b.id, b.status
        """,
    ),
    Invariant(
        "the counters of a batch are those of its requests",
        """
        SELECT 'batch ' || b.id, format('counts %s requests, %s succeeded and %s not; there are %s, %s and %s',
               b.num_requests, b.num_succeeded, b.num_unsuccessful, c.requests, c.succeeded, c.unsuccessful)
        FROM batches b LEFT JOIN LATERAL (
            SELECT count(*) AS requests, count(*) FILTER (WHERE outcome = 'succeeded') AS succeeded,
                   count(*) FILTER (WHERE outcome <> 'succeeded') AS unsuccessful
            FROM requests r WHERE r.batch_id = b.id
        ) c ON true
        WHERE b.status <> 'validating' AND NOT EXISTS (SELECT FROM dropped_batches d WHERE d.batch_id = b.id)
          AND (b.num_requests, b.num_succeeded, b.num_unsuccessful) <> (c.requests, c.succeeded, c.unsuccessful)
        """,
    ),
    Invariant(
        "every request is in one slice of its batch",
        """
        SELECT 'request ' || r.id, CASE WHEN s.id IS NULL THEN 'in no slice' ELSE 'in a slice of ' || s.batch_id END
        FROM requests r LEFT JOIN slices s ON s.id = r.slice_id WHERE s.id IS NULL OR s.batch_id <> r.batch_id
        """,
    ),
    Invariant(
        "a slice counts its requests without an outcome, and is done when there are none",
        """
        SELECT 'slice ' || s.id, format('%s, counts %s of %s without an outcome; there are %s of %s',
               s.status, s.num_unfinished, s.num_requests, c.unfinished, c.requests)
        FROM slices s LEFT JOIN LATERAL (
            SELECT count(*) AS requests, count(*) FILTER (WHERE outcome IS NULL) AS unfinished
            FROM requests r WHERE r.slice_id = s.id
        ) c ON true
        WHERE s.num_requests <> c.requests OR s.num_unfinished <> c.unfinished
           OR (s.status = 'done') <> (c.unfinished = 0)
        """,
    ),
    Invariant(
        "a request has an answer if it succeeded, and no other has one",
        """
        SELECT 'request ' || r.id, CASE WHEN a.request_id IS NULL THEN 'succeeded without an answer'
                                        ELSE 'has an answer, and its outcome is ' || coalesce(r.outcome, 'open') END
        FROM requests r LEFT JOIN results a ON a.request_id = r.id
        WHERE (r.outcome IS NOT DISTINCT FROM 'succeeded') <> (a.request_id IS NOT NULL)
        """,
    ),
    Invariant(
        "an attempt counts the answers that it recorded",
        """
        SELECT format('attempt %s at slice %s', t.lease_epoch, t.slice_id),
               format('counts %s answers; there are %s', t.num_succeeded, count(a.request_id))
        FROM attempts t LEFT JOIN results a ON a.slice_id = t.slice_id AND a.lease_epoch = t.lease_epoch
        GROUP BY t.slice_id, t.lease_epoch, t.num_succeeded HAVING count(a.request_id) <> t.num_succeeded
        """,
    ),
    Invariant(
        "every answer was recorded by an attempt",
        """
        SELECT 'request ' || a.request_id, format('no attempt %s at slice %s', a.lease_epoch, a.slice_id)
        FROM results a LEFT JOIN attempts t ON t.slice_id = a.slice_id AND t.lease_epoch = a.lease_epoch
        WHERE t.slice_id IS NULL
        """,
    ),
    Invariant(
        "every answer was recorded by the group of its attempt, before that ended",
        """
        SELECT 'request ' || a.request_id, format('recorded at %s by %s, whose lease was %s at %s',
               a.created_at, a.group_id, t."end", t.ended_at)
        FROM results a JOIN attempts t ON t.slice_id = a.slice_id AND t.lease_epoch = a.lease_epoch
        WHERE a.created_at > t.ended_at OR a.group_id <> t.group_id
        """,
    ),
    Invariant(
        "no lease outlives its owner by more than its length",
        """
        SELECT 'slice ' || id, format('leased by %s until %s', group_id, lease_expires_at) FROM slices
        WHERE status = 'claimed'
          AND lease_expires_at < clock_timestamp() - make_interval(secs => :lease_seconds + :sweep_seconds)
        """,
    ),
    Invariant(
        "each administrative act follows from the one before",
        """
        SELECT 'act ' || seq, 'the one before is ' || coalesce(before::text, 'none') FROM (
            SELECT seq, previous_hash, lag(seq) OVER acts AS before, lag(hash) OVER acts AS hash_before FROM audit_log
            WINDOW acts AS (ORDER BY seq)
        ) a
        WHERE seq <> coalesce(before, 0) + 1 OR previous_hash <> coalesce(hash_before, decode(repeat('00', 32), 'hex'))
        """,
    ),
    Invariant(
        "a batch frees no more of its tenant's limit than its requests that ended",
        """
        SELECT 'batch ' || b.id, format('frees %s of %s tokens; those of its requests that ended are %s',
               b.num_released_tokens, b.num_reserved_tokens, coalesce(r.num_tokens, 0))
        FROM batches b LEFT JOIN (
            SELECT batch_id, sum(num_prompt_tokens) AS num_tokens FROM requests WHERE outcome IS NOT NULL
            GROUP BY batch_id
        ) r ON r.batch_id = b.id
        WHERE b.num_released_tokens > coalesce(r.num_tokens, 0)
          AND NOT EXISTS (SELECT FROM dropped_batches d WHERE d.batch_id = b.id)
        """,
    ),
    Invariant(
        "nothing is kept of an answer in parts once there is an outcome",
        """
        SELECT 'request ' || r.id, count(*) || ' parts, and its outcome is ' || r.outcome
        FROM partial_outputs p JOIN requests r ON r.id = p.request_id WHERE r.outcome IS NOT NULL GROUP BY r.id
        """,
    ),
    # The tables that are partitioned have no foreign keys.
    Invariant(
        "nothing is kept of a request that is not there",
        """
        SELECT 'result of request ' || a.request_id, 'there is no such request'
        FROM results a LEFT JOIN requests r ON r.id = a.request_id WHERE r.id IS NULL
        UNION ALL
        SELECT 'usage event of request ' || u.request_id, 'there is no result'
        FROM usage_events u LEFT JOIN results a ON a.request_id = u.request_id WHERE a.request_id IS NULL
        UNION ALL
        SELECT 'rated line of request ' || l.request_id, 'there is no usage of ' || l.meter
        FROM rated_lines l LEFT JOIN metered_usage u ON u.request_id = l.request_id AND u.meter = l.meter
        WHERE u.request_id IS NULL
        UNION ALL
        SELECT 'rated line of request ' || l.request_id, 'there is no card or no ledger transaction of it'
        FROM rated_lines l LEFT JOIN ledger_transactions t ON t.id = l.ledger_transaction_id
        LEFT JOIN rate_cards k ON k.id = l.rate_card_id WHERE t.id IS NULL OR k.id IS NULL
        UNION ALL
        SELECT 'price of request ' || a.request_id, 'there is no card or no ledger transaction of it'
        FROM results a LEFT JOIN ledger_transactions t ON t.id = a.ledger_transaction_id
        LEFT JOIN rate_cards k ON k.id = a.rate_card_id
        WHERE a.rate_card_id IS NOT NULL AND (t.id IS NULL OR k.id IS NULL)
        """,
    ),
)

#: Hold only where nothing is under way.
AT_REST: Final = (
    Invariant(
        "every batch has ended",
        """
        SELECT 'batch ' || id, status FROM batches
        WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
        """,
    ),
    Invariant("every message is published", "SELECT 'message ' || id, task FROM outbox"),
    Invariant(
        "every attempt has ended",
        """
        SELECT format('attempt %s at slice %s', lease_epoch, slice_id), 'by ' || group_id
        FROM attempts WHERE "end" IS NULL
        """,
    ),
    Invariant(
        "no engine holds anything",
        """
        SELECT 'group ' || id, format('%s running, %s waiting, %s tokens of its cache in use',
               info ->> 'running', info ->> 'waiting', info ->> 'kv_tokens_used')
        FROM groups WHERE state = 'ready'
          AND (info ->> 'running')::bigint + (info ->> 'waiting')::bigint + (info ->> 'kv_tokens_used')::bigint > 0
        """,
    ),
)

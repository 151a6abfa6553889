"""Whose slice is next: by class, then by fair share, then by deadline, then by what the group has in its cache.

1. The class: `priority` before `standard` before `flex`. So that a lower one does not starve, each group begins one
   slice of it out of turn once it has waited for the ageing time and had none from this group for as long.
2. The tenant with the lowest counter of this class and model (`pipeline/jobs/fairness.py`). The tenant whose batch the
   group is at goes first while its counter is ahead of that by no more than `fair_affinity_tokens`.
3. Of the tenant's slices the one with the nearest deadline; where several have the same, the one that goes on where the
   group is, whose beginning is in its cache, or else the oldest.

A slice that another transaction has locked is passed over, and where a tenant has no other, so is the tenant.
"""

from __future__ import annotations

from typing import Final

from pipeline.jobs.fairness import AT_WORK, COUNTER, HEADS, IS_WORKED_ON, ITS_BATCH_IS_WORKED_ON
from pipeline.settings import Settings
from pipeline.tables.batches import ServiceClass

#: The least of these is served first.
CLASS_ORDER: Final = {ServiceClass.PRIORITY: 0, ServiceClass.STANDARD: 1, ServiceClass.FLEX: 2}


def class_order(column: str) -> str:
    """SQL for the place of a class in the order of serving."""
    cases = " ".join(f"WHEN '{kind.value}' THEN {place}" for kind, place in CLASS_ORDER.items())
    return f"CASE {column} {cases} END"


# Materialized: the order is that in which the rows are looked at below, one tenant after the other until one has a
# slice that can be locked.
_QUEUE: Final = f"""
    {HEADS}, {AT_WORK}, classes AS (
        SELECT service_class, turn_at, turn_at < now() - make_interval(secs => :ageing_seconds)
                                   AND bool_or(begun_at < now() - make_interval(secs => :ageing_seconds)) AS is_overdue
        FROM (
            SELECT h.service_class, b.in_progress_at AS begun_at,
                   CASE h.service_class WHEN 'standard' THEN t.standard_at WHEN 'flex' THEN t.flex_at END AS turn_at
            FROM heads h JOIN batches b ON b.id = h.batch_id LEFT JOIN class_turns t ON t.group_id = :group_id
        ) head GROUP BY service_class, turn_at
    ), queue AS MATERIALIZED (
        SELECT h.service_class, h.tenant_id, h.deadline
        FROM heads h JOIN classes c ON c.service_class = h.service_class
        LEFT JOIN fair_shares f
            ON f.model = :model AND f.service_class = h.service_class AND f.tenant_id = h.tenant_id
        LEFT JOIN at_work w ON w.service_class = h.service_class AND w.tenant_id = h.tenant_id
        LEFT JOIN tenant_weights weights ON weights.tenant_id = h.tenant_id
        ORDER BY c.is_overdue IS TRUE DESC, CASE WHEN c.is_overdue THEN c.turn_at END, {class_order("h.service_class")},
                 {COUNTER} - CASE WHEN h.tenant_id = :last_tenant_id
                                  THEN CAST(:affinity_tokens AS numeric) / coalesce(weights.weight, 1) ELSE 0 END,
                 h.deadline, h.id
    )
"""  # noqa: S608 - constants

#: Of a slice `s`: whether it waits in the queue `q`.
_WAITS: Final = """
    s.model = :model AND s.status = 'pending' AND s.service_class = q.service_class AND s.tenant_id = q.tenant_id
"""

# Of these, whether its deadline is that of `d`. Of an equality PostgreSQL may conclude that the order of ids alone is
# what is wanted, and look through the slices of all batches in it.
_HAS_DEADLINE: Final = f"{_WAITS} AND s.deadline >= d.deadline AND s.deadline <= d.deadline"

# The deadlines in a queue `q` that have a slice to work on. The slices of a batch have one deadline: of a batch that is
# paused, however many they are, one is looked at, and the next deadline is found by the index.
_DEADLINES: Final = f"""
    WITH RECURSIVE deadlines (deadline, batch_id) AS (
        (SELECT s.deadline, s.batch_id FROM slices s WHERE {_WAITS} ORDER BY s.deadline, s.id LIMIT 1)
        UNION ALL
        SELECT following.* FROM deadlines d CROSS JOIN LATERAL (
            SELECT s.deadline, s.batch_id FROM slices s WHERE {_WAITS} AND s.deadline > d.deadline
            ORDER BY s.deadline, s.id LIMIT 1
        ) following
    )
    SELECT d.deadline FROM deadlines d
    WHERE (SELECT {IS_WORKED_ON} FROM batches b WHERE b.id = d.batch_id) OR d.batch_id <> (
        SELECT s.batch_id FROM slices s WHERE {_HAS_DEADLINE} ORDER BY s.deadline DESC, s.id DESC LIMIT 1
    )
"""  # noqa: S608 - constants

#: Tables for `WITH RECURSIVE`, the last of which, `best`, is the slice to claim, locked, or has no row.
# By its batch and position a slice is found at once; one condition in all keeps PostgreSQL from looking through the
# queue for it. The last of the three is for what the second passes over, where nothing else is left: slices that are
# between those of a paused batch, with the very same deadline.
BEST: Final = f"""
    {_QUEUE}, chosen AS (
        SELECT slice.* FROM queue q CROSS JOIN LATERAL (
            SELECT * FROM (
                SELECT s.id, s.service_class, s.batch_id FROM slices s
                WHERE s.batch_id = :last_batch_id AND s.position = :next_position
                  AND ({_WAITS} AND s.deadline <= q.deadline) IS TRUE AND {ITS_BATCH_IS_WORKED_ON}
                FOR NO KEY UPDATE OF s SKIP LOCKED
            ) next_there
            UNION ALL
            SELECT nearest.* FROM ({_DEADLINES}) d CROSS JOIN LATERAL (
                SELECT s.id, s.service_class, s.batch_id FROM slices s
                WHERE {_HAS_DEADLINE} AND {ITS_BATCH_IS_WORKED_ON}
                ORDER BY s.deadline, s.id LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED
            ) nearest
            LIMIT 1
        ) slice
        UNION ALL
        SELECT slice.* FROM queue q CROSS JOIN LATERAL (
            SELECT s.id, s.service_class, s.batch_id FROM slices s WHERE {_WAITS} AND {ITS_BATCH_IS_WORKED_ON}
            ORDER BY s.deadline, s.id LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED
        ) slice
        LIMIT 1
    ), best AS (
        SELECT chosen.id, chosen.service_class, b.api_key_id, b.endpoint
        FROM chosen JOIN batches b ON b.id = chosen.batch_id
    )
"""  # noqa: S608 - constants

#: A row of `class_turns` for a group that has none, and the turn of the class of `claimed`: rarely, so that the threads
#: of a group do not wait for each other here.
TAKE_TURN: Final = """
    first_turn AS (
        INSERT INTO class_turns (group_id) SELECT :group_id FROM claimed ON CONFLICT DO NOTHING
    ), turn AS (
        UPDATE class_turns t
        SET standard_at = CASE c.service_class WHEN 'standard' THEN clock_timestamp() ELSE t.standard_at END,
            flex_at = CASE c.service_class WHEN 'flex' THEN clock_timestamp() ELSE t.flex_at END
        FROM claimed c
        WHERE t.group_id = :group_id
          AND CASE c.service_class WHEN 'standard' THEN t.standard_at WHEN 'flex' THEN t.flex_at END
              < clock_timestamp() - make_interval(secs => CAST(:ageing_seconds AS float8) / 10)
    )
"""


def queue_params(settings: Settings) -> dict[str, object]:
    """Those of the parameters of `BEST` and `TAKE_TURN` that settings hold."""
    return {
        "cached_weight": settings.fair_cached_weight,
        "output_weight": settings.fair_output_weight,
        "affinity_tokens": settings.fair_affinity_tokens,
        "ageing_seconds": settings.class_ageing_seconds,
    }

from __future__ import annotations

import json
import os
import socket
import subprocess

import pytest
from seeds import MODEL, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from pipeline.fleet_views import GroupView, view_groups
from pipeline.jobs.claiming import claim_slice
from pipeline.tables import GroupState

HERE = f"group-0@{socket.gethostname()}"


@pytest.fixture(autouse=True)
def _model(database: Engine) -> None:
    seed_model(database)


def start_group(database: Engine, group: str = HERE, pids: tuple[int, ...] = (), **info: object) -> None:
    sql(
        database,
        "INSERT INTO groups (id, model, state, pid, rank_pids, info)"
        " VALUES (:id, :model, 'ready', 1, CAST(:pids AS jsonb), CAST(:info AS jsonb))",
        id=group,
        model=MODEL,
        pids=json.dumps(pids),
        info=json.dumps(info),
    )


def view(database: Engine) -> list[GroupView]:
    with Session(database) as session:
        return view_groups(session)


def test_a_group_shows_what_it_holds_and_how_fast_it_is(database: Engine) -> None:
    seed_batch(database, seed_tenant(database), [10, 10])
    start_group(database, kv_tokens=1000, kv_tokens_used=250, running=4)
    for _ in range(2):
        with database.begin() as conn:
            assert claim_slice(conn, model=MODEL, group_id=HERE, lease_seconds=60) is not None
    # Both at once, for 20 s: the time counts once.
    sql(database, "UPDATE attempts SET started_at = now() - interval '20 seconds', ended_at = now(), num_tokens = 500")

    [group] = view(database)

    assert (group.name, group.host) == ("group-0", socket.gethostname())
    assert (group.num_slices, group.num_requests, group.num_tokens) == (2, 20, 1000)
    assert group.tokens_per_second == pytest.approx(50)
    assert (group.kv_use, group.number("running"), group.number("waiting")) == (0.25, 4, 0)
    assert not group.is_lost


def test_an_idle_group_has_no_speed(database: Engine) -> None:
    start_group(database)
    [group] = view(database)
    assert (group.tokens_per_second, group.kv_use, group.num_slices) == (None, None, 0)


def test_ranks_are_looked_at_where_the_group_is(database: Engine) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    start_group(database, pids=(os.getpid(), ended.pid))
    start_group(database, "group-0@elsewhere", pids=(os.getpid(),))
    sql(database, "UPDATE groups SET pid = :pid", pid=os.getpid())
    here, elsewhere = sorted(view(database), key=lambda group: group.host != socket.gethostname())
    assert [rank.is_alive for rank in here.ranks] == [True, False]
    assert here.rank_bytes is not None
    assert here.rank_bytes > 1024**2
    assert [rank.is_alive for rank in elsewhere.ranks] == [None]
    assert elsewhere.rank_bytes is None
    assert here.parent_bytes is not None
    assert here.parent_bytes > 1024**2
    assert elsewhere.parent_bytes is None


def test_a_silent_group_is_lost_and_a_stopped_one_is_history(database: Engine) -> None:
    start_group(database)
    sql(database, "UPDATE groups SET heartbeat_at = now() - interval '1 hour'")
    assert [group.is_lost for group in view(database)] == [True]

    sql(database, "UPDATE groups SET state = 'stopped'")
    assert [(group.state, group.is_lost) for group in view(database)] == [(GroupState.STOPPED, False)]

    sql(database, "UPDATE groups SET heartbeat_at = now() - interval '2 days'")
    assert view(database) == []

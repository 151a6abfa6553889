"""Groups and the queue in the console: all of it for operators, what concerns them for others."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable

import pytest
from console_pages import Person
from running_gateways import Tenant
from seeds import MODEL, SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.jobs import queue_views
from pipeline.settings import PREFIX, get_settings
from pipeline.tables.session import transaction
from pipeline.tenancy.audit_log import list_entries

GROUP = f"group-0@{socket.gethostname()}"


@pytest.fixture
def group(database: Engine) -> str:
    seed_model(database)
    sql(
        database,
        "INSERT INTO groups (id, model, state, pid, rank_pids, info) VALUES (:id, :model, 'ready', 7,"
        " CAST(:pids AS jsonb), CAST(:info AS jsonb))",
        id=GROUP,
        model=MODEL,
        pids=json.dumps([os.getpid(), 2**22 + 1]),
        info=json.dumps({"engine": "native", "device": "cpu", "kv_tokens": 1000, "kv_tokens_used": 250, "restarts": 3}),
    )
    return GROUP


def owner_of(database: Engine, tenant: Tenant) -> SeededTenant:
    [[key]] = sql(database, "SELECT id FROM api_keys WHERE tenant_id = :id ORDER BY created_at LIMIT 1", id=tenant.id)
    return SeededTenant(tenant.id, key)


def test_an_operator_sees_each_group_and_its_ranks(group: str, operate: Callable[[], Person]) -> None:
    page = operate().page("/console/groups")
    assert f"group-0 on {socket.gethostname()} ready" in page
    assert "25% of 1,000 tokens" in page
    assert "Engine restarts 3" in page
    assert f"rank 0 {os.getpid()} alive" in page
    assert f"rank 1 {2**22 + 1} dead" in page


def test_memory_of_gpus_is_told_apart_from_that_of_ranks(
    group: str, operate: Callable[[], Person], database: Engine
) -> None:
    more = json.dumps({"device": "cuda", "hardware": "NVIDIA H100", "devices": 2, "memory_bytes": 160 * 1024**3})
    sql(database, "UPDATE groups SET info = info || CAST(:more AS jsonb)", more=more)
    operator = operate()
    assert "NVIDIA H100 × 2 Memory 160.0 GiB on GPUs, " in operator.page("/console/groups")
    sql(database, "UPDATE groups SET id = 'group-0@elsewhere', info = info || '{\"device\": \"cpu\"}'")
    assert "Memory 160.0 GiB in all" in operator.page("/console/groups")


def test_a_silent_group_is_told(group: str, operate: Callable[[], Person], database: Engine) -> None:
    sql(database, "UPDATE groups SET heartbeat_at = now() - interval '2 minutes'")
    assert "silent for 2 min" in operate().page("/console/groups")


def test_others_see_how_many_there_are(group: str, enter: Callable[..., Person]) -> None:
    person = enter("acme")
    page = person.page("/console/groups")
    assert f"{MODEL} 1 0 0" in page
    assert "An operator's key shows" in page
    assert socket.gethostname() not in page
    assert str(os.getpid()) not in page
    assert person.post(f"/console/groups/{GROUP}/drain").status_code == 403


def test_an_operator_drains_a_group_and_lets_it_go_on(
    group: str, operate: Callable[[], Person], database: Engine
) -> None:
    operator = operate()
    assert operator.post(f"/console/groups/{GROUP}/drain").status_code == 303
    assert sql(database, "SELECT is_drain_wanted FROM groups") == [(True,)]
    assert "asked to drain Resume" in operator.page("/console/groups")
    assert operator.post(f"/console/groups/{GROUP}/resume").status_code == 303
    assert sql(database, "SELECT is_drain_wanted FROM groups") == [(False,)]
    assert operator.post("/console/groups/none/drain").status_code == 404
    with transaction() as session:
        assert all(entry.actor.startswith("key_") for entry in list_entries(session, act="group"))


def test_no_group_and_no_model_are_empty_states(
    database: Engine, operate: Callable[[], Person], redis_url: str
) -> None:
    operator = operate()
    assert "No groups" in operator.page("/console/groups")
    assert "Nothing is served yet" in operator.page("/console/queue")


def test_an_operator_sees_who_waits_and_who_is_next(
    group: str, database: Engine, acme: Tenant, redis_url: str, operate: Callable[[], Person]
) -> None:
    seed_batch(database, owner_of(database, acme), [10, 10])
    seed_batch(database, seed_tenant(database, "globex"), [10])
    sql(database, "UPDATE batches SET in_progress_at = now() - interval '90 seconds'")
    sql(
        database,
        "INSERT INTO fair_shares (model, service_class, tenant_id, served) VALUES (:m, 'standard', :t, 5000)",
        m=MODEL,
        t=acme.id,
    )
    page = operate().page("/console/queue")
    assert "3 slices waiting" in page
    assert "0 tickets in Redis" in page
    assert (
        "Next is globex in standard: of those who wait in its class it was served least, 0 weighted tokens against"
        " 5,000 of acme." in page
    )
    assert page.index("globex standard 1 0") < page.index("acme standard 2 0")
    assert "1 min 3" in page


def test_a_tenant_sees_its_own_queue_alone(
    group: str, database: Engine, acme: Tenant, redis_url: str, enter: Callable[..., Person]
) -> None:
    seed_batch(database, owner_of(database, acme), [10, 10])
    seed_batch(database, seed_tenant(database, "globex"), [10])
    page = enter(acme).page("/console/queue")
    assert "acme standard 2 0" in page
    assert "2 slices waiting" in page
    assert "globex" not in page
    assert "Next is" not in page
    assert "outbox" not in page


def test_no_transaction_is_open_while_redis_is_asked(
    group: str, database: Engine, operate: Callable[[], Person], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, ask, num_open = operate(), queue_views.queue_lengths, []

    def look(names: Iterable[str]) -> dict[str, int]:
        num_open.extend(
            sql(
                database,
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
                " AND pid <> pg_backend_pid()",
            )
        )
        return ask(names)

    monkeypatch.setattr(queue_views, "queue_lengths", look)
    assert "0 tickets in Redis" in operator.page("/console/queue")
    assert num_open == [(0,)]


def test_without_redis_the_queue_is_still_shown(
    group: str, operate: Callable[[], Person], settings_env: pytest.MonkeyPatch
) -> None:
    operator = operate()
    settings_env.setenv(PREFIX + "REDIS_URL", "redis://127.0.0.1:1/0")
    get_settings.cache_clear()
    page = operator.page("/console/queue")
    assert "Redis does not answer" in page
    assert "tickets not known" in page

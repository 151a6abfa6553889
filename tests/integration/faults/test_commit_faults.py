"""The life of several batches in one process, with every place that commits failing before and after its commit.

Gateway, control's tasks and two groups, one after the other, are the real ones over a real PostgreSQL and Redis; the
engine answers by script. What the clients were promised must hold whichever commit broke.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from commit_faults import CommitFaults, Moment, committing_functions
from running_gateways import new_tenant, serve
from seeds import seed_model
from service_world import World
from sqlalchemy import Engine
from tokenizer_folders import byte_level
from webhook_receivers import receiver

from pipeline.settings import PREFIX, get_settings

#: Short times, and so many attempts that no slice fails because faults come one after the other.
SETTINGS = {"SWEEP_SECONDS": "0.05", "SLICE_REQUESTS": "4", "LEASE_SECONDS": "1", "MAX_ATTEMPTS": "1000"}
SETTINGS |= {"WEBHOOK_HTTP": "true", "WEBHOOK_PRIVATE_NETWORKS": "127.0.0.0/8,::1/128"}

#: Every function of these that opens a transaction; the audit is what looks at the result.
SITES = committing_functions(
    *("pipeline/jobs", "pipeline/gateway", "pipeline/webhooks", "workers"),
    *("pipeline/billing/budgets.py", "pipeline/tenancy/queue_limits.py"),
)


@pytest.fixture
def world(
    database: Engine, redis_url: str, log_path: Path, settings_env: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[World]:
    for name, value in SETTINGS.items():
        settings_env.setenv(PREFIX + name, value)
    settings_env.setenv(PREFIX + "SIGNING_KEY_FILE", str(tmp_path / "signing_key.pem"))
    get_settings.cache_clear()
    settings_env.setattr("pipeline.gateway.quotes._WAIT_SECONDS", 0.0)  # control has no thread of its own here
    model_path = byte_level(tmp_path / "tiny")
    seed_model(database, path=str(model_path))
    with serve() as address, receiver() as hooks:
        tenant = new_tenant(address, "acme")
        yield World(database, tenant, redis_url, model_path, hooks)
        tenant.client.close()
        tenant.http.close()


def test_every_function_that_commits_is_passed(world: World) -> None:
    with CommitFaults(lambda site, number: None).of(world.database) as faults:
        world.live()
        world.check()
    assert SITES - faults.seen == set()
    assert faults.seen - SITES == set()
    print(faults.written)


@pytest.mark.parametrize("moment", Moment)
def test_the_first_commit_of_every_function_breaks(world: World, moment: Moment) -> None:
    with CommitFaults(lambda site, number: moment if number == 0 else None).of(world.database) as faults:
        world.live()
        world.check()
    assert {site for site, _ in faults.broken} == set(faults.written)


@pytest.mark.parametrize("seed", range(4))
def test_any_commit_may_break_in_any_way(world: World, seed: int) -> None:
    chance = random.Random(seed)

    def choose(site: str, number: int) -> Moment | None:
        return chance.choice(list(Moment)) if chance.random() < 0.2 else None

    with CommitFaults(choose).of(world.database) as faults:
        world.live()
        world.check()
    assert len(faults.broken) > 5


def test_innocent_requests_survive_any_number_of_lost_answers_to_the_count_of_crashes(world: World) -> None:
    """Each crash is counted again and again, and the others must not be taken for poison."""

    def choose(site: str, number: int) -> Moment | None:
        return Moment.AFTER if site.endswith("Recorder._after_crash") and number % 5 < 4 else None

    with CommitFaults(choose).of(world.database) as faults:
        world.live()
        world.check()
    assert len(faults.broken) >= 4

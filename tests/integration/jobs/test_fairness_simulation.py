"""A small version of `python -m benchmarks.fairness`: the real claim and recording, in simulated time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from sqlalchemy import Engine

from benchmarks.fairness import endless, few_beside_many
from pipeline.embedded import EmbeddedPostgres
from pipeline.ids import new_id
from pipeline.settings import get_settings
from pipeline.tables.session import make_engine


@pytest.fixture
def make_database(
    postgres_server: EmbeddedPostgres, settings_env: pytest.MonkeyPatch
) -> Iterator[Callable[[], Engine]]:
    """Makes migrated databases."""
    admin = postgres_server.url.replace("postgresql+psycopg", "postgresql")
    engines: list[Engine] = []

    def make() -> Engine:
        name = new_id("simulation")
        with psycopg.connect(admin, autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE template")
        engines.append(make_engine(postgres_server.url.rsplit("/", 1)[0] + "/" + name))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()
        with psycopg.connect(admin, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {engine.url.database} WITH (FORCE)")


def test_tenants_with_endless_work_are_served_alike_whatever_their_requests_are_like(
    make_database: Callable[[], Engine], settings_env: pytest.MonkeyPatch
) -> None:
    settings_env.setenv("RYZANSTEIN_FAIR_AFFINITY_TOKENS", "0")
    get_settings.cache_clear()
    by_share = endless(make_database(), "share", [1, 1], service=250_000, num_groups=1, num_sequences=16)
    assert by_share.greatest_gap <= by_share.bound
    assert by_share.jain >= 0.98
    by_arrival = endless(make_database(), "arrival", [1, 1], service=50_000, num_groups=1, num_sequences=16)
    assert by_arrival.greatest_gap > by_arrival.bound
    assert by_arrival.jain < 0.6


def test_service_follows_the_weights(make_database: Callable[[], Engine], settings_env: pytest.MonkeyPatch) -> None:
    run = endless(make_database(), "share", [1, 3], service=100_000, num_groups=1, num_sequences=16)
    assert run.greatest_gap <= run.bound
    assert run.jain >= 0.98


def test_a_small_batch_beside_a_large_one_takes_less_than_three_times_its_time_alone(
    make_database: Callable[[], Engine], settings_env: pytest.MonkeyPatch
) -> None:
    by_share = few_beside_many(make_database, "share", 2_500, times=1, num_groups=2, first_seconds=5)
    by_arrival = few_beside_many(make_database, "arrival", 2_500, times=1, num_groups=2, first_seconds=5)
    assert by_share.ratio < 3
    assert by_arrival.ratio > 3

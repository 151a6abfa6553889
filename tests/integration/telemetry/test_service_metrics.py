"""What control shows of the whole service: each number against the rows that it is of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from flaky_proxy import FlakyProxy
from older_usage import write_as_older_groups
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from running_groups import GROUP, make_settings, running_group, wait_for
from running_workers import num_results
from scraping import Scraped, scrape_registry
from seeds import MODEL, SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine
from tokenizer_folders import byte_level

from pipeline.settings import get_settings
from pipeline.telemetry.metrics.service.metrics import ServiceMetrics
from workers.backends.echo import EchoEngine


@pytest.fixture
def scrape(database: Engine, redis_url: str, settings_env: pytest.MonkeyPatch) -> Iterator[Callable[[], Scraped]]:
    """Reads everything anew, however long that takes."""
    made: list[ServiceMetrics] = []

    def scrape() -> Scraped:
        made.append(ServiceMetrics(get_settings(), wait_seconds=60.0))
        registry = CollectorRegistry()
        registry.register(made[-1])
        wait_for(lambda: scrape_registry(registry).all("ryzanstein_books_checked_timestamp_seconds"))
        return scrape_registry(registry)

    yield scrape
    for metrics in made:
        metrics.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return byte_level(tmp_path / "tiny")


@pytest.fixture
def tenants(database: Engine) -> list[SeededTenant]:
    seed_model(database)
    return [seed_tenant(database, name) for name in ("acme", "globex", "initech")]


def test_each_number_is_that_of_the_rows(
    database: Engine, tenants: list[SeededTenant], folder: Path, scrape: Callable[[], Scraped]
) -> None:
    acme, globex, initech = tenants
    seed_batch(database, acme, [3, 4], params={"max_tokens": 5})
    seed_batch(database, globex, [2], params={"max_tokens": 9})
    with running_group(database, EchoEngine(folder), model_path=folder):
        wait_for(lambda: num_results(database) == 9)
        wait_for(lambda: not sql(database, "SELECT 1 FROM slices WHERE status <> 'done'"))
    paused, stopped = seed_batch(database, acme, [5]), seed_batch(database, initech, [1])
    late = seed_batch(database, globex, [6, 6], window=timedelta(seconds=-60))
    sql(database, "UPDATE batches SET pause_reason = 'budget', paused_at = now() WHERE id = :id", id=paused)
    sql(database, "UPDATE batches SET pause_reason = 'client', paused_at = now() WHERE id = :id", id=stopped)
    sql(database, "INSERT INTO outbox (queue, task, args) VALUES ('generate.tiny', 'generate.slice', '[\"tiny\"]')")
    found = scrape()

    assert set(found.all("ryzanstein_metrics_section_up").values()) == {1.0}
    assert (found.value("ryzanstein_database_up"), found.value("ryzanstein_redis_up")) == (1, 1)
    assert found.value("ryzanstein_slices", model=MODEL, service_class="standard", state="pending") == 4
    assert found.value("ryzanstein_requests", model=MODEL, service_class="standard", state="pending") == 18
    assert found.value("ryzanstein_batches_paused") == 2
    assert found.total("ryzanstein_batches") == 5
    assert found.value("ryzanstein_finished_requests_total", model=MODEL, result="succeeded") == 9
    used = sql(
        database,
        "SELECT name, meter, sum(quantity) FROM metered_usage u JOIN tenants t ON t.id = u.tenant_id GROUP BY 1, 2",
    )
    assert used
    for name, meter, num_tokens in used:
        assert found.value("ryzanstein_tokens_total", model=MODEL, tenant=name, kind=meter) == num_tokens
    ((amount,),) = sql(database, "SELECT sum(amount) FROM usage_prices")
    assert found.total("ryzanstein_rated_amount_total", currency="USD") == pytest.approx(float(amount))
    assert found.value("ryzanstein_tenant_wait_seconds", tenant="acme", cause="budget") >= 0
    assert found.value("ryzanstein_tenant_wait_seconds", tenant="_other", cause="paused") >= 0
    assert found.value("ryzanstein_tenant_wait_seconds", tenant="globex", cause="no_group") >= 0
    assert -70 < found.value("ryzanstein_deadline_slack_seconds", model=MODEL, service_class="standard") < -60
    assert found.value("ryzanstein_batches_at_risk", model=MODEL, service_class="standard") == 1
    assert found.value("ryzanstein_outbox_messages", queue="generate.tiny") == 1
    assert found.value("ryzanstein_queue_messages", queue="control") >= 0
    assert found.value("ryzanstein_groups", model=MODEL, state="stopped") == 1
    assert found.value("ryzanstein_billing_drift_tokens", stage="engine_tokens") == 0
    assert found.value("ryzanstein_unrated_events") == 0
    assert found.value("ryzanstein_table_size_bytes", table="requests") > 0, "its partitions are added up"
    assert late


def test_what_does_not_agree_in_the_books_is_shown(
    database: Engine, tenants: list[SeededTenant], folder: Path, scrape: Callable[[], Scraped]
) -> None:
    seed_batch(database, tenants[0], [2], params={"max_tokens": 5})
    with running_group(database, EchoEngine(folder), model_path=folder):
        wait_for(lambda: num_results(database) == 2)
    write_as_older_groups(database)
    sql(database, "UPDATE usage_events SET quantity = quantity + 3 WHERE meter = 'output'")
    sql(database, "DELETE FROM rated_lines WHERE meter = 'input_uncached'")
    found = scrape()
    assert found.value("ryzanstein_billing_drift_tokens", stage="rated_tokens") == 6
    assert found.value("ryzanstein_unrated_events") == 2
    assert found.value("ryzanstein_billing_drift_amount", stage="ledger", currency="USD") > 0


def test_series_of_a_group_that_is_gone_disappear(
    database: Engine, tenants: list[SeededTenant], folder: Path, scrape: Callable[[], Scraped]
) -> None:
    def looks_silent() -> bool:
        """The group's first heartbeat may come in between; with such a lease no other does."""
        sql(database, "UPDATE groups SET heartbeat_at = now() - interval '20 seconds'")
        return scrape().value("ryzanstein_groups", state="silent") == 1

    with running_group(database, EchoEngine(folder), make_settings(lease_seconds=6_000), model_path=folder):
        running = scrape()
        assert running.value("ryzanstein_group_heartbeat_age_seconds", group=GROUP) < 60
        assert running.value("ryzanstein_groups", state="ready") == 1
        wait_for(looks_silent, timeout=60)
    gone = scrape()
    assert gone.all("ryzanstein_group_heartbeat_age_seconds") == {}
    assert gone.value("ryzanstein_groups", state="ready") == gone.value("ryzanstein_groups", state="silent") == 0


def test_a_database_that_hangs_is_told_and_keeps_no_scrape_waiting(
    database: Engine, redis_url: str, settings_env: pytest.MonkeyPatch
) -> None:
    direct = database.url
    assert direct.port is not None
    proxy = FlakyProxy(direct.port)
    url = direct.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
    metrics = ServiceMetrics(get_settings().model_copy(update={"database_url": SecretStr(url)}))
    registry = CollectorRegistry()
    registry.register(metrics)
    assert wait_for(lambda: (now := scrape_registry(registry)).all("ryzanstein_batches") and now)
    proxy.may_answer.clear()
    try:
        began = time.monotonic()
        found = wait_for(lambda: (now := scrape_registry(registry)).value("ryzanstein_database_up") == 0 and now)
        assert time.monotonic() - began < 10, "the second scrape knows it at the latest"
        assert found.all("ryzanstein_batches") == {}
        assert found.value("ryzanstein_redis_up") == 1
    finally:
        proxy.may_answer.set()
    wait_for(lambda: scrape_registry(registry).value("ryzanstein_database_up") == 1)
    metrics.close()
    proxy.close()

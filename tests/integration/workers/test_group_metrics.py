"""`/metrics` of a group: what its engine measured, and what became of its ranks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from model_folders import random_llama
from running_groups import GROUP, make_settings, running_group, wait_for
from running_workers import num_results
from scraping import Scraped, scrape
from seeds import SeededTenant, seed_batch, sql
from sqlalchemy import Engine as Database

from pipeline.telemetry.metrics.group_names import GROUP_METRICS
from pipeline.telemetry.metrics.vllm_names import VLLM_METRICS
from workers.backends.crash_window import CrashWindow
from workers.backends.echo import EchoEngine
from workers.backends.native import EngineOptions, NativeEngine
from workers.backends.protocol import EngineState
from workers.group import Group
from workers.health_server import HealthServer

MODEL = "tiny"


@contextmanager
def served(group: Group) -> Iterator[str]:
    server = HealthServer("127.0.0.1", 0)
    server.start(group.readiness, group.metrics)
    try:
        yield f"http://127.0.0.1:{server.port}/metrics"
    finally:
        server.stop()


def counters(scraped: Scraped) -> dict[object, float]:
    ends = ("_total", "_bucket", "_sum", "_count")
    return {key: value for key, value in scraped.samples.items() if key[0].endswith(ends) and "cpu" not in key[0]}


def test_counts_of_an_echo_are_those_of_sql(database: Database, tenant: SeededTenant, folder: Path) -> None:
    seed_batch(database, tenant, [3, 4], params={"max_tokens": 5})
    with running_group(database, EchoEngine(folder), model_path=folder) as group, served(group) as url:
        wait_for(lambda: num_results(database) == 7)
        found = wait_for(
            lambda: (now := scrape(url)).total("ryzanstein_attempts_total", end="finished") == 2 and now, timeout=10
        )
        labels = {"group": GROUP, "model": MODEL}
        assert found.value("ryzanstein_outcomes_total", outcome="succeeded", **labels) == 7
        ((num_output,),) = sql(database, "SELECT sum(quantity) FROM metered_usage WHERE meter = 'output'")
        assert found.value("ryzanstein_engine_generation_tokens_total", **labels) == num_output
        assert found.value("vllm:generation_tokens_total", model_name=MODEL, engine="0") == num_output
        assert found.value("ryzanstein_engine_requests_total", finish_reason="length") == 7
        assert found.value("vllm:request_success_total", finished_reason="length") == 7
        assert found.value("ryzanstein_recording_seconds_count", **labels) >= 1
        assert found.all("ryzanstein_rank_up") == {}, "an echo has no ranks"
        assert found.value("ryzanstein_group_up", **labels) == 1


def test_a_dead_rank_is_seen_and_nothing_counts_back(
    database: Database, tenant: SeededTenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CrashWindow, "backoff_seconds", 3.0)  # so that it is seen before the next ranks
    folder = random_llama(tmp_path / "random", context_length=16_384)
    options = EngineOptions(model_path=str(folder), tp=2, block_size=4, kv_cache_tokens=40_000, step_seconds=60.0)
    engine = NativeEngine(options)
    settings = make_settings(lease_seconds=60.0)
    seed_batch(database, tenant, [4], params={"max_tokens": 40, "ignore_eos": True}, prompt=range(10, 60))
    with running_group(database, engine, settings, model_path=folder, tp=2) as group, served(group) as url:
        wait_for(lambda: num_results(database) == 4)
        before = wait_for(
            lambda: (now := scrape(url)).value("ryzanstein_engine_generation_tokens_total") == 160 and now
        )
        assert_all_are_there(before)
        assert set(before.all("ryzanstein_rank_up").values()) == {1.0}
        assert before.values_of("ryzanstein_rank_memory_bytes", "rank") == {"0", "1"}
        assert before.value("ryzanstein_engine_steps_total") >= 40
        assert before.value("ryzanstein_request_time_to_first_token_seconds_count") == 4
        assert before.value("vllm:inter_token_latency_seconds_count") == 4 * 39
        assert before.value("ryzanstein_engine_prefix_hit_tokens_total") > 0, "all four have one prompt"

        os.kill(engine.health().rank_pids[1], signal.SIGKILL)
        dead = wait_for(lambda: (now := scrape(url)).value("ryzanstein_rank_up", rank="1") == 0 and now)
        assert dead.value("ryzanstein_group_ranks") == 2
        assert "1" not in dead.values_of("ryzanstein_rank_memory_bytes", "rank"), "its memory went with it"

        wait_for(lambda: engine.health().state is EngineState.READY and engine.health().num_restarts)
        after = scrape(url)
        assert after.value("ryzanstein_engine_restarts_total") == 1
        assert set(after.all("ryzanstein_rank_up").values()) == {1.0}
        earlier, later = counters(before), counters(after)
        assert {key for key, value in earlier.items() if later[key] < value} == set()

        seed_batch(database, tenant, [2], params={"max_tokens": 40, "ignore_eos": True})
        wait_for(lambda: scrape(url).value("ryzanstein_engine_generation_tokens_total") == 240)


def assert_all_are_there(scraped: Scraped) -> None:
    """But for what nothing was counted of so far."""
    named = {name for metric in (*GROUP_METRICS, *VLLM_METRICS) for name in metric.series_names}
    assert named - scraped.names == {"ryzanstein_waste_tokens_total", "ryzanstein_waste_engine_seconds_total"}

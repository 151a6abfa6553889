"""A request that ends its rank whenever it runs, among requests that do nothing wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import random_llama
from running_groups import make_settings, running_group, wait_for
from seeds import SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine

from pipeline.tokenization import pack_token_ids
from workers.backends import crash_window
from workers.backends.native import EngineOptions, NativeEngine

POISON = 99
#: Read by every Python that starts with its folder on the path: a rank that computes the token ends at once, as by a
#: fault in native code, without any Python cleanup.
FATAL_TOKEN = f"""
import os, sys
if "workers.fork_server" in sys.orig_argv:
    from workers.engine.model_runner import ModelRunner
    compute = ModelRunner.run
    def run(self, step):
        if {POISON} in step.token_ids:
            os.abort()
        return compute(self, step)
    ModelRunner.run = run
"""


@pytest.fixture
def tenant(database: Engine, redis_url: str) -> SeededTenant:
    seed_model(database)
    return seed_tenant(database)


def test_poison_fails_alone_after_three_crashes_and_the_others_lose_nothing(
    database: Engine, tenant: SeededTenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FATAL_TOKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(crash_window, "FIRST_BACKOFF_SECONDS", 0.01)
    folder = random_llama(tmp_path, context_length=256)
    seed_batch(database, tenant, [64], params={"max_tokens": 40, "ignore_eos": True, "logit_bias": {str(POISON): -100}})
    sql(database, "UPDATE requests SET prompt_token_ids = :ids WHERE line = 21", ids=pack_token_ids([5, POISON, 7]))
    engine = NativeEngine(EngineOptions(model_path=str(folder), tp=1, kv_cache_tokens=8_192))

    with running_group(database, engine, make_settings(lease_seconds=30)):
        wait_for(
            lambda: sql(database, "SELECT 1 WHERE NOT EXISTS (SELECT FROM requests WHERE outcome IS NULL)"), timeout=60
        )
        num_crashes = engine.health().num_restarts

    assert sql(database, "SELECT line, outcome, error_code FROM requests WHERE outcome <> 'succeeded'") == [
        (21, "failed", "engine_crashed")
    ]
    assert sql(database, "SELECT count(*) FROM results") == [(63,)]
    assert num_crashes <= 3
    # One claim of the slice did all of it: no attempt was lost by the innocent.
    assert sql(database, 'SELECT "end", num_succeeded, num_unsuccessful FROM attempts') == [("finished", 63, 1)]

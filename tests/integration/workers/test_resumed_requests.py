"""Groups that go on from what others have generated."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from model_folders import random_llama
from running_groups import GROUP, ScriptedEngine, make_settings, running_group, wait_for
from seeds import SeededTenant, seed_batch, seed_model, seed_tenant, sql
from sqlalchemy import Engine

from workers.backends.echo import EchoEngine
from workers.backends.native import EngineOptions, NativeEngine
from workers.backends.protocol import EngineRequest, EngineState, Partial, PartialChoice, Progress

#: So slow that a group can be ended in the middle of an answer.
TOKENS_PER_SECOND = 200.0
LONG = {"max_tokens": 120}


@pytest.fixture
def tenant(database: Engine, redis_url: str) -> SeededTenant:
    seed_model(database)
    return seed_tenant(database)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model"), context_length=2048)


def num_saved(database: Engine) -> int:
    return int(sql(database, "SELECT coalesce(sum(num_tokens), 0) FROM partial_outputs")[0][0])


def bodies(database: Engine) -> list[dict[str, Any]]:
    wait_for(lambda: sql(database, "SELECT 1 FROM requests HAVING bool_and(outcome IS NOT DISTINCT FROM 'succeeded')"))
    rows = sql(database, "SELECT body FROM results ORDER BY request_id")
    return [{"choices": body["choices"], "usage": body["usage"]} for body in (json.loads(row[0]) for row in rows)]


def usage(database: Engine) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in sql(database, "SELECT meter, sum(quantity) FROM metered_usage GROUP BY 1 ORDER BY 1")]


class Lost(ScriptedEngine):
    """Says that it has generated something, and then nothing more: its group will lose its lease."""

    def generate(self, num_tokens: int) -> None:
        with self.changed:
            self.progress += [
                Progress(id=request_id, partial=Partial(choices=[PartialChoice([5, 6, 7, 8] * (num_tokens // 4))]))
                for request_id in self.running
            ]
            self.changed.notify_all()


class Spy(EchoEngine):
    """Remembers how much of each answer was known when it was submitted."""

    def __init__(self, model_path: Path, tokens_per_second: float) -> None:
        super().__init__(model_path, tokens_per_second)
        self.num_known: list[int] = []

    def submit(self, request: EngineRequest) -> None:
        self.num_known.append(0 if request.partial is None else request.partial.num_tokens)
        super().submit(request)


def test_a_request_of_a_lost_group_is_gone_on_with_and_billed_once(
    database: Engine, tenant: SeededTenant, folder: Path
) -> None:
    """An echo answers with its prompt over and over, which is what the lost group had begun with."""
    seed_batch(database, tenant, [2], params=LONG)
    lost = Lost(answers=False)
    with running_group(database, lost, make_settings(lease_seconds=600)):
        wait_for(lambda: len(lost.running) == 2)
        lost.generate(40)
        wait_for(lambda: num_saved(database) == 80)
        lost.state = EngineState.RESTARTING  # it takes nothing more, once what it is just taking is told
        wait_for(lambda: sql(database, "SELECT 1 FROM groups WHERE state = 'restarting'"))
        sql(database, "UPDATE slices SET status = 'pending', lease_epoch = lease_epoch + 1")  # as the sweeper does
        second = Spy(folder, tokens_per_second=TOKENS_PER_SECOND)
        with running_group(database, second, make_settings(), group_id="group-1@here"):
            answers = bodies(database)
    assert second.num_known == [40, 40]
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [120, 120]
    assert usage(database) == [("input_uncached", 8), ("output", 240)]
    assert num_saved(database) == 0


def test_a_drained_group_leaves_nothing_to_be_generated_again(
    database: Engine, tenant: SeededTenant, folder: Path
) -> None:
    seed_batch(database, tenant, [1], params=LONG)
    engine = EchoEngine(folder, tokens_per_second=TOKENS_PER_SECOND)
    with running_group(database, engine):
        wait_for(lambda: num_saved(database) >= 32)
    assert sql(database, 'SELECT DISTINCT "end" FROM attempts') == [("returned",)]
    before = num_saved(database)
    assert 32 <= before < 120

    again = EchoEngine(folder, tokens_per_second=TOKENS_PER_SECOND)
    with running_group(database, again, group_id="group-1@here"):
        (answer,) = bodies(database)
    assert answer["usage"]["completion_tokens"] == 120
    assert sql(database, "SELECT sum(num_wasted_tokens) FROM attempts") == [(0,)]
    assert sql(database, "SELECT cause, sum(num_tokens) FROM waste GROUP BY cause") == [("recomputed", before)]


@pytest.mark.parametrize("params", [{"temperature": 0.9, "seed": 7, "n": 2, "logprobs": 2}, {"temperature": 0.0}])
def test_an_answer_over_several_groups_and_engines_is_that_of_one(
    database: Engine, tenant: SeededTenant, folder: Path, params: dict[str, Any]
) -> None:
    """A rank is killed, then the group drained; each time little is lost, and nothing shows in answer or bill."""
    options = EngineOptions(model_path=str(folder), tp=1, kv_cache_tokens=8_192)
    params = {"max_tokens": 900, "ignore_eos": True, **params}
    seed_batch(database, tenant, [1], params=params)
    engine = NativeEngine(options)
    with running_group(database, engine, make_settings(lease_seconds=30), GROUP):
        wait_for(lambda: num_saved(database) >= 64)
        _kill(engine)
        wait_for(lambda: engine.health().num_restarts == 1)
        at_restart = num_saved(database)
        wait_for(lambda: num_saved(database) >= at_restart + 64)
    with running_group(database, NativeEngine(options), make_settings(lease_seconds=30), "group-1@here"):
        (interrupted,) = bodies(database)
    bill = usage(database)

    sql(database, "DELETE FROM rated_lines")
    for table in ("usage_events", "results", "ledger_entries", "ledger_transactions", "requests", "attempts", "slices"):
        sql(database, f"DELETE FROM {table}")
    seed_batch(database, tenant, [1], params={**params, "seed": params.get("seed", 1)})
    with running_group(database, NativeEngine(options), make_settings(lease_seconds=30), GROUP):
        (whole,) = bodies(database)

    assert _without_logprobs(interrupted) == _without_logprobs(whole)
    assert bill == usage(database)


def _kill(engine: NativeEngine) -> None:
    os.kill(engine.health().rank_pids[0], signal.SIGKILL)


def _without_logprobs(body: dict[str, Any]) -> dict[str, Any]:
    """Their last bits depend on what was computed at once."""
    return {**body, "choices": [{**choice, "logprobs": None} for choice in body["choices"]]}

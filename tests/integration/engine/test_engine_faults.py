"""Ranks that die, hang or are stopped, and parents that are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from model_folders import random_llama
from running_engines import (
    answer,
    engine_children,
    is_gone,
    make_request,
    rank_children,
    take,
    wait_for_state,
    wait_until,
    wait_until_gone,
)

from workers.backends import crash_window, rank_processes, ranks
from workers.backends.native import EngineOptions, NativeEngine
from workers.backends.protocol import EngineState, OutcomeStatus

PROMPT = list(range(10, 30))
#: More tokens than an engine generates before a test gets to it.
LONG = 8_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model"), context_length=16_384)


@pytest.fixture
def start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., NativeEngine]]:
    monkeypatch.setattr(crash_window, "FIRST_BACKOFF_SECONDS", 0.01)
    engines: list[NativeEngine] = []

    def start(**options: object) -> NativeEngine:
        options = {"tp": 2, "kv_cache_tokens": 40_000, "step_seconds": 60.0, **options}
        engines.append(NativeEngine(EngineOptions(model_path=str(folder), **options)))  # type: ignore[arg-type]
        engines[-1].start()
        return engines[-1]

    yield start
    for engine in engines:
        engine.stop()
    assert engine_children() == []


def submit_and_wait_until_it_runs(engine: NativeEngine, *ids: str, max_tokens: int = LONG) -> None:
    for request_id in ids:
        engine.submit(make_request(request_id, PROMPT, max_tokens=max_tokens))
    wait_until(lambda: engine.load().num_running == len(ids), "the requests to run")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_replaced_and_what_ran_is_reported_as_crashed(
    start: Callable[..., NativeEngine], rank: int
) -> None:
    engine = start()
    before = engine.health().rank_pids
    submit_and_wait_until_it_runs(engine, "a", "b")
    os.kill(before[rank], signal.SIGKILL)
    outcomes = take(engine, 2)
    assert {outcome.status for outcome in outcomes.values()} == {OutcomeStatus.CRASHED}
    assert "SIGKILL" in (outcomes["a"].error_message or "")
    wait_for_state(engine, EngineState.READY)
    wait_until_gone(before)
    health = engine.health()
    assert health.num_restarts == 1
    assert set(health.rank_pids).isdisjoint(before)
    assert answer(engine, make_request("next", PROMPT))["next"].status is OutcomeStatus.FINISHED
    assert engine.health().num_steps > health.num_steps, "the counter of steps goes on"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_gets_no_more_memory_is_replaced(start: Callable[..., NativeEngine], rank: int) -> None:
    # A prompt in one step, longer than any before: no memory that was free before is enough for it.
    engine = start(step_tokens=16_384)
    before = engine.health().rank_pids
    assert answer(engine, make_request("short", PROMPT))["short"].status is OutcomeStatus.FINISHED
    psutil.Process(before[rank]).rlimit(psutil.RLIMIT_AS, (1, 1))
    engine.submit(make_request("long", [10 + number % 200 for number in range(15_000)]))
    take(engine, 1)  # crashed, or finished by the ranks that came after
    wait_until(lambda: engine.health().num_restarts == 1, "the crash")
    wait_for_state(engine, EngineState.READY)
    wait_until_gone(before)
    engine.submit(make_request("again", [10 + number % 200 for number in range(15_000)]))
    assert take(engine, 1)["again"].status is OutcomeStatus.FINISHED


def test_what_had_not_begun_to_run_is_no_suspect_and_runs_afterwards(start: Callable[..., NativeEngine]) -> None:
    engine = start(max_num_sequences=1)
    submit_and_wait_until_it_runs(engine, "running")
    engine.submit(make_request("waiting", PROMPT))
    engine.submit(make_request("aborted", PROMPT))
    os.kill(engine.health().rank_pids[1], signal.SIGKILL)
    wait_until(lambda: engine.health().state is not EngineState.READY, "the crash to be noticed")
    engine.abort(["aborted"])
    engine.submit(make_request("late", PROMPT))
    statuses = {request_id: outcome.status for request_id, outcome in take(engine, 4).items()}
    assert statuses == {
        "running": OutcomeStatus.CRASHED,
        "aborted": OutcomeStatus.ABORTED,
        "waiting": OutcomeStatus.FINISHED,
        "late": OutcomeStatus.FINISHED,
    }


def test_a_stopped_rank_is_noticed_long_before_the_step_deadline(start: Callable[..., NativeEngine]) -> None:
    engine = start(step_seconds=10_000.0)
    submit_and_wait_until_it_runs(engine, "a")
    os.kill(engine.health().rank_pids[1], signal.SIGSTOP)
    outcome = take(engine, 1)["a"]
    assert outcome.status is OutcomeStatus.CRASHED
    assert "stopped" in (outcome.error_message or "")
    wait_for_state(engine, EngineState.READY)


def test_a_rank_that_is_stopped_while_it_starts_is_noticed_and_replaced(start: Callable[..., NativeEngine]) -> None:
    engine = start()
    before = engine.health().rank_pids
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: len(rank_children()) == 2 and not set(rank_children()) & set(before), "the next ranks")
    os.kill(rank_children()[0], signal.SIGSTOP)
    wait_until(lambda: "stopped by a signal" in (engine.health().reason or ""), "the stop to be noticed")
    wait_for_state(engine, EngineState.READY)
    assert answer(engine, make_request("next", PROMPT))["next"].status is OutcomeStatus.FINISHED


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_hangs_is_noticed_by_the_step_deadline(
    start: Callable[..., NativeEngine], monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr(rank_processes, "is_stopped", lambda pid: False)
    engine = start(step_seconds=3.0, step_tokens=16)
    submit_and_wait_until_it_runs(engine, "a")
    before = engine.health().rank_pids
    os.kill(before[rank], signal.SIGSTOP)
    outcome = take(engine, 1)["a"]
    assert outcome.status is OutcomeStatus.CRASHED
    assert "no step ended within 3 seconds" in (outcome.error_message or "")
    wait_until_gone(before)
    wait_for_state(engine, EngineState.READY)


def test_an_engine_that_keeps_crashing_takes_nothing_more(start: Callable[..., NativeEngine]) -> None:
    engine = start(tp=1, max_crashes=2)
    for _ in range(2):
        wait_for_state(engine, EngineState.READY)
        submit_and_wait_until_it_runs(engine, "a")
        os.kill(engine.health().rank_pids[0], signal.SIGKILL)
        assert take(engine, 1)["a"].status is OutcomeStatus.CRASHED
    wait_for_state(engine, EngineState.DEGRADED)
    health = engine.health()
    assert "2 crashes within 600 seconds" in (health.reason or "")
    assert health.rank_pids == []
    assert answer(engine, make_request("r", PROMPT))["r"].status is OutcomeStatus.CRASHED


def test_what_waits_in_an_engine_that_takes_nothing_more_is_no_suspect(start: Callable[..., NativeEngine]) -> None:
    engine = start(tp=1, max_crashes=1, max_num_sequences=1)
    submit_and_wait_until_it_runs(engine, "running")
    engine.submit(make_request("waiting", PROMPT))
    os.kill(engine.health().rank_pids[0], signal.SIGKILL)
    wait_for_state(engine, EngineState.DEGRADED)
    statuses = {request_id: outcome.status for request_id, outcome in take(engine, 2).items()}
    assert statuses == {"running": OutcomeStatus.CRASHED, "waiting": OutcomeStatus.ABORTED}


def test_a_model_that_is_gone_at_a_restart_counts_as_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash_window, "FIRST_BACKOFF_SECONDS", 0.01)
    model = random_llama(tmp_path)
    engine = NativeEngine(EngineOptions(model_path=str(model), max_crashes=2))
    engine.start()
    try:
        (model / "model.safetensors").unlink()
        os.kill(engine.health().rank_pids[0], signal.SIGKILL)
        wait_for_state(engine, EngineState.DEGRADED)
        assert "safetensors" in (engine.health().reason or "")
    finally:
        engine.stop()


def test_a_stop_in_the_middle_reports_what_ran_and_leaves_no_process(start: Callable[..., NativeEngine]) -> None:
    engine = start()
    pids = engine.health().rank_pids
    submit_and_wait_until_it_runs(engine, "a")
    engine.stop()
    assert all(is_gone(pid) for pid in pids)
    assert take(engine, 1)["a"].status is OutcomeStatus.CRASHED
    assert engine.health().state is EngineState.STOPPED


def test_ranks_are_out_of_reach_of_the_terminal_and_of_a_service_managers_sigterm(
    start: Callable[..., NativeEngine],
) -> None:
    engine = start()
    for pid in engine.health().rank_pids:
        assert os.getsid(pid) == pid
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert answer(engine, make_request("r", PROMPT))["r"].status is OutcomeStatus.FINISHED
    assert engine.health().num_restarts == 0


PARENT = """
import sys
import threading
from workers.backends.native import EngineOptions, NativeEngine
from workers.backends.protocol import EngineRequest
from pipeline.schemas.generation import GenerationParams
engine = NativeEngine(EngineOptions(model_path=sys.argv[1], tp=2, kv_cache_tokens=40000))
engine.start()
params = GenerationParams(max_tokens=8000, ignore_eos=True)
engine.submit(EngineRequest(id="r", prompt_token_ids=[3, 4], params=params, seed=0))
print(*engine.health().rank_pids, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("stopped", [[], [0], [0, 1], ["server"], ["server", 0, 1]])
def test_ranks_end_with_a_parent_that_is_killed(folder: Path, stopped: list[int | str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(psutil.pid_exists(pid) for pid in pids)
        server = psutil.Process(pids[0]).ppid()
        for one in stopped:
            os.kill(pids[one] if isinstance(one, int) else server, signal.SIGSTOP)
        parent.kill()
        wait_until_gone([server, *pids])


def test_a_pause_of_the_parent_is_no_hang_of_the_ranks(
    start: Callable[..., NativeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(tp=1, step_seconds=3.0, step_tokens=16)
    submit_and_wait_until_it_runs(engine, "a", max_tokens=2_500)
    resumed = threading.Event()
    receive = ranks.Ranks.receive

    def receive_after_a_pause(self: ranks.Ranks, timeout: float) -> list[object]:
        """As after SIGSTOP and SIGCONT: time has passed, and the wait says that nothing came."""
        if not resumed.is_set():
            resumed.wait(4.0)
            resumed.set()
            return []
        return receive(self, timeout)  # type: ignore[return-value]

    monkeypatch.setattr(ranks.Ranks, "receive", receive_after_a_pause)
    wait_until(resumed.is_set, "the pause to end")
    assert take(engine, 1)["a"].status is OutcomeStatus.FINISHED
    assert engine.health().num_restarts == 0

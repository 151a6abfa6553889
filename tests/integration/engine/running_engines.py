"""What tests ask of an engine that runs in processes of its own."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import psutil

from pipeline.schemas.generation import GenerationParams
from workers.backends.native import NativeEngine
from workers.backends.protocol import EngineRequest, EngineState, Outcome

#: Longer than anything takes on a busy machine, in seconds.
PATIENCE = 90.0


def make_request(request_id: str, prompt: Iterable[int], seed: int = 0, **params: Any) -> EngineRequest:
    params = {"max_tokens": 8, "ignore_eos": True, **params}
    return EngineRequest(id=request_id, prompt_token_ids=list(prompt), params=GenerationParams(**params), seed=seed)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} seconds for {what}"
        time.sleep(0.02)


def take(engine: NativeEngine, num: int) -> dict[str, Outcome]:
    """Wait for so many outcomes; none comes twice."""
    outcomes: dict[str, Outcome] = {}
    deadline = time.monotonic() + PATIENCE
    while len(outcomes) < num:
        assert time.monotonic() < deadline, f"{len(outcomes)} of {num} outcomes came; {engine.health()}"
        for outcome in engine.take_outcomes(num, timeout=1.0):
            assert outcome.id not in outcomes
            outcomes[outcome.id] = outcome
    return outcomes


def answer(engine: NativeEngine, *requests: EngineRequest) -> dict[str, Outcome]:
    for request in requests:
        engine.submit(request)
    return take(engine, len(requests))


def wait_for_state(engine: NativeEngine, state: EngineState) -> None:
    wait_until(lambda: engine.health().state is state, f"the engine to be {state}")


def is_gone(pid: int) -> bool:
    """Not there, or dead and waiting for whoever adopted it to notice."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pids: Collection[int]) -> None:
    wait_until(lambda: all(map(is_gone, pids)), f"processes {pids} to be gone")


def engine_children() -> list[psutil.Process]:
    """Fork servers and ranks that this process has started."""
    return [child for child, _ in _engine_children()]


def fork_server_children() -> list[int]:
    return [child.pid for child, parent in _engine_children() if parent == os.getpid()]


def rank_children() -> list[int]:
    return [child.pid for child, parent in _engine_children() if parent != os.getpid()]


def _engine_children() -> list[tuple[psutil.Process, int]]:
    """With their parents."""
    found: list[tuple[psutil.Process, int]] = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if not is_gone(child.pid) and "workers.fork_server" in child.cmdline():
                found.append((child, child.ppid()))
    return found

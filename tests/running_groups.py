"""Groups in the test's own process, without Celery: they find their slices by looking into SQL."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seeds import MODEL
from sqlalchemy import Engine as Database

from pipeline.settings import Settings
from workers.backends.protocol import (
    Choice,
    Engine,
    EngineRequest,
    EngineState,
    Health,
    Load,
    Outcome,
    OutcomeStatus,
    Progress,
)
from workers.fleet import GroupIdentity
from workers.group import Group

GROUP = "group-0@here"


def wait_for(condition: Callable[[], Any], *, timeout: float = 60.0) -> Any:
    """The first true value of `condition()`. Fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)
    return value


def make_settings(**changes: Any) -> Settings:
    """Short times, so that tests need not wait."""
    return Settings(**{"sweep_seconds": 0.05, "lease_seconds": 2.0, "drain_seconds": 20.0, **changes})


@contextmanager
def running_group(
    database: Database,
    engine: Engine,
    settings: Settings | None = None,
    group_id: str = GROUP,
    model_path: Path = Path("/models/tiny"),
    **info: Any,
) -> Iterator[Group]:
    """A started group. A failure of one of its threads fails the test."""
    failures: list[str] = []
    identity = GroupIdentity(
        id=group_id,
        model=MODEL,
        model_path=str(model_path),
        context_length=2048,
        pid=os.getpid(),
        info={"engine": "test", **info},
    )
    group = Group(engine, identity, settings or make_settings(), database, lambda: failures.append("a thread failed"))
    group.start()
    try:
        yield group
    finally:
        group.drain(hurry=True)
        group.stop()
    assert failures == []


class ScriptedEngine:
    """Answers with one token, when the test says so; crashes on a poisonous prompt with everything that is in it."""

    def __init__(self, *, poison: int | None = None, answers: bool = True) -> None:
        self.poison = poison
        self.answers = answers
        self.changed = threading.Condition()
        self.running: dict[str, EngineRequest] = {}
        self.outcomes: deque[Outcome] = deque()
        self.state = EngineState.STARTING
        #: The ids that were in the engine at each crash.
        self.crashes: list[list[str]] = []
        self.submitted: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.progress: list[Progress] = []

    def start(self) -> None:
        self.state = EngineState.READY

    def submit(self, request: EngineRequest) -> None:
        with self.changed:
            self.submitted.append(request)
            self.running[request.id] = request
            self.changed.notify_all()

    def abort(self, ids: Collection[str]) -> None:
        with self.changed:
            for request_id in ids:
                if self.running.pop(request_id, None):
                    self.aborted.append(request_id)
                    self.outcomes.append(
                        Outcome(
                            id=request_id, status=OutcomeStatus.ABORTED, num_prompt_tokens=3, num_completion_tokens=1
                        )
                    )
            self.changed.notify_all()

    def take_outcomes(self, max_outcomes: int, timeout: float) -> list[Outcome]:
        with self.changed:
            self.changed.wait_for(lambda: self.outcomes or (self.answers and self.running), timeout)
            if self.answers and self.running:
                self._step()
            return [self.outcomes.popleft() for _ in range(min(max_outcomes, len(self.outcomes)))]

    def _step(self) -> None:
        if any(self.poison in request.prompt_token_ids for request in self.running.values()):
            self.crash()
            return
        for request_id in list(self.running):
            self.finish(request_id)

    def finish(self, request_id: str) -> None:
        """Under `changed`."""
        request = self.running.pop(request_id)
        choice = Choice(index=0, text="x", token_ids=[7], finish_reason="stop")
        self.outcomes.append(
            Outcome(
                id=request.id,
                status=OutcomeStatus.FINISHED,
                choices=[choice],
                num_prompt_tokens=len(request.prompt_token_ids),
                num_completion_tokens=1,
            )
        )

    def crash(self) -> None:
        """Under `changed`."""
        if not self.running:
            return
        self.crashes.append(list(self.running))
        self.outcomes += [
            Outcome(id=request_id, status=OutcomeStatus.CRASHED, num_prompt_tokens=3) for request_id in self.running
        ]
        self.running.clear()

    def take_progress(self) -> list[Progress]:
        with self.changed:
            taken, self.progress = self.progress, []
        return taken

    def load(self) -> Load:
        return Load(num_waiting=0, num_running=len(self.running), num_kv_tokens=64, num_kv_tokens_used=0)

    def health(self) -> Health:
        reason = "It crashed too often." if self.state is EngineState.DEGRADED else None
        return Health(state=self.state, rank_pids=[11, 12], num_restarts=len(self.crashes), reason=reason)

    def stop(self) -> None:
        with self.changed:
            self.crash()
            self.state = EngineState.STOPPED

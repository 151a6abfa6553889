"""What a group says of itself, by a clock that the test moves. Its database is asked in the tests of integration."""

from __future__ import annotations

import pytest
from running_groups import ScriptedEngine, make_settings
from sqlalchemy import create_engine

from pipeline.tables.fleet import GroupState
from workers.backends.protocol import EngineState, Health
from workers.readiness import Readiness


class SteppingEngine(ScriptedEngine):
    num_steps = 0

    def health(self) -> Health:
        return Health(state=EngineState.READY, num_steps=self.num_steps)


class Watched:
    """A group's readiness, and what it is made of."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.engine = SteppingEngine()
        self.has_work = True
        self.readiness = Readiness(
            self.engine,
            create_engine("sqlite://"),  # answers
            make_settings(lease_seconds=15.0, step_seconds=30.0),
            has_work=lambda: self.has_work,
            clock=lambda: self.now,
        )

    def live(self, seconds: float, *, steps: int = 1, renews: bool = True) -> list[str]:
        """So many seconds pass, with a heartbeat in each; returns the reasons at their end."""
        for _ in range(round(seconds)):
            self.now += 1
            self.engine.num_steps += steps
            self.readiness.saw(GroupState.READY)
            if renews:
                self.readiness.renewed()
        return self.readiness.reasons()


@pytest.fixture
def group() -> Watched:
    return Watched()


def test_a_group_that_loads_is_not_ready(group: Watched) -> None:
    assert group.readiness.reasons() == ["the group is starting"]
    group.now += 600
    assert group.readiness.reasons() == ["the group is starting"]


def test_a_group_that_works_is_ready(group: Watched) -> None:
    assert group.live(100) == []


@pytest.mark.parametrize("state", [GroupState.RESTARTING, GroupState.DEGRADED, GroupState.DRAINING, GroupState.DRAINED])
def test_a_group_that_takes_no_work_says_why(group: Watched, state: GroupState) -> None:
    group.live(1)
    group.readiness.saw(state, "It crashed too often.")
    assert group.readiness.reasons() == [f"the group is {state.value}: It crashed too often."]
    assert group.live(1) == []


def test_an_engine_with_work_that_makes_no_step_is_noticed(group: Watched) -> None:
    group.live(1)
    assert group.live(30, steps=0) == []
    assert group.live(1, steps=0) == ["the engine has work, and has made no step for 31 s"]
    assert group.live(1) == []


def test_an_engine_without_work_may_rest(group: Watched) -> None:
    group.has_work = False
    assert group.live(600, steps=0) == []
    group.has_work = True
    assert group.live(30, steps=0) == []  # from when it has work on
    assert group.live(1, steps=0) != []


def test_leases_that_are_not_renewed_are_noticed(group: Watched) -> None:
    group.live(1)
    assert group.live(15, renews=False) == []
    assert group.live(1, renews=False) == ["leases were last renewed 16 s ago"]


def test_a_heartbeat_that_stands_still_is_noticed(group: Watched) -> None:
    group.live(1)
    group.now += 20
    assert group.readiness.reasons() == ["leases were last renewed 20 s ago"]
    group.readiness.renewed()
    assert group.readiness.reasons() == ["the heartbeat has stood still for 20 s"]

"""Ranks of a real engine die or hang in the middle of two tenants' batches; their group goes on with others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Fault, rank_faults
from harness import Chaos, running
from schedules import Schedule

FAULTS = list(rank_faults(2))
NUM_REQUESTS = 80


@pytest.fixture(scope="module")
def chaos(stack_folder: Path, tiny_model: Path) -> Iterator[Chaos]:
    with running(stack_folder / "ranks", tiny_model, "--tp", "2", RYZANSTEIN_MAX_NUM_SEQUENCES="4") as chaos:
        yield chaos


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_rank_that_is_gone_costs_no_request_and_no_attempt(chaos: Chaos, fault: Fault) -> None:
    group, ranks = chaos.stack.pid("group-0"), ranks_of(chaos)

    report = chaos.run(Schedule.of(fault, num_requests=NUM_REQUESTS, after=5), max_tokens=32, ignore_eos=True)

    assert report.violations == ()
    assert [(hit.was_hit, hit.at < NUM_REQUESTS) for hit in report.hits] == [(True, True)]
    assert chaos.stack.pid("group-0") == group  # it recovered by itself, and kept its leases
    assert set(report.attempts) == {"finished"}
    assert len(ranks) == 2
    assert not ranks & ranks_of(chaos)  # one that is gone takes the other along


def ranks_of(chaos: Chaos) -> set[int]:
    return {pid for name, pid in chaos.stack.status()["pids"].items() if ".rank-" in name}

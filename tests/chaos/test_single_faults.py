"""Each fault alone, in the middle of two tenants' batches: every request one outcome, one line, one bill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Fault, stack_faults
from harness import Chaos, running
from schedules import Schedule

FAULTS = list(stack_faults())
NUM_REQUESTS = 120


@pytest.fixture(scope="module")
def chaos(stack_folder: Path, tiny_model: Path) -> Iterator[Chaos]:
    with running(stack_folder / "chaos", tiny_model, "--engine", "echo", "--groups", "2") as chaos:
        yield chaos


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_fault_costs_no_request_and_no_cent(chaos: Chaos, fault: Fault) -> None:
    report = chaos.run(Schedule.of(fault, num_requests=NUM_REQUESTS, after=20))

    assert report.violations == ()
    assert [hit.was_hit for hit in report.hits] == [True]
    assert report.hits[0].at < NUM_REQUESTS, "it came when all was done"

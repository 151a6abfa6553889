"""Each fault alone, in the middle of two tenants' batches: every request one outcome, one line, one bill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Fault, stack_faults
from harness import Chaos, running
from schedules import Schedule

FAULTS = list(stack_faults())
NUM_REQUESTS = 160
#: So slow that a group never has what it holds finished before a fault shows, or within its drain time.
SLOW = {"RYZANSTEIN_ECHO_TOKENS_PER_SECOND": "400", "RYZANSTEIN_SLICE_REQUESTS": "20"}
#: How attempts must have ended beside those that finished: without it, the fault would have come to nothing.
TRACES = {"group-0 killed": "lost", "group-0 frozen": "lost", "group-0 terminated": "returned"}


@pytest.fixture(scope="module")
def chaos(stack_folder: Path, tiny_model: Path) -> Iterator[Chaos]:
    with running(stack_folder / "chaos", tiny_model, "--engine", "echo", "--groups", "2", **SLOW) as chaos:
        yield chaos


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_fault_costs_no_request_and_no_cent(chaos: Chaos, fault: Fault) -> None:
    report = chaos.run(Schedule.of(fault, num_requests=NUM_REQUESTS, after=20))

    assert report.violations == ()
    assert [hit.was_hit for hit in report.hits] == [True]
    assert report.hits[0].at < NUM_REQUESTS, "it came when all was done"
    trace = TRACES.get(fault.name.replace("group-1", "group-0"))
    assert trace is None or report.attempts[trace] > 0

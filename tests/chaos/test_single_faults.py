"""Each fault alone, in the middle of two tenants' batches: every request one outcome, one line, one bill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
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
    trace = TRACES.get(fault.name.replace("group-1", "group-0"))
    for _ in range(3):  # a group that has just come back from the fault before may hold nothing yet
        report = chaos.run(Schedule.of(fault, num_requests=NUM_REQUESTS, after=20))

        assert report.violations == ()
        assert [hit.was_hit for hit in report.hits] == [True]
        assert report.hits[0].at < NUM_REQUESTS, "it came when all was done"
        if trace is None or report.attempts.get(trace):
            return
    pytest.fail(f"no attempt ended as {trace!r}: {report.attempts}")


def test_the_bills_are_what_was_used_and_no_more(chaos: Chaos) -> None:
    """Of all batches that the faults above came upon, or of one where this runs alone."""
    chaos.run(Schedule(seed=0, num_requests=20, events=()))
    for tenant, client in chaos.clients.items():
        usages = [batch.usage for batch in client.batches.list(limit=100)]
        num_input = sum(usage.input_tokens for usage in usages if usage is not None)
        num_output = sum(usage.output_tokens for usage in usages if usage is not None)

        (bill,) = json.loads(chaos.stack.run("bill", "--tenant", tenant, "--json", check=True).stdout)

        # The prices that `up` sets, per million tokens, at half price as all batches.
        exact = (num_input * Decimal("0.10") + num_output * Decimal("0.40")) / 1_000_000 / 2
        assert Decimal(bill["exact"]) == exact > 0

"""Each fault alone, in the middle of two tenants' batches: every request one outcome, one line, one bill."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from faults import Fault, connect, stack_faults
from harness import Chaos, running
from schedules import Schedule
from stacks import wait_for

FAULTS = list(stack_faults())
NUM_REQUESTS = 160
NUM_GROUPS = 2
#: So slow that a group never has what it holds finished before a fault shows, or within its drain time.
SLOW = {"RYZANSTEIN_ECHO_TOKENS_PER_SECOND": "400", "RYZANSTEIN_SLICE_REQUESTS": "20"}
#: On a busy host a group may hold nothing when its fault comes, or all may be done.
MOST_TRIES = 3
#: How attempts must have ended beside those that finished: without it, the fault would have come to nothing.
TRACES = {"group-0 killed": "lost", "group-0 frozen": "lost", "group-0 terminated": "returned"}

#: Those that have said so of late: the row of one that died says what it last was.
_NUM_READY = """
    SELECT count(*) FROM groups WHERE state = 'ready' AND heartbeat_at > clock_timestamp() - interval '1.5 seconds'
"""


@pytest.fixture(scope="module")
def chaos(stack_folder: Path, tiny_model: Path) -> Iterator[Chaos]:
    with running(stack_folder / "chaos", tiny_model, "--engine", "echo", "--groups", str(NUM_GROUPS), **SLOW) as chaos:
        yield chaos


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_fault_costs_no_request_and_no_cent(chaos: Chaos, fault: Fault) -> None:
    trace = TRACES.get(fault.name.replace("group-1", "group-0"))
    for _ in range(MOST_TRIES):
        wait_for(lambda: all_are_ready(chaos), "groups that have come back from the fault before")
        report = chaos.run(Schedule.of(fault, num_requests=NUM_REQUESTS, after=20))

        assert report.violations == ()
        assert [hit.was_hit for hit in report.hits] == [True]
        if report.hits[0].at < NUM_REQUESTS and (trace is None or report.attempts.get(trace)):
            return
    raise AssertionError(f"{fault.name} came to nothing {MOST_TRIES} times: {report.hits}, {report.attempts}")


def all_are_ready(chaos: Chaos) -> bool:
    """A group that comes later may hold nothing yet when the fault does."""
    with contextlib.suppress(psycopg.Error), connect(chaos.stack) as conn:
        return conn.execute(_NUM_READY).fetchone() == (NUM_GROUPS,)
    return False


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

"""How long the requests of a group that is gone for good wait for another one, with leases as they are in service."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from batch_jobs import check_complete, lines_of, submit, wait_for_end, wait_until_under_way
from faults import connect
from stacks import RunningStack, wait_for

LEASE_SECONDS = 15.0
#: From the end of the lease on; a sweep comes every 5 s.
MOST_SECONDS = 10.0
#: When the other group had the last of the slices that the lost one held.
TAKEN_OVER = """
    SELECT count(*) FILTER (WHERE again.slice_id IS NULL) FROM attempts held
    LEFT JOIN attempts again ON again.slice_id = held.slice_id AND again.lease_epoch > held.lease_epoch
    WHERE held.group_id = %s AND held."end" IS DISTINCT FROM 'finished'
"""

LEASE_LEFT = """
    SELECT extract(epoch FROM max(lease_expires_at) - clock_timestamp())::float8 FROM slices
    WHERE group_id = %s AND status = 'claimed'
"""


def test_another_group_takes_over_within_ten_seconds_of_the_leases_end(
    make_stack: Callable[..., RunningStack],
) -> None:
    stack = make_stack(
        *("--engine", "echo", "--groups", "2"),
        RYZANSTEIN_LEASE_SECONDS=str(LEASE_SECONDS),
        RYZANSTEIN_SWEEP_SECONDS="5",
        RYZANSTEIN_RELAY_SECONDS="1",
        RYZANSTEIN_SLICE_REQUESTS="25",
        RYZANSTEIN_ECHO_TOKENS_PER_SECOND="400",
    )
    stack.up()
    client, lines = stack.client(), lines_of(300)
    batch = submit(client, lines)
    wait_until_under_way(client, batch.id, 20)
    # Not killed: the supervisor would start it again, and it would give up its own leases at once.
    group = stack.pid("group-0")
    assert group is not None
    os.kill(group, signal.SIGSTOP)
    try:
        with connect(stack) as conn:
            (group_id,) = conn.execute("SELECT id FROM groups WHERE pid = %s", [group]).fetchone() or (None,)
            (num_held,) = conn.execute(TAKEN_OVER, [group_id]).fetchone() or (0,)
            assert num_held > 0
            (seconds_left,) = conn.execute(LEASE_LEFT, [group_id]).fetchone() or (None,)
            assert seconds_left is not None
            lease_ends_at = time.monotonic() + seconds_left
            wait_for(lambda: conn.execute(TAKEN_OVER, [group_id]).fetchone() == (0,), "the other group", 60)
        seconds = time.monotonic() - lease_ends_at
        check_complete(stack, wait_for_end(client, batch.id), lines)
    finally:
        os.kill(group, signal.SIGCONT)

    print(f"another group had everything {seconds:.1f} s after the end of the lease")
    assert seconds < MOST_SECONDS

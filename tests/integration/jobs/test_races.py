"""Everything at once: whatever meets, each request ends once and the counters are those of the rows."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from seeds import MODEL
from submitting import Bench

from pipeline.jobs import sweeping
from pipeline.jobs.cancelling import cancel_batch, end_cancelled
from pipeline.jobs.claiming import claim_slice
from pipeline.jobs.finalizing import finalize
from pipeline.jobs.lines import stream_view
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import BatchStatus, FileView, OutcomeKind, SliceStatus
from pipeline.tables.session import transaction


@pytest.mark.parametrize("seed", range(4))
def test_answers_lost_leases_sweeps_and_a_cancel_meet(
    bench: Bench, settings_env: pytest.MonkeyPatch, seed: int
) -> None:
    settings_env.setenv(PREFIX + "SLICE_REQUESTS", "5")
    get_settings.cache_clear()
    batch_id = bench.run(60)
    chance = random.Random(seed)
    cancel_after = chance.randrange(8)

    def group(name: str) -> None:
        mine = random.Random(f"{seed} {name}")
        for _ in range(12):
            with bench.engine.begin() as conn:
                # A lease that is over at once makes the sweeper and the group quarrel about the slice.
                lease_seconds = mine.choice([0, 0.01, 60])
                claimed = claim_slice(conn, model=MODEL, group_id=name, lease_seconds=lease_seconds)
            if claimed is None:
                return
            for _ in range(3):
                kind = mine.choice([OutcomeKind.SUCCEEDED, OutcomeKind.FAILED])
                bench.answer(claimed, mine.choice([1, 2, 5]), kind)
            finalize(batch_id)

    def sweeper() -> None:
        for _ in range(10):
            sweeping.sweep()

    def canceller() -> None:
        for _ in range(cancel_after):
            bench.batch(batch_id)
        with transaction() as session:
            cancel_batch(session, batch_id, bench.tenant.id)
        end_cancelled(batch_id)

    with ThreadPoolExecutor(5) as pool:
        tasks = [pool.submit(group, "a"), pool.submit(group, "b"), pool.submit(sweeper), pool.submit(sweeper)]
        tasks.append(pool.submit(canceller))
        for task in tasks:
            task.result(60)
    # The groups are gone: what they still hold, the sweeper takes back and ends.
    bench.execute("UPDATE slices SET lease_expires_at = now() - interval '1 second' WHERE status = 'claimed'")
    sweeping.sweep()

    batch = bench.batch(batch_id)
    outcomes = Counter(bench.outcomes(batch_id))
    assert batch.status is BatchStatus.CANCELLED
    assert outcomes[None] == 0
    assert batch.num_succeeded == outcomes[OutcomeKind.SUCCEEDED]
    assert batch.num_unsuccessful == 60 - outcomes[OutcomeKind.SUCCEEDED]
    assert {planned.status for planned in bench.slices(batch_id)} == {SliceStatus.DONE}
    assert {planned.num_unfinished for planned in bench.slices(batch_id)} == {0}
    num_lines = {view: b"".join(stream_view(batch_id, view)).count(b"\n") for view in FileView}
    assert num_lines == {FileView.OUTPUT: batch.num_succeeded, FileView.ERROR: batch.num_unsuccessful}

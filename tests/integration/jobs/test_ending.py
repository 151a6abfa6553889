"""Cancelling, the end of a window, and closing."""

from __future__ import annotations

import json

import pytest
from seeds import seed_tenant
from sqlalchemy.orm import Session
from submitting import Bench, at_once, request_line, request_lines

from pipeline.celery import CANCEL, FINALIZE
from pipeline.ids import new_id
from pipeline.jobs import sweeping
from pipeline.jobs.cancelling import BatchNotCancellableError, BatchNotFoundError, cancel_batch, end_cancelled
from pipeline.jobs.finalizing import finalize
from pipeline.jobs.lines import stream_view
from pipeline.jobs.preparing import prepare
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import Batch, BatchStatus, File, FileView, OnInvalid, OutcomeKind, SliceStatus
from pipeline.tables.session import transaction


def cancel(bench: Bench, batch_id: str, tenant_id: str | None = None) -> Batch:
    with transaction() as session:
        return cancel_batch(session, batch_id, tenant_id or bench.tenant.id)


def lines(batch_id: str, view: FileView) -> list[dict[str, object]]:
    return [json.loads(line) for line in b"".join(stream_view(batch_id, view)).splitlines()]


def expire(bench: Bench, batch_id: str) -> None:
    bench.execute("UPDATE batches SET expires_at = now() - interval '1 second' WHERE id = :id", id=batch_id)


def test_a_batch_whose_requests_are_all_answered_is_completed(bench: Bench) -> None:
    batch_id = bench.run(3)
    assert finalize(batch_id) is None, "three requests have no outcome"
    recorded = bench.answer(bench.claim())
    assert recorded.finished_batches == (batch_id,)
    assert bench.messages(FINALIZE) == [[batch_id]]
    assert finalize(batch_id) is BatchStatus.COMPLETED
    batch = bench.batch(batch_id)
    assert batch.finalizing_at is not None
    assert batch.completed_at is not None
    assert (batch.num_succeeded, batch.num_unsuccessful) == (3, 0)


def test_its_files_get_their_sizes_and_the_empty_one_goes(bench: Bench) -> None:
    batch_id = bench.run(3, output_expires_after_seconds=7200)
    bench.answer(bench.claim())
    finalize(batch_id)
    batch = bench.batch(batch_id)
    assert batch.error_file_id is None
    with Session(bench.engine) as session:
        [file] = session.query(File).where(File.batch_id == batch_id).all()
    assert file.id == batch.output_file_id == batch.shown_output_file_id
    assert file.num_bytes == sum(map(len, stream_view(batch_id, FileView.OUTPUT))) > 0
    assert file.expires_at is not None
    assert (file.expires_at - file.created_at).total_seconds() == 7200


def test_closing_twice_or_at_once_closes_once(bench: Bench) -> None:
    batch_id = bench.run(1)
    bench.answer(bench.claim())
    assert [status for status in at_once(lambda: finalize(batch_id), times=4) if status] == [BatchStatus.COMPLETED]
    before = bench.batch(batch_id).completed_at
    assert finalize(batch_id) is None
    assert bench.batch(batch_id).completed_at == before


def test_failed_requests_are_in_the_error_file_and_the_batch_is_completed(bench: Bench) -> None:
    batch_id = bench.run(2)
    claimed = bench.claim()
    bench.answer(claimed, 1)
    bench.answer(claimed, kind=OutcomeKind.FAILED)
    assert finalize(batch_id) is BatchStatus.COMPLETED
    batch = bench.batch(batch_id)
    assert batch.shown_output_file_id is not None
    assert batch.shown_error_file_id is not None
    [line] = lines(batch_id, FileView.ERROR)
    assert line["error"] == {"code": "engine_crashed", "message": "It crashed."}


def test_the_sweeper_closes_a_batch_whose_message_was_lost(bench: Bench) -> None:
    batch_id = bench.run(1)
    bench.answer(bench.claim())
    bench.execute("DELETE FROM outbox")
    assert sweeping.finalize_finished(bench.engine) == 1
    assert bench.batch(batch_id).status is BatchStatus.COMPLETED
    assert sweeping.finalize_finished(bench.engine) == 0


def test_lines_are_in_the_order_of_the_input_whatever_the_plan_was(bench: Bench) -> None:
    batch_id = bench.submit(
        [request_line("b", prompt=[9]), "[]", request_line("a", prompt=[1]), request_line("c", prompt=[5])],
        on_invalid=OnInvalid.SKIP,
    )
    prepare(batch_id)
    claimed = bench.claim()
    bench.answer(claimed, 1)
    assert [line["custom_id"] for line in lines(batch_id, FileView.OUTPUT)] == ["a"], "readable while it runs"
    bench.answer(claimed, 1)
    bench.answer(claimed, kind=OutcomeKind.FAILED)
    assert [line["custom_id"] for line in lines(batch_id, FileView.OUTPUT)] == ["a", "c"]
    errors = lines(batch_id, FileView.ERROR)
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [  # type: ignore[index]
        ("b", "engine_crashed"),
        (None, "invalid_json_line"),
    ]
    assert finalize(batch_id) is BatchStatus.COMPLETED


def test_a_file_longer_than_a_piece_comes_in_pieces(bench: Bench) -> None:
    batch_id = bench.run(2500)
    for _ in bench.slices(batch_id):
        bench.answer(bench.claim())
    finalize(batch_id)
    pieces = list(stream_view(batch_id, FileView.OUTPUT))
    assert len(pieces) == 3
    assert [json.loads(line)["custom_id"] for line in b"".join(pieces).splitlines()] == [
        f"request-{number}" for number in range(1, 2501)
    ]


def test_cancelling_before_preparing_closes_it_at_once(bench: Bench) -> None:
    batch_id = bench.submit(request_lines(2))
    batch = cancel(bench, batch_id)
    assert batch.status is BatchStatus.CANCELLING
    assert batch.cancelling_at is not None
    assert bench.messages(CANCEL) == [[batch_id]]
    assert end_cancelled(batch_id) == 0
    batch = bench.batch(batch_id)
    assert batch.status is BatchStatus.CANCELLED
    assert (batch.cancelled_at is None, batch.finalizing_at) == (False, None)


def test_cancelling_in_the_middle_keeps_what_is_answered(bench: Bench, settings_env: pytest.MonkeyPatch) -> None:
    settings_env.setenv(PREFIX + "SLICE_REQUESTS", "2")
    get_settings.cache_clear()
    batch_id = bench.run(6)
    claimed = bench.claim()
    bench.answer(claimed, 1)
    cancel(bench, batch_id)
    assert end_cancelled(batch_id) == 4, "those of the two slices that nobody had claimed"
    assert bench.batch(batch_id).status is BatchStatus.CANCELLING, "one request is in the hands of a group"
    bench.answer(claimed, kind=OutcomeKind.CANCELLED)
    assert finalize(batch_id) is BatchStatus.CANCELLED
    batch = bench.batch(batch_id)
    assert (batch.num_succeeded, batch.num_unsuccessful) == (1, 5)
    assert [planned.status for planned in bench.slices(batch_id)] == [SliceStatus.DONE] * 3
    assert len(lines(batch_id, FileView.OUTPUT)) == 1
    errors = lines(batch_id, FileView.ERROR)
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}  # type: ignore[index]
    assert len(errors) == 5


def test_cancelling_again_changes_nothing(bench: Bench) -> None:
    batch_id = bench.run(1)
    first = cancel(bench, batch_id)
    again = cancel(bench, batch_id)
    assert (again.status, again.cancelling_at) == (BatchStatus.CANCELLING, first.cancelling_at)
    end_cancelled(batch_id)
    assert cancel(bench, batch_id).status is BatchStatus.CANCELLED
    assert bench.messages(CANCEL) == [[batch_id]]


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "finalizing"])
def test_what_has_ended_can_not_be_cancelled(bench: Bench, status: str) -> None:
    batch_id = bench.submit(request_lines(1))
    bench.execute("UPDATE batches SET status = :status", status=status)
    with pytest.raises(BatchNotCancellableError, match=f"status '{status}'"):
        cancel(bench, batch_id)
    assert bench.batch(batch_id).status == status


def test_another_tenants_batch_is_not_found(bench: Bench) -> None:
    batch_id = bench.submit(request_lines(1))
    stranger = seed_tenant(bench.engine, "stranger")
    for batch, tenant in ((batch_id, stranger.id), (new_id("batch"), bench.tenant.id)):
        with pytest.raises(BatchNotFoundError):
            cancel(bench, batch, tenant)
    assert bench.batch(batch_id).status is BatchStatus.VALIDATING


def test_the_sweeper_cancels_what_a_dead_group_left(bench: Bench) -> None:
    batch_id = bench.run(2)
    claimed = bench.claim()
    bench.answer(claimed, 1)
    cancel(bench, batch_id)
    end_cancelled(batch_id)
    bench.execute("UPDATE slices SET lease_expires_at = now() - interval '1 second'")
    sweeping.sweep()
    assert bench.batch(batch_id).status is BatchStatus.CANCELLED
    assert sorted(str(outcome) for outcome in bench.outcomes(batch_id)) == ["cancelled", "succeeded"]


def test_a_window_that_passes_expires_what_waits_and_keeps_what_is_answered(
    bench: Bench, settings_env: pytest.MonkeyPatch
) -> None:
    settings_env.setenv(PREFIX + "SLICE_REQUESTS", "2")
    get_settings.cache_clear()
    batch_id = bench.run(4)
    claimed = bench.claim()
    bench.answer(claimed, 1)
    assert sweeping.end_waiting(bench.engine) == 0
    expire(bench, batch_id)
    assert sweeping.end_waiting(bench.engine) == 2
    assert bench.batch(batch_id).status is BatchStatus.IN_PROGRESS, "a group is still at it"
    bench.answer(claimed, kind=OutcomeKind.EXPIRED)
    assert finalize(batch_id) is BatchStatus.EXPIRED
    batch = bench.batch(batch_id)
    assert batch.expired_at is not None
    assert (batch.num_succeeded, batch.num_unsuccessful) == (1, 3)
    errors = lines(batch_id, FileView.ERROR)
    assert [line["error"] for line in errors] == 3 * [
        {
            "code": "batch_expired",
            "message": "This request could not be executed before the completion window expired.",
        }
    ]


def test_a_batch_that_was_answered_in_time_does_not_expire_afterwards(bench: Bench) -> None:
    batch_id = bench.run(1)
    bench.answer(bench.claim())
    expire(bench, batch_id)
    sweeping.sweep()
    assert bench.batch(batch_id).status is BatchStatus.COMPLETED

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from seeds import MODEL
from submitting import Bench, at_once, request_line, request_lines

from pipeline.celery import GENERATE, PREPARE
from pipeline.jobs import preparing, sweeping
from pipeline.jobs.cancelling import cancel_batch, end_cancelled
from pipeline.jobs.preparing import MAX_PREPARATIONS, prepare, prepare_waiting
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import BatchStatus, File, FileView, OnInvalid, SliceStatus
from pipeline.tables.session import transaction


def test_a_submitted_batch_waits_with_a_message_to_prepare_it(bench: Bench) -> None:
    batch_id = bench.submit(request_lines(1), metadata={"a": "b"}, output_expires_after_seconds=3600)
    batch = bench.batch(batch_id)
    assert batch.status is BatchStatus.VALIDATING
    assert (batch.expires_at - batch.created_at).total_seconds() == 24 * 3600
    assert (batch.metadata_, batch.output_expires_after_seconds) == ({"a": "b"}, 3600)
    assert bench.messages(PREPARE) == [[batch_id]]


def test_a_good_file_becomes_slices_requests_and_tickets(bench: Bench) -> None:
    batch_id = bench.submit(request_lines(3))
    assert prepare(batch_id) is BatchStatus.IN_PROGRESS
    batch = bench.batch(batch_id)
    assert batch.in_progress_at is not None
    assert (batch.model, batch.num_requests, batch.num_skipped, batch.num_unfinished) == (MODEL, 3, 0, 3)
    [planned] = bench.slices(batch_id)
    assert planned.status is SliceStatus.PENDING
    assert (planned.num_requests, planned.num_unfinished, planned.deadline) == (3, 3, batch.expires_at)
    assert {request.slice_id for request in bench.requests(batch_id)} == {planned.id}
    assert bench.messages(GENERATE) == [[MODEL]]


def test_its_files_exist_and_are_shown_when_there_is_something_in_them(bench: Bench) -> None:
    batch = bench.batch(bench.run(1))
    with transaction() as session:
        files = {file_id: session.get_one(File, file_id) for file_id in (batch.output_file_id, batch.error_file_id)}
    assert [file.view for file in files.values()] == [FileView.OUTPUT, FileView.ERROR]
    assert {file.filename for file in files.values()} == {f"{batch.id}_output.jsonl", f"{batch.id}_error.jsonl"}
    assert (batch.shown_output_file_id, batch.shown_error_file_id) == (None, None)
    bench.answer(bench.claim())
    batch = bench.batch(batch.id)
    assert (batch.shown_output_file_id, batch.shown_error_file_id) == (batch.output_file_id, None)


def test_a_bad_line_fails_the_batch_and_leaves_no_requests(bench: Bench) -> None:
    batch_id = bench.submit([request_line("a"), "{", request_line("a")])
    assert prepare(batch_id) is BatchStatus.FAILED
    batch = bench.batch(batch_id)
    assert batch.failed_at is not None
    assert batch.num_requests == 0
    assert [(error.line, error.code) for error in bench.errors(batch_id)] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
    ]
    assert bench.requests(batch_id) == []
    assert bench.messages(GENERATE) == []


def test_bad_lines_can_be_skipped(bench: Bench) -> None:
    batch_id = bench.submit([request_line("a"), "{", request_line("c")], on_invalid=OnInvalid.SKIP)
    assert prepare(batch_id) is BatchStatus.IN_PROGRESS
    batch = bench.batch(batch_id)
    assert (batch.num_requests, batch.num_skipped, batch.num_unfinished) == (2, 1, 2)
    assert [request.custom_id for request in bench.requests(batch_id)] == ["a", "c"]
    assert batch.shown_error_file_id is not None


def test_a_batch_of_nothing_but_bad_lines_fails_even_then(bench: Bench) -> None:
    batch_id = bench.submit(["{"], on_invalid=OnInvalid.SKIP)
    assert prepare(batch_id) is BatchStatus.FAILED
    assert [error.line for error in bench.errors(batch_id)] == [1]


def test_two_who_prepare_at_once_make_one_plan(bench: Bench) -> None:
    batch_id = bench.submit(request_lines(200))
    prepared = at_once(lambda: prepare(batch_id), times=4)
    assert [status for status in prepared if status is not None] == [BatchStatus.IN_PROGRESS]
    assert len(bench.requests(batch_id)) == 200
    assert len(bench.messages(GENERATE)) == len(bench.slices(batch_id))
    assert bench.batch(batch_id).num_preparations == 1


def test_preparing_twice_changes_nothing(bench: Bench) -> None:
    batch_id = bench.run(2)
    assert prepare(batch_id) is None
    assert len(bench.requests(batch_id)) == 2


def test_one_message_prepares_every_batch_that_waits(bench: Bench) -> None:
    batch_ids = [bench.submit(request_lines(1)) for _ in range(3)]
    assert prepare_waiting() == 3
    assert {bench.batch(batch_id).status for batch_id in batch_ids} == {BatchStatus.IN_PROGRESS}
    assert prepare_waiting() == 0


def test_a_cancel_that_came_first_is_honoured(bench: Bench) -> None:
    batch_id = bench.submit(request_lines(1))
    with transaction() as session:
        assert cancel_batch(session, batch_id, bench.tenant.id).status is BatchStatus.CANCELLING
    assert prepare(batch_id) is None
    end_cancelled(batch_id)
    assert bench.batch(batch_id).status is BatchStatus.CANCELLED
    assert bench.requests(batch_id) == []


def test_a_cancel_while_it_is_prepared_leaves_nothing_of_the_plan(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = bench.submit(request_lines(1))
    plan = preparing.plan

    def plan_then_hear_of_the_cancel(*args: object) -> int:
        num_slices = plan(*args)  # type: ignore[arg-type]
        with transaction() as session:
            cancel_batch(session, batch_id, bench.tenant.id)
        return num_slices

    monkeypatch.setattr(preparing, "plan", plan_then_hear_of_the_cancel)
    assert prepare(batch_id) is None
    assert bench.requests(batch_id) == []
    assert bench.messages(GENERATE) == []
    end_cancelled(batch_id)
    assert bench.batch(batch_id).status is BatchStatus.CANCELLED


def storage_folder() -> Path:
    return Path(get_settings().storage_url.removeprefix("file://"))


def forget_the_pause(bench: Bench) -> None:
    bench.execute("UPDATE batches SET prepare_after = now()")


def test_storage_that_comes_back_is_survived(bench: Bench) -> None:
    batch_id = bench.submit(request_lines(1))
    storage_folder().rename(storage_folder().with_name("away"))
    assert prepare(batch_id) is None
    batch = bench.batch(batch_id)
    assert (batch.status, batch.num_preparations) == (BatchStatus.VALIDATING, 1)
    assert batch.prepare_after is not None
    shutil.rmtree(storage_folder(), ignore_errors=True)
    storage_folder().with_name("away").rename(storage_folder())
    assert prepare(batch_id) is None, "not before the pause is over"
    forget_the_pause(bench)
    assert prepare(batch_id) is BatchStatus.IN_PROGRESS


def test_storage_that_stays_away_fails_the_batch_with_a_readable_error(bench: Bench) -> None:
    batch_id = bench.submit(request_lines(1))
    shutil.rmtree(storage_folder())
    for _ in range(MAX_PREPARATIONS - 1):
        assert prepare(batch_id) is None
        forget_the_pause(bench)
    assert prepare(batch_id) is BatchStatus.FAILED
    [error] = bench.errors(batch_id)
    assert (error.line, error.code) == (0, "internal_error")
    assert "could not be read" in error.message
    assert str(storage_folder()) not in error.message


def test_a_model_without_its_tokenizer_fails_the_batch(bench: Bench) -> None:
    batch_id = bench.submit(request_lines(1))
    bench.execute("UPDATE served_models SET path = '/nowhere'")
    assert prepare(batch_id) is BatchStatus.FAILED
    assert [error.code for error in bench.errors(batch_id)] == ["model_unavailable"]


def test_an_error_that_nobody_expected_does_not_leave_it_validating_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = bench.submit(request_lines(1))

    def fail(*_: object) -> None:
        raise ZeroDivisionError("the secret of the prompt")

    monkeypatch.setattr(preparing, "intake", fail)
    for _ in range(MAX_PREPARATIONS):
        prepare(batch_id)
        forget_the_pause(bench)
    assert bench.batch(batch_id).status is BatchStatus.FAILED
    [error] = bench.errors(batch_id)
    assert "secret" not in error.message


def test_a_batch_that_kills_whoever_prepares_it_fails_in_the_end(bench: Bench) -> None:
    batch_id = bench.submit(request_lines(1))
    # Counted, and then the process was gone.
    bench.execute("UPDATE batches SET num_preparations = :count", count=MAX_PREPARATIONS)
    assert prepare(batch_id) is BatchStatus.FAILED
    assert [error.code for error in bench.errors(batch_id)] == ["internal_error"]


def test_the_sweeper_finds_a_batch_whose_message_was_lost(bench: Bench, settings_env: pytest.MonkeyPatch) -> None:
    batch_id = bench.submit(request_lines(1))
    bench.execute("DELETE FROM outbox")
    assert sweeping.prepare_forgotten(bench.engine) == 0, "it may still be on its way"
    bench.execute("UPDATE batches SET created_at = created_at - interval '1 minute'")
    assert sweeping.prepare_forgotten(bench.engine) == 1
    assert bench.messages(PREPARE) == [[batch_id]]
    assert sweeping.prepare_forgotten(bench.engine) == 0, "one message is enough"


def test_the_sweeper_leaves_a_batch_alone_that_is_being_prepared(bench: Bench) -> None:
    batch_id = bench.submit(request_lines(1))
    bench.execute("DELETE FROM outbox")
    bench.execute("UPDATE batches SET created_at = created_at - interval '1 minute'")
    with bench.engine.begin() as conn:
        assert preparing.try_lock(conn, batch_id)
        assert sweeping.prepare_forgotten(bench.engine) == 0
    assert sweeping.prepare_forgotten(bench.engine) == 1


def test_a_batch_that_is_to_be_tried_again_is_left_alone_until_then(
    bench: Bench, settings_env: pytest.MonkeyPatch
) -> None:
    settings_env.setenv(PREFIX + "SWEEP_SECONDS", "600")
    get_settings.cache_clear()
    bench.submit(request_lines(1))
    bench.execute("DELETE FROM outbox")
    shutil.rmtree(storage_folder())
    assert prepare_waiting() == 0
    bench.execute("UPDATE batches SET created_at = created_at - interval '1 day'")
    assert sweeping.prepare_forgotten(bench.engine) == 0
    bench.execute("UPDATE batches SET prepare_after = prepare_after - interval '1 day'")
    assert sweeping.prepare_forgotten(bench.engine) == 1

from __future__ import annotations

from datetime import timedelta

import pytest
import redis
from seeds import MODEL
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session
from submitting import Bench, at_once, request_lines

from pipeline import storage
from pipeline.celery import GENERATE, KEY_PREFIX, generate_queue
from pipeline.jobs import outbox, sweeping
from pipeline.jobs.finalizing import finalize
from pipeline.jobs.preparing import prepare
from pipeline.settings import PREFIX, get_settings
from pipeline.tables import Attempt, AttemptEnd, BatchStatus, File, Group, GroupState, OutcomeKind, SliceStatus


def lose_leases(bench: Bench) -> None:
    bench.execute("UPDATE slices SET lease_expires_at = now() - interval '1 second' WHERE status = 'claimed'")


def attempts(engine: Engine) -> list[Attempt]:
    with Session(engine) as session:
        return list(session.scalars(select(Attempt).order_by(Attempt.lease_epoch)))


def num_tickets(redis_url: str) -> int:
    with redis.Redis.from_url(redis_url) as client:
        return int(client.llen(KEY_PREFIX + generate_queue(MODEL)))


def test_a_lost_lease_goes_back_once_under_a_new_epoch_with_a_ticket(bench: Bench) -> None:
    batch_id = bench.run(2)
    bench.execute("DELETE FROM outbox")
    claimed = bench.claim()
    bench.answer(claimed, 1)
    assert sweeping.take_back_lost_slices(bench.engine) == 0, "the lease still holds"
    lose_leases(bench)
    assert sweeping.take_back_lost_slices(bench.engine) == 1
    assert sweeping.take_back_lost_slices(bench.engine) == 0
    [planned] = bench.slices(batch_id)
    assert (planned.status, planned.lease_epoch) == (SliceStatus.PENDING, claimed.lease_epoch + 1)
    assert (planned.lease_expires_at, planned.num_unfinished) == (None, 1)
    [attempt] = attempts(bench.engine)
    assert (attempt.end, attempt.num_succeeded) == (AttemptEnd.LOST, 1)
    assert attempt.ended_at is not None
    assert bench.messages(GENERATE) == [[MODEL]]


def test_whoever_lost_it_writes_nothing_and_another_finishes(bench: Bench) -> None:
    batch_id = bench.run(2)
    stale = bench.claim("group-0@test")
    lose_leases(bench)
    sweeping.sweep()
    assert bench.answer(stale).stale == {stale.id}
    assert bench.outcomes(batch_id) == [None, None]
    assert bench.answer(bench.claim("group-1@test")).finished_batches == (batch_id,)
    assert finalize(batch_id) is BatchStatus.COMPLETED


def test_two_sweeps_at_once_do_what_one_does(bench: Bench) -> None:
    batch_id = bench.run(2)
    bench.execute("DELETE FROM outbox")
    bench.claim()
    lose_leases(bench)
    counts = [done.get("lost_slices", 0) for done in at_once(sweeping.sweep, times=4)]
    assert sum(counts) == 1
    assert [planned.lease_epoch for planned in bench.slices(batch_id)] == [2]


def test_parts_of_two_sweeps_that_meet_do_what_one_does(bench: Bench) -> None:
    bench.run(2)
    bench.claim()
    lose_leases(bench)
    assert sum(at_once(lambda: sweeping.take_back_lost_slices(bench.engine), times=4)) == 1


def test_a_slice_that_keeps_losing_its_lease_fails(bench: Bench, settings_env: pytest.MonkeyPatch) -> None:
    settings_env.setenv(PREFIX + "MAX_ATTEMPTS", "2")
    get_settings.cache_clear()
    batch_id = bench.run(4)
    for num_answered in (1, 1, 0, 1):  # an attempt that got on does not count
        bench.answer(bench.claim(), num_answered)
        lose_leases(bench)
        sweeping.sweep()
        assert bench.batch(batch_id).status is BatchStatus.IN_PROGRESS
    bench.claim()
    lose_leases(bench)
    sweeping.sweep()
    assert bench.batch(batch_id).status is BatchStatus.COMPLETED
    assert [request.error_code for request in bench.requests(batch_id)] == [None, None, None, "too_many_attempts"]
    assert bench.outcomes(batch_id) == [*[OutcomeKind.SUCCEEDED] * 3, OutcomeKind.FAILED]
    assert [planned.status for planned in bench.slices(batch_id)] == [SliceStatus.DONE]


def test_one_part_that_fails_does_not_keep_leases_from_being_swept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(1)
    bench.claim()
    lose_leases(bench)

    def fail(_: Engine) -> int:
        raise storage.StorageError("gone")

    monkeypatch.setattr(sweeping, "_PARTS", {"expired_files": fail, **sweeping._PARTS, "last": fail})
    assert sweeping.sweep()["lost_slices"] == 1


def test_tickets_are_refilled_after_redis_has_lost_everything(
    bench: Bench, redis_url: str, settings_env: pytest.MonkeyPatch
) -> None:
    settings_env.setenv(PREFIX + "SLICE_REQUESTS", "1")
    get_settings.cache_clear()
    bench.run(4)
    bench.claim()
    outbox.publish()
    assert num_tickets(redis_url) == 4
    assert sweeping.add_missing_tickets(bench.engine) == 0
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    assert sweeping.add_missing_tickets(bench.engine) == 3, "one slice is claimed"
    assert sweeping.add_missing_tickets(bench.engine) == 0, "they are in the outbox"
    outbox.publish()
    assert num_tickets(redis_url) == 3
    assert sweeping.add_missing_tickets(bench.engine) == 0


def test_no_ticket_is_added_for_what_nobody_may_claim(bench: Bench, redis_url: str) -> None:
    bench.run(1)
    bench.execute("DELETE FROM outbox")
    bench.execute("UPDATE batches SET status = 'cancelling', cancelling_at = now()")
    assert sweeping.add_missing_tickets(bench.engine) == 0


def test_sweeping_goes_on_without_redis(bench: Bench, settings_env: pytest.MonkeyPatch) -> None:
    bench.run(1)
    bench.claim()
    lose_leases(bench)
    settings_env.setenv(PREFIX + "REDIS_URL", "redis://127.0.0.1:1/0")
    get_settings.cache_clear()
    assert sweeping.sweep() == {"lost_slices": 1}


def expire_file(bench: Bench, file_id: str | None) -> None:
    bench.execute("UPDATE files SET expires_at = now() - interval '1 second' WHERE id = :id", id=file_id)


def is_deleted(bench: Bench, file_id: str | None) -> bool:
    with Session(bench.engine) as session:
        return session.get_one(File, file_id).deleted_at is not None


def test_expired_files_go_with_their_blobs(bench: Bench) -> None:
    old, young = bench.upload(request_lines(1)), bench.upload(request_lines(1))
    expire_file(bench, old)
    assert sweeping.remove_expired_files(bench.engine) == 1
    assert sweeping.remove_expired_files(bench.engine) == 0
    assert (is_deleted(bench, old), is_deleted(bench, young)) == (True, False)
    with pytest.raises(storage.BlobNotFoundError):
        storage.open_blob(old)
    storage.open_blob(young).close()


def test_a_file_that_a_batch_has_yet_to_read_stays(bench: Bench) -> None:
    batch_id = bench.submit(request_lines(1))
    file_id = bench.batch(batch_id).input_file_id
    expire_file(bench, file_id)
    assert sweeping.remove_expired_files(bench.engine) == 0
    prepare(batch_id)
    assert sweeping.remove_expired_files(bench.engine) == 1


def test_an_output_file_expires_and_its_batch_stays(bench: Bench) -> None:
    batch_id = bench.run(1)
    bench.answer(bench.claim())
    finalize(batch_id)
    file_id = bench.batch(batch_id).output_file_id
    expire_file(bench, file_id)
    sweeping.sweep()
    assert is_deleted(bench, file_id)
    assert bench.batch(batch_id).status is BatchStatus.COMPLETED


def test_groups_without_a_heartbeat_are_stopped(bench: Bench) -> None:
    silence = {"ready": 1000, "starting": 1000, "stopped": 1000, "alive": 0}
    with Session(bench.engine) as session, session.begin():
        for name, seconds in silence.items():
            state = GroupState.READY if name == "alive" else GroupState(name)
            heartbeat_at = func.now() - timedelta(seconds=seconds)
            session.add(
                Group(id=name, model=MODEL, state=state, pid=1, rank_pids=[7], info={}, heartbeat_at=heartbeat_at)
            )
    assert sweeping.stop_silent_groups(bench.engine) == 1
    with bench.engine.connect() as conn:
        states = {row.id: row.state for row in conn.execute(text("SELECT id, state FROM groups"))}
    assert states == {"ready": "stopped", "starting": "starting", "stopped": "stopped", "alive": "ready"}

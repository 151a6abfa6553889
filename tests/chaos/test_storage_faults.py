"""Disks that are full, read-only or slow: what was accepted goes on, what can't be kept is refused whole."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import psycopg
import pytest
from batch_jobs import check_complete, lines_of, submit, wait_for_end, wait_until_under_way
from harness import SHORT_LEASES
from small_disk import SmallDisk, small_disk
from stacks import RunningStack, wait_for

NUM_REQUESTS = 120


@pytest.fixture(scope="module")
def disk(stack_folder: Path) -> Iterator[SmallDisk]:
    with small_disk(stack_folder / "small") as disk:
        yield disk


@pytest.fixture(scope="module")
def stack(stack_folder: Path, tiny_model: Path, disk: SmallDisk) -> Iterator[RunningStack]:
    """Its uploads are on the small disk."""
    storage = {"RYZANSTEIN_STORAGE_URL": (disk.path / "blobs").as_uri()}
    stack = RunningStack(stack_folder / "storage", tiny_model, ("--engine", "echo"), {**SHORT_LEASES, **storage})
    try:
        stack.up()
        yield stack
    finally:
        stack.end()


def refused_upload(stack: RunningStack, num_bytes: int) -> openai.InternalServerError:
    """The error of an upload that is refused; it must have left no file behind."""
    client = stack.client().with_options(max_retries=0)
    before = [file.id for file in client.files.list()]
    with pytest.raises(openai.InternalServerError) as refused:
        client.files.create(file=("refused.jsonl", io.BytesIO(b"\n" * num_bytes)), purpose="batch")
    assert [file.id for file in client.files.list()] == before
    return refused.value


def blobs(disk: SmallDisk) -> set[str]:
    return {path.name for path in (disk.path / "blobs").rglob("*") if path.is_file()}


def test_read_only_storage_refuses_uploads_and_the_batches_go_on(stack: RunningStack, disk: SmallDisk) -> None:
    client, lines = stack.client(), lines_of(NUM_REQUESTS)
    batch = submit(client, lines)
    wait_until_under_way(client, batch.id)
    disk.make_read_only()
    try:
        error = refused_upload(stack, 100)
        check_complete(stack, wait_for_end(client, batch.id), lines)
    finally:
        disk.make_writable()

    assert error.status_code == 503
    assert error.response.headers["retry-after"] == "2"
    assert "nothing was recorded" in error.message
    check_complete(stack, wait_for_end(client, submit(client, lines).id), lines)


def test_full_storage_refuses_uploads_whole(stack: RunningStack, disk: SmallDisk) -> None:
    client, lines = stack.client(), lines_of(NUM_REQUESTS)
    before = blobs(disk)
    disk.fill()
    try:
        error = refused_upload(stack, 3_000_000)
    finally:
        disk.free()

    assert error.status_code == 503
    assert blobs(disk) == before  # and nothing under .incoming
    check_complete(stack, wait_for_end(client, submit(client, lines).id), lines)


def test_slow_storage_delays_uploads_and_nobody_else(stack: RunningStack, disk: SmallDisk) -> None:
    client, lines = stack.client(), lines_of(NUM_REQUESTS)
    batch = submit(client, lines)
    wait_until_under_way(client, batch.id)
    uploaded: list[str] = []

    def upload() -> None:
        uploaded.append(client.files.create(file=("slow.jsonl", io.BytesIO(b"\n" * 2**20)), purpose="batch").id)

    uploads = [threading.Thread(target=upload) for _ in range(3)]
    disk.freeze()
    try:
        for thread in uploads:
            thread.start()
        check_complete(stack, wait_for_end(client, batch.id), lines)
        assert uploaded == []
    finally:
        disk.thaw()
    for thread in uploads:
        thread.join(60)

    assert len(uploaded) == 3
    assert {len(client.files.content(file_id).read()) for file_id in uploaded} == {2**20}


def test_a_full_disk_under_the_results_costs_time_and_no_request(stack: RunningStack, disk: SmallDisk) -> None:
    place = disk.path / "results"
    place.mkdir()
    os.chown(place, (stack.data_dir / "postgres").stat().st_uid, -1)
    with psycopg.connect(stack.report["database_url"], autocommit=True) as conn:
        conn.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
        months = conn.execute("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'results'::regclass")
        for (month,) in months.fetchall():
            conn.execute(f"ALTER TABLE {month} SET TABLESPACE small")
    client, lines = stack.client(), lines_of(3 * NUM_REQUESTS)
    log = stack.data_dir / "logs" / "postgres.log"
    disk.fill()
    try:
        batch = submit_on_full_disk(stack, disk, lines)
        wait_for(lambda: "No space left on device" in log.read_text(), "a full disk")
        time.sleep(2 * float(SHORT_LEASES["RYZANSTEIN_LEASE_SECONDS"]))  # it lasts: leases are renewed all the while
        assert client.batches.retrieve(batch).status == "in_progress"
    finally:
        disk.free()

    check_complete(stack, wait_for_end(client, batch), lines)
    with psycopg.connect(stack.report["database_url"]) as conn:
        rows = conn.execute('SELECT DISTINCT "end" FROM attempts WHERE batch_id = %s', [batch]).fetchall()
    assert rows == [("finished",)]  # nothing was computed twice


def submit_on_full_disk(stack: RunningStack, disk: SmallDisk, lines: list[dict[str, object]]) -> str:
    """The upload is small and finds its place in what the filler gives up for a moment."""
    disk.free()
    batch = submit(stack.client(), lines)
    disk.fill()
    return batch.id

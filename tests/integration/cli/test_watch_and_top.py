"""`ryzanstein watch` and `ryzanstein top`: in a pipe, and on a real terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from running_gateways import Tenant, postgres_processes, wait_for
from seeds import MODEL, SeededTenant, seed_batch, seed_model, sql
from sqlalchemy import Engine
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.embedded import EmbeddedPostgres
from pipeline.errors import UserError
from pipeline.jobs.claiming import claim_slice
from pipeline.settings import PREFIX, get_settings

Run = Callable[..., Result]
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@pytest.fixture
def run(acme: Tenant, set_before_start: Callable[[str, object], None]) -> Run:
    set_before_start("BASE_URL", str(acme.client.base_url))
    set_before_start("API_KEY", acme.key)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def begin(database: Engine, acme: Tenant, *slices: int) -> str:
    if not sql(database, "SELECT 1 FROM served_models"):
        seed_model(database)
    [(key_id,)] = sql(database, "SELECT id FROM api_keys WHERE tenant_id = :id LIMIT 1", id=acme.id)
    return seed_batch(database, SeededTenant(acme.id, key_id), list(slices or (4,)))


def start_group(database: Engine, name: str = "group-0@here", **info: Any) -> None:
    sql(
        database,
        "INSERT INTO groups (id, model, state, pid, rank_pids, info) VALUES (:id, :model, 'ready', 1, '[]', :info)",
        id=name,
        model=MODEL,
        info=json.dumps({"kv_tokens": 1000, "kv_tokens_used": 250, **info}),
    )


def end(database: Engine, batch_id: str, status: str) -> None:
    sql(database, "UPDATE batches SET status = :s, num_succeeded = 4 WHERE id = :id", s=status, id=batch_id)


def test_several_batches_are_watched_until_all_have_ended(
    run: Run, acme: Tenant, database: Engine, log_path: Path
) -> None:
    first, second = begin(database, acme), begin(database, acme)
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run("watch", first, second, first)))
    thread.start()
    wait_for(lambda: log_path.read_text().count(second) >= 2)
    end(database, first, "completed")
    num_looks = log_path.read_text().count(second)
    wait_for(lambda: log_path.read_text().count(second) >= num_looks + 2)
    assert thread.is_alive(), "the second has not ended"
    end(database, second, "expired")
    thread.join(60)

    [result] = results
    assert result.exit_code == 3
    assert [line.split()[:2] for line in result.stdout.splitlines()] == [[first, "completed"], [second, "expired"]]
    assert f"{second} in_progress 0/4" in result.stderr


def test_without_ids_all_open_batches_are_watched(run: Run, acme: Tenant, database: Engine, log_path: Path) -> None:
    nothing = run("watch")
    assert isinstance(nothing.exception, UserError)
    done, still = begin(database, acme), begin(database, acme)
    end(database, done, "completed")
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run("watch", "--json")))
    thread.start()
    wait_for(lambda: still in log_path.read_text())
    end(database, still, "completed")
    thread.join(60)
    assert results[0].exit_code == 0, results[0].output
    assert [json.loads(line)["id"] for line in results[0].stdout.splitlines()] == [still]
    assert results[0].stderr == ""


def test_a_batch_that_stands_still_says_why(
    run: Run, acme: Tenant, database: Engine, log_path: Path, settings_env: Any
) -> None:
    settings_env.setattr("pipeline.cli.watching._WHY_SECONDS", 0.3)
    batch_id = begin(database, acme)
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run("watch", batch_id)))
    thread.start()
    wait_for(lambda: f"{batch_id}/explain" in log_path.read_text())
    end(database, batch_id, "completed")
    thread.join(60)
    assert "No group works for the model 'tiny'" in results[0].stderr


def test_top_shows_groups_queues_and_tenants(run: Run, acme: Tenant, database: Engine) -> None:
    begin(database, acme, 3, 3, 3)
    start_group(database)
    start_group(database, "group-1@here")
    sql(database, "UPDATE groups SET heartbeat_at = now() - interval '1 hour' WHERE id = 'group-1@here'")
    with database.begin() as conn:
        claim_slice(conn, model=MODEL, group_id="group-0@here", lease_seconds=60)
    sql(database, "UPDATE attempts SET num_tokens = 5000, started_at = now() - interval '10 seconds'")

    shown = run("top", "--once")
    found = json.loads(run("top", "--json").stdout)

    assert shown.exit_code == 0, shown.exception
    for text in ("groups 1/2 ready", "group-0", "lost", "25%", "acme", "standard", "only"):
        assert text in shown.stdout
    assert [(one["id"], one["state"], one["slices"]) for one in found["groups"]] == [
        ("group-0@here", "ready", 1),
        ("group-1@here", "lost", 0),
    ]
    assert [(one["model"], one["pending_slices"], one["next_tenant"]) for one in found["queues"]] == [
        (MODEL, 2, "acme")
    ]
    [tenant] = found["tenants"]
    assert (tenant["tenant"], tenant["pending_slices"], tenant["slices_at_work"]) == ("acme", 2, 1)
    assert tenant["tokens_per_second"] == pytest.approx(500, rel=0.3)
    assert found["batches"] == {"validating": 0, "in_progress": 1, "paused": 0}


def test_top_of_an_empty_service_says_so(run: Run) -> None:
    assert "No group has registered." in run("top").stdout


@contextmanager
def terminal(width: int, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], list[str]]]:
    """A command on a terminal of so many columns, and what it has written there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={name: value for name, value in environment.items() if value},
        start_new_session=True,
    )
    os.close(theirs)
    written: list[str] = []

    def read() -> None:
        while True:
            try:
                data = os.read(ours, 65_536)
            except OSError:  # the other side is closed
                return
            if not data:
                return
            written.append(data.decode(errors="replace"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield process, written
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()
        os.close(ours)


def text_of(written: list[str]) -> str:
    return _CONTROL.sub("", "".join(written))


def test_on_a_narrow_terminal_both_redraw_and_end_in_order(run: Run, acme: Tenant, database: Engine) -> None:
    batch_id = begin(database, acme)
    start_group(database)
    watching, topping = terminal(40, "watch", batch_id), terminal(50, "top", "--interval", "0.2")
    with watching as (watch, bars), topping as (top, screen):
        wait_for(lambda: "in_progress" in text_of(bars), 30)
        wait_for(lambda: text_of(screen).count("groups 1/1 ready") >= 3, 30)
        sql(database, "UPDATE batches SET num_succeeded = 2")
        wait_for(lambda: "50%" in text_of(bars), 30)
        end(database, batch_id, "completed")
        assert watch.wait(30) == 0
        top.send_signal(signal.SIGINT)
        assert top.wait(30) == 130
    assert "Traceback" not in text_of(bars) + text_of(screen)


def test_top_waits_for_a_database_that_is_away(run: Run, database: Engine, settings_env: pytest.MonkeyPatch) -> None:
    settings_env.setenv(f"{PREFIX}DATABASE_URL", "postgresql+psycopg://nobody@127.0.0.1:1/none")
    get_settings.cache_clear()
    with terminal(100, "top", "--interval", "0.2") as (top, screen):
        wait_for(lambda: "It is asked again" in text_of(screen), 30)
        assert top.poll() is None


def test_top_keeps_what_it_has_seen_of_a_database_that_goes_away(own_postgres: EmbeddedPostgres) -> None:
    with terminal(100, "top", "--interval", "0.2") as (_, screen):
        wait_for(lambda: "No group has registered." in text_of(screen), 30)
        os.kill(postgres_processes(own_postgres)[0], signal.SIGINT)  # fast shutdown
        own_postgres.process = None
        wait_for(lambda: "No group has registered." in text_of(screen).partition("It is asked again")[2], 30)

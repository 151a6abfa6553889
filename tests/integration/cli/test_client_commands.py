"""`submit`, `batches`, `watch`, `download` and `cancel`, against a real gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from running_gateways import Tenant, serve, wait_for
from sqlalchemy import func, select, update
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.gateway import create_app
from pipeline.ids import new_file_id
from pipeline.settings import get_settings
from pipeline.tables import Batch, BatchError, BatchStatus, File, FileView, OnInvalid, OutcomeKind, Quote, Request
from pipeline.tables.session import transaction

Run = Callable[..., Result]


@pytest.fixture
def run(acme: Tenant, set_before_start: Callable[[str, object], None]) -> Run:
    """Runs a command as the tenant acme."""
    set_before_start("BASE_URL", str(acme.client.base_url))
    set_before_start("API_KEY", acme.key)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.fixture
def input_file(tmp_path: Path) -> str:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"custom_id": "a", "url": "/v1/completions"}\n')
    return str(path)


def printed(result: Result) -> Any:
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def end_all(status: BatchStatus, **values: Any) -> None:
    with transaction() as session:
        session.execute(update(Batch).values(status=status, **values))


def test_submit_starts_a_batch_for_the_endpoint_that_its_lines_name(run: Run, acme: Tenant, input_file: str) -> None:
    options = ["--on-invalid", "skip", "--window", "2h", "--metadata", "a=b=c", "--metadata", "d=", "--json"]

    batch = printed(run("submit", input_file, *options))

    assert (batch["status"], batch["endpoint"], batch["completion_window"]) == ("validating", "/v1/completions", "2h")
    assert batch["metadata"] == {"a": "b=c", "d": ""}
    assert acme.client.files.retrieve(batch["input_file_id"]).filename == "requests.jsonl"
    with transaction() as session:
        assert session.get_one(Batch, batch["id"]).on_invalid is OnInvalid.SKIP


def test_submit_asks_for_receipts(run: Run, input_file: str, settings_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings_env.setenv("RYZANSTEIN_SIGNING_KEY_FILE", str(tmp_path / "key.pem"))
    settings_env.setenv("RYZANSTEIN_RECEIPTS", "true")
    get_settings.cache_clear()
    assert printed(run("submit", input_file, "--json"))["receipts"] is True
    assert printed(run("submit", input_file, "--no-receipts", "--json"))["receipts"] is False
    assert printed(run("submit", input_file, "--receipts", "--json"))["receipts"] is True


class LosesFirstAnswers:
    """Does all that it is asked to; what is sent by POST is answered when it is sent again."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.lost: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] in self.lost:
            await self.app(scope, receive, send)
            return

        async def forget(_: Message) -> None:
            pass

        self.lost.add(scope["path"])
        await self.app(scope, receive, forget)
        await Response(status_code=503)(scope, receive, send)


@pytest.mark.parametrize(("command", "table"), [("submit", Batch), ("quote", Quote)])
def test_what_is_sent_again_since_its_answer_was_lost_is_made_once(
    run: Run,
    input_file: str,
    set_before_start: Callable[[str, object], None],
    settings_env: pytest.MonkeyPatch,
    command: str,
    table: type[Batch] | type[Quote],
) -> None:
    settings_env.setattr("pipeline.gateway.quotes._WAIT_SECONDS", 0.0)
    settings_env.setattr("pipeline.cli.quoting.read_quote", lambda *_: {"status": "failed"})  # nobody computes it
    gateway = create_app()
    gateway.add_middleware(LosesFirstAnswers)
    with serve(gateway) as address:
        set_before_start("BASE_URL", f"{address}/v1")
        assert run(command, input_file, "--json").exit_code == (0 if command == "submit" else 3)
    with transaction() as session:
        assert session.execute(select(func.count()).select_from(table)).scalar_one() == 1
        assert session.execute(select(func.count()).select_from(File)).scalar_one() == 1


def test_a_quote_that_takes_long_says_what_it_waits_for(
    run: Run, input_file: str, settings_env: pytest.MonkeyPatch
) -> None:
    settings_env.setattr("pipeline.gateway.quotes._WAIT_SECONDS", 0.0)
    settings_env.setattr("pipeline.cli.quoting._PATIENT_SECONDS", 0.0)
    answers = iter([{"id": "quote_1", "status": "computing"}, {"status": "failed", "errors": None}])
    settings_env.setattr("pipeline.cli.quoting.read_quote", lambda *_: next(answers))
    result = run("quote", input_file, "--json")
    assert result.exit_code == 3
    assert result.stderr.count("is still being computed. If this takes long, `ryzanstein doctor`") == 1


def test_submit_prints_one_line_for_people(run: Run, input_file: str) -> None:
    result = run("submit", input_file, "--endpoint", "/v1/chat/completions")
    with transaction() as session:
        batch_id = session.execute(select(Batch.id)).scalar_one()
    assert (result.exit_code, result.stdout) == (0, f"{batch_id} validating\n")


def test_submit_waits_for_the_end_and_says_how_it_was(run: Run, input_file: str) -> None:
    for status, code in ((BatchStatus.COMPLETED, 0), (BatchStatus.EXPIRED, 3)):
        results: list[Result] = []
        thread = threading.Thread(target=lambda: results.append(run("submit", input_file, "--wait")))  # noqa: B023
        thread.start()
        is_open = Batch.status == BatchStatus.VALIDATING

        def has_begun(is_open: Any = is_open) -> bool:
            with transaction() as session:
                return bool(session.execute(select(func.count()).where(is_open)).scalar_one())

        wait_for(has_begun)
        end_all(status, num_requests=7, num_succeeded=7)
        thread.join(timeout=60)
        assert results[0].exit_code == code
        assert f"{status} (7 requests, 7 completed, 0 failed)" in results[0].stdout
        assert results[0].stderr == ""  # no progress where there is no terminal


def test_watch_shows_what_was_wrong_with_a_batch_that_failed(run: Run, input_file: str) -> None:
    batch_id = printed(run("submit", input_file, "--json"))["id"]
    end_all(BatchStatus.FAILED)
    with transaction() as session:
        for line in range(12):
            session.add(BatchError(batch_id=batch_id, line=line, code="bad", param=None, message="It is bad."))

    result = run("watch", batch_id)

    assert result.exit_code == 3
    lines = result.stderr.splitlines()
    assert lines[:2] == ["  It is bad. (bad)", "  line 1: It is bad. (bad)"]
    assert lines[10:] == ["  and 2 more; --json shows all"]
    assert len(json.loads(run("watch", batch_id, "--json").stdout)["errors"]["data"]) == 12


def test_batches_lists_the_newest_first(run: Run, input_file: str) -> None:
    ids = [printed(run("submit", input_file, "--json"))["id"] for _ in range(3)]
    assert [batch["id"] for batch in printed(run("batches", "--limit", "2", "--json"))] == [ids[2], ids[1]]
    table = run("batches").stdout
    assert table.index(ids[2]) < table.index(ids[1]) < table.index(ids[0])


def test_download_writes_what_there_is(run: Run, acme: Tenant, input_file: str, tmp_path: Path) -> None:
    batch_id = printed(run("submit", input_file, "--json"))["id"]
    error_file = new_file_id()
    with transaction() as session:
        session.add(BatchError(batch_id=batch_id, line=1, custom_id="a", code="bad", param=None, message="It is bad."))
        session.add(
            File(
                id=error_file,
                tenant_id=acme.id,
                filename="e",
                purpose="batch_output",
                num_bytes=0,
                batch_id=batch_id,
                view=FileView.ERROR,
            )
        )
    end_all(BatchStatus.IN_PROGRESS, num_skipped=1, error_file_id=error_file)
    path = tmp_path / "errors.jsonl"

    result = run("download", batch_id, "--errors", str(path))

    assert result.exit_code == 0
    assert result.stdout == f"output: none\nerrors: {path}\n"
    assert "more lines may come" in result.stderr
    assert json.loads(path.read_text())["error"]["code"] == "bad"
    assert not list(tmp_path.glob("*.part"))
    broken = run("download", batch_id, "--errors", str(tmp_path / "nowhere" / "errors.jsonl"))
    assert isinstance(broken.exception, UserError)
    assert "Can't write" in str(broken.exception)


def test_cancel_stops_a_batch(run: Run, input_file: str) -> None:
    batch_id = printed(run("submit", input_file, "--json"))["id"]
    assert printed(run("cancel", batch_id, "--json"))["status"] == "cancelling"


def test_a_batch_is_paused_resumed_and_retried(run: Run, acme: Tenant, input_file: str) -> None:
    batch_id = printed(run("submit", input_file, "--json"))["id"]

    paused = run("batches", "pause", batch_id, "--reason", "it is late")

    assert (paused.exit_code, paused.stdout) == (0, f"{batch_id} validating\n")
    assert "paused by its client (it is late)" in paused.stderr
    assert f"ryzanstein batches resume {batch_id}" in paused.stderr
    assert "validating (paused)" in run("batches").stdout
    assert printed(run("batches", "resume", batch_id, "--json"))["pause_reason"] is None
    end_all(BatchStatus.CANCELLED, num_requests=1, num_unsuccessful=1)
    with transaction() as session:
        request = Request(
            batch_id=batch_id,
            line=1,
            custom_id="a",
            prompt_token_ids=b"",
            num_prompt_tokens=0,
            params={},
            outcome=OutcomeKind.CANCELLED,
        )
        session.add(request)
    retried = printed(run("batches", "retry", batch_id, "--json"))
    assert (retried["status"], retried["metadata"]) == ("validating", {"retried_from": batch_id})
    assert isinstance(run("batches", "retry", retried["id"]).exception, UserError)


def test_mistakes_are_told_in_one_line(run: Run, input_file: str, tmp_path: Path) -> None:
    for arguments, message in [
        (("submit", str(tmp_path / "none")), "Can't read .*none: No such file"),
        (("submit", input_file, "--endpoint", "/v1/embeddings"), "Supported endpoints.*HTTP 400"),
        (("submit", input_file, "--window", "1y"), "give '24h'"),
        (("watch", "batch_none"), "No batch found with id 'batch_none'"),
        (("batches", "--api-key", "rz_wrong"), "refuses the key: Incorrect API key"),
        (("batches", "--base-url", "http://127.0.0.1:1/v1"), "Can't reach the gateway at http://127.0.0.1:1/v1"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 1
        with pytest.raises(UserError, match=message):
            raise result.exception or AssertionError
    assert run("submit", input_file, "--metadata", "novalue").exit_code == 2


def test_a_key_is_needed(address: str, set_before_start: Callable[[str, object], None]) -> None:
    set_before_start("BASE_URL", f"{address}/v1")
    with pytest.raises(UserError, match=r"No API key\. Set RYZANSTEIN_API_KEY"):
        CliRunner().invoke(app, ["batches"], catch_exceptions=False)


def test_a_real_process_prints_its_mistake_without_a_traceback(acme: Tenant, input_file: str) -> None:
    environment = {**os.environ, "RYZANSTEIN_BASE_URL": str(acme.client.base_url), "RYZANSTEIN_API_KEY": acme.key}
    command = [sys.executable, "-m", "pipeline.cli"]

    good = subprocess.run([*command, "submit", input_file, "--json"], env=environment, capture_output=True, text=True)
    bad = subprocess.run([*command, "watch", "batch_none"], env=environment, capture_output=True, text=True)

    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["status"] == "validating"
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr == "Error: No batch found with id 'batch_none'. (HTTP 404)\n"

"""Prompts, answers, keys and passwords: where they must not turn up, in a whole stack that runs, logs and fails."""

from __future__ import annotations

import json
import os
import secrets
import signal
import stat
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import openai
import psycopg
import pytest
from batch_jobs import chat_line, check_complete, read_lines, submit, wait_for_end
from otlp_receiver import OtlpReceiver
from stacks import RunningStack, wait_for
from tokenizer_folders import byte_level
from watching import (
    Flower,
    RedisTraffic,
    Watcher,
    command_lines,
    found_by_another_user,
    holding,
    redis_content,
)

from pipeline.stack.data_dir import DataDir
from pipeline.stack.leftovers import processes_of

#: In a prompt; the echo engine's answer holds it again.
CANARY = f"canary{secrets.token_hex(6)}"
#: In what a client calls its requests, files and batches. It is told of them, and nobody else is.
NAMED = f"named{secrets.token_hex(6)}"


class Watched:
    """A stack that was watched while it started, answered good and bad requests, lost PostgreSQL, and came back."""

    def __init__(self, stack: RunningStack, receiver: OtlpReceiver) -> None:
        self.stack, self.receiver = stack, receiver
        with Watcher(command_lines, 0.1) as lines:
            stack.up()
            found = DataDir(stack.data_dir).load_secrets()
            assert found is not None
            self.stack_id = found.stack_id
            assert found.api_key is not None
            self.keys = [found.api_key, stack.create_key("another")]
            self.passwords = [found.postgres_password, found.redis_password, found.flower_password]
            self.flower = Flower(stack.report["flower_url"], stack.report["flower_user"], found.flower_password)
            self._log_statements()
            with RedisTraffic(stack.report["redis_url"]) as traffic:
                self._answer_good_and_bad_requests()
                self.pages = wait_for(self._pages, "what ran, in Flower")
            self.redis_content = redis_content(stack.report["redis_url"])
            self.refusals = list(self._refusals())
            self._lose_postgres()
            self._restart_flower()
        self.command_lines = lines.seen
        self.redis_commands = traffic.commands

    @property
    def needles(self) -> list[bytes]:
        """Of a key its secret part too, by itself: the rest of it is no secret."""
        parts = [key.rpartition("_")[2] for key in self.keys]
        return [secret.encode() for secret in (CANARY, *self.keys, *parts, *self.passwords)]

    @property
    def names(self) -> list[bytes]:
        return [*self.needles, NAMED.encode()]

    def _log_statements(self) -> None:
        """Have PostgreSQL log the text of every statement from here on, as somebody who looks for a fault may do."""
        with psycopg.connect(self.stack.report["database_url"], autocommit=True) as conn:
            conn.execute("ALTER DATABASE ryzanstein SET log_statement = 'all'")
            # It holds for new sessions.
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ryzanstein'")

    def _answer(self) -> None:
        client = self.stack.client()
        lines = [chat_line(f"{NAMED}-{name}", CANARY, max_tokens=200) for name in ("one", "two")]
        submitted = submit(client, lines, metadata={"name": NAMED, NAMED: "name"}, extra_headers=_context())
        check_complete(self.stack, batch := wait_for_end(client, submitted.id), lines)
        answers = [line["response"]["body"] for line in read_lines(client, batch.output_file_id)]
        assert all(CANARY in json.dumps(answer) for answer in answers)

    def _pages(self) -> dict[str, bytes] | None:
        """Flower's, with workers and tasks. What ran before it listened it does not show: then something runs again."""
        if b"generate.slice" not in self.flower.get("/api/tasks"):
            self._answer()
        pages = dict(self.flower.crawl())
        kinds = {path.split("/")[1] for path in pages}
        return pages if {"worker", "task"} <= kinds and b"generate.slice" in pages["/api/tasks"] else None

    def _answer_good_and_bad_requests(self) -> None:
        self._answer()
        bad = [
            f"{CANARY} is not JSON",
            {**chat_line("a", CANARY), "method": "PUT", "url": "/v1/elsewhere"},
            chat_line("b", CANARY, max_tokens=CANARY),
            chat_line("c", CANARY, stop=[CANARY, 5]),
            chat_line("d", CANARY, model=5),
            chat_line("e", CANARY * 1000),
            {**chat_line("f"), "body": {"model": "tiny", "messages": CANARY}},
            {**chat_line("g"), "body": {"model": "tiny", "messages": [{"role": "teacher", "content": CANARY}]}},
            {**chat_line("h"), "body": {"model": "tiny", "messages": [{"role": "user", "content": {"a": CANARY}}]}},
        ]
        client = self.stack.client()
        failed = wait_for_end(client, submit(client, bad).id)
        assert failed.status == "failed"
        assert failed.errors is not None
        self.batch_errors = [error.to_json() for error in failed.errors.data or []]
        assert len(self.batch_errors) >= len(bad)

    def _refusals(self) -> Iterator[bytes]:
        """What the gateway answers to callers it refuses, headers included."""
        wrong = self.keys[0][:-1] + ("0" if self.keys[0][-1] != "0" else "1")
        self.keys.append(wrong)  # a key with a slip in it is as good as secret
        for path in ("/v1/models", "/v1/files/file-none", "/v1/batches"):
            yield self._ask(path, wrong)
        yield self._ask("/v1/files/file-none/content", self.keys[0])
        yield self._ask("/v1/batches", self.keys[0], body=b'{"input_file_id": 5, "endpoint": {}}')

    def _ask(self, path: str, key: str, body: bytes | None = None) -> bytes:
        url = self.stack.report["base_url"].removesuffix("/v1") + path
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with pytest.raises(HTTPError) as caught:
            opener.open(urllib.request.Request(url, data=body, headers=headers), timeout=30)
        return bytes(caught.value.headers) + caught.value.read()

    def _lose_postgres(self) -> None:
        """Errors of a server that is away name the server; it comes back before this returns."""
        killed = self.stack.kill("postgres")
        client = self.stack.client().with_options(max_retries=0)

        def refusal() -> bytes | None:
            try:
                client.batches.list()
            except openai.APIStatusError as error:
                return error.response.content
            except openai.APIConnectionError:
                return None
            return b"it is back"

        self.refusals.append(wait_for(refusal, "an answer"))
        self.stack.wait_until_back(killed)

    def _restart_flower(self) -> None:
        """When it ends it writes down what it has seen."""
        old = self.stack.status()["pids"]["flower"]
        os.kill(old, signal.SIGTERM)
        self.stack.wait_until_back({"flower": old})


def _context() -> dict[str, str]:
    """A trace that the client has begun."""
    return {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"}


@pytest.fixture(scope="module")
def watched(stack_folder: Path) -> Iterator[Watched]:
    model = byte_level(stack_folder / "watched" / "tiny", context_length=512)  # room for the echo of a prompt
    with OtlpReceiver() as receiver:
        env = {
            "RYZANSTEIN_LOG_LEVEL": "DEBUG",
            "RYZANSTEIN_OTLP_ENDPOINT": receiver.url,
            "NO_PROXY": "127.0.0.1",
        }
        stack = RunningStack(stack_folder / "watched" / "data", model, ("--engine", "echo"), env)
        try:
            yield Watched(stack, receiver)
        finally:
            stack.end()


def test_no_log_holds_a_secret(watched: Watched) -> None:
    logs = {path.name: path.read_bytes() for path in (watched.stack.data_dir / "logs").iterdir()}
    assert {"gateway.log", "control.log", "group-0.log", "flower.log", "postgres.log"} <= set(logs)
    assert b"INSERT INTO results" in logs["postgres.log"], "content is no part of a statement's text"
    assert holding(watched.names, logs.values()) == []


def test_no_command_line_or_title_of_a_process_holds_a_secret(watched: Watched) -> None:
    assert any(b"pipeline.cli\0gateway" in line for line in watched.command_lines)
    assert any(b"initdb" in line for line in watched.command_lines), "the shortest of them was not seen"
    assert holding(watched.names, watched.command_lines) == []


def test_nothing_that_passes_through_redis_or_stays_there_is_secret(watched: Watched) -> None:
    assert any(b"generate.slice" in command for command in watched.redis_commands)
    assert any(b"task-succeeded" in command for command in watched.redis_commands)
    assert holding(watched.names, [*watched.redis_commands, watched.redis_content]) == []


def test_no_page_of_flower_shows_a_secret_and_its_memory_holds_none(watched: Watched) -> None:
    assert holding(watched.names, watched.pages.values()) == []
    memory = {path.name: path.read_bytes() for path in (watched.stack.data_dir / "flower").iterdir()}
    assert any(b"generate.slice" in content for content in memory.values())
    assert holding(watched.names, memory.values()) == []


def test_no_span_holds_a_secret(watched: Watched) -> None:
    names = {span.name for span in watched.receiver.spans}
    assert {"POST /v1/batches", "batch.prepare", "slice.attempt", "outcomes.record", "batch.finalize"} <= names
    assert {span.process for span in watched.receiver.spans} == {"gateway", "control", "group-0"}
    assert holding([b"batch.prepare"], watched.receiver.bodies), "they can be read"
    assert holding(watched.names, watched.receiver.bodies) == []


def test_no_error_repeats_a_secret(watched: Watched) -> None:
    assert holding(watched.needles, [error.encode() for error in watched.batch_errors]) == []
    assert holding(watched.needles, watched.refusals) == []


def test_another_user_of_the_machine_finds_nothing(watched: Watched, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can look with the eyes of another user")
    left_open = watched.stack.data_dir / "left-open"
    left_open.write_bytes(watched.needles[0])
    try:
        assert found_by_another_user(watched.needles, watched.stack.data_dir) == [str(left_open)]
    finally:
        left_open.unlink()


def test_what_holds_secrets_is_its_owners_alone(watched: Watched) -> None:
    data_dir = DataDir(watched.stack.data_dir)
    private = [data_dir.secrets_file, data_dir.state_file, data_dir.redis / "redis.conf", data_dir.logs, data_dir.blobs]
    for path in [*private, data_dir.postgres, data_dir.root / "flower"]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    for process in processes_of(watched.stack_id):
        assert stat.S_IMODE(Path(f"/proc/{process.pid}/environ").stat().st_mode) == 0o400

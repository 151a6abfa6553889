"""The process that forks ranks: what is there of it, and what happens when it dies, stands still or can't fork."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path

import msgspec
import psutil
import pytest
from model_folders import random_llama
from running_engines import (
    PATIENCE,
    answer,
    engine_children,
    fork_server_children,
    make_request,
    rank_children,
    take,
    wait_for_state,
    wait_until,
    wait_until_gone,
)

from workers.backends import crash_window, rank_processes
from workers.backends.cores import usable_cores
from workers.backends.native import EngineOptions, NativeEngine
from workers.backends.protocol import EngineStartError, EngineState, OutcomeStatus
from workers.engine.messages import Ended, Failed, Fork, Forked, FromForkServer, FromRank, NotForked, Serving, encode

PROMPT = list(range(10, 30))
CANARY = "canary-of-a-prompt"
FORK = Fork(rank=1, cores=(), log_level="INFO", log_format="json")
#: A user that may start nothing more. Root may always, so the process becomes somebody else.
WITHOUT_PROCESSES = """
import os, resource, workers.fork_server, workers.rank
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
if os.getuid() == 0:
    os.setuid(65_534)
workers.fork_server.main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model"), context_length=16_384)


@pytest.fixture
def engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NativeEngine]:
    monkeypatch.setattr(crash_window, "FIRST_BACKOFF_SECONDS", 0.01)
    engine = NativeEngine(EngineOptions(model_path=str(folder), tp=2, kv_cache_tokens=40_000))
    yield engine
    engine.stop()
    assert engine_children() == []


def test_its_ranks_are_named_have_their_cores_and_nothing_of_each_other(engine: NativeEngine) -> None:
    engine.start()
    (server,) = fork_server_children()
    assert sorted(rank_children()) == sorted(engine.health().rank_pids)
    assert psutil.Process(server).num_threads() == 1
    pipes: list[set[str]] = []
    for rank, pid in enumerate(engine.health().rank_pids):
        process = psutil.Process(pid)
        assert (process.name(), process.ppid()) == (f"rank {rank}", server)
        if len(usable_cores()) == 2:
            assert os.sched_getaffinity(pid) == {usable_cores()[rank]}
        links = {path.name: str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
        pipes.append({link for name, link in links.items() if link.startswith("socket:") and name not in "012"})
    assert not pipes[0] & pipes[1]
    held = {path.name: str(path.readlink()) for path in Path(f"/proc/{server}/fd").iterdir() if path.is_symlink()}
    sockets = [link for name, link in held.items() if link.startswith("socket:") and name not in ("0", "1", "2")]
    assert len(sockets) == 1, "it keeps no pipe of a rank open"


def test_a_rank_is_replaced_by_the_same_server(engine: NativeEngine) -> None:
    engine.start()
    (server,) = fork_server_children()
    num_held = psutil.Process(server).num_fds()
    os.kill(engine.health().rank_pids[1], signal.SIGKILL)
    wait_until(lambda: engine.health().num_restarts == 1, "the next ranks")
    assert fork_server_children() == [server]
    assert set(rank_children()) == set(engine.health().rank_pids)
    assert psutil.Process(server).num_fds() == num_held


def test_one_that_is_killed_takes_its_ranks_along_and_both_are_replaced(engine: NativeEngine) -> None:
    engine.start()
    (server,), before = fork_server_children(), engine.health().rank_pids
    engine.submit(make_request("a", PROMPT, max_tokens=8_000))
    wait_until(lambda: engine.load().num_running == 1, "the request to run")
    os.kill(server, signal.SIGKILL)
    crashed = take(engine, 1)["a"]
    assert crashed.status is OutcomeStatus.CRASHED
    assert crashed.error_message == f"the fork server (process {server}) was killed by SIGKILL (was memory short?)"
    wait_until_gone(before)
    wait_for_state(engine, EngineState.READY)
    assert server not in fork_server_children()
    assert answer(engine, make_request("b", PROMPT))["b"].status is OutcomeStatus.FINISHED


def test_one_that_stands_still_is_replaced_when_it_is_needed(
    engine: NativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_processes, "ANSWER_SECONDS", 0.5)
    engine.start()
    (server,) = fork_server_children()
    os.kill(server, signal.SIGSTOP)
    assert answer(engine, make_request("a", PROMPT))["a"].status is OutcomeStatus.FINISHED, "ranks do without it"
    os.kill(engine.health().rank_pids[0], signal.SIGKILL)
    wait_until(lambda: engine.health().num_restarts == 1, "the next ranks")
    assert len(engine._crashes) == 1, "it is no crash of its own"
    wait_until_gone([server])
    assert answer(engine, make_request("b", PROMPT))["b"].status is OutcomeStatus.FINISHED


def test_other_cores_take_another_one(engine: NativeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.start()
    (server,) = fork_server_children()
    left = usable_cores()[-1]
    monkeypatch.setattr(rank_processes, "usable_cores", lambda: [left])
    os.kill(engine.health().rank_pids[0], signal.SIGKILL)
    wait_until(lambda: engine.health().num_restarts == 1, "the next ranks")
    wait_until_gone([server])
    assert answer(engine, make_request("a", PROMPT))["a"].status is OutcomeStatus.FINISHED


def test_one_that_is_stopped_while_it_comes_up_again_is_replaced(engine: NativeEngine) -> None:
    engine.start()
    (first,) = fork_server_children()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: fork_server_children() not in ([], [first]), "the next one")
    (second,) = fork_server_children()
    os.kill(second, signal.SIGSTOP)
    wait_until(lambda: engine.health().num_restarts == 1, "the next ranks")
    assert fork_server_children() not in ([first], [second])
    assert answer(engine, make_request("a", PROMPT))["a"].status is OutcomeStatus.FINISHED


@pytest.mark.parametrize(
    ("fault", "said"),
    [(signal.SIGSTOP, "was stopped by a signal"), (signal.SIGKILL, "was killed by SIGKILL")],
)
def test_one_that_does_not_come_up_is_told_of(engine: NativeEngine, fault: signal.Signals, said: str) -> None:
    errors: list[str] = []

    def start() -> None:
        try:
            engine.start()
        except EngineStartError as error:
            errors.append(str(error))

    starting = threading.Thread(target=start)
    starting.start()
    wait_until(lambda: fork_server_children() != [], "the fork server")
    os.kill(fork_server_children()[0], fault)
    starting.join(PATIENCE)
    (message,) = errors
    assert said in message
    assert engine_children() == []


@pytest.fixture
def control() -> Iterator[Callable[..., socket.socket]]:
    """Starts a fork server, the program itself, and returns the socket to it."""
    servers: list[subprocess.Popen[str]] = []
    sockets: list[socket.socket] = []

    def start(stderr: Path, *program: str) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sockets.append(ours)
        with theirs, stderr.open("w") as log:
            argv = [sys.executable, "-P", *(program or ("-m", "workers.fork_server"))]
            argv += ["--control", str(theirs.fileno())]
            servers.append(subprocess.Popen(argv, pass_fds=[theirs.fileno()], stderr=log, text=True))
        ours.settimeout(PATIENCE)
        assert receive(ours) == Serving()
        return ours

    yield start
    for ours, server in zip(sockets, servers, strict=True):
        ours.close()
        assert server.wait(PATIENCE) == 0, "it ends with its parent"


def receive(control: socket.socket) -> FromForkServer:
    message, descriptors, _, _ = socket.recv_fds(control, 4_096, 1)
    for descriptor in descriptors:
        os.close(descriptor)
    return msgspec.msgpack.decode(message, type=FromForkServer)


def test_a_system_that_starts_no_process_is_told_of(control: Callable[..., socket.socket], tmp_path: Path) -> None:
    ours = control(tmp_path / "log", "-c", WITHOUT_PROCESSES)
    one, other = Pipe()
    for _ in range(2):  # it is none the worse for it
        socket.send_fds(ours, [encode(FORK)], [other.fileno()])
        told = receive(ours)
        assert isinstance(told, NotForked)
        assert "temporarily unavailable" in told.reason
    one.close()


def test_a_rank_that_fails_logs_as_its_group_does_and_repeats_nothing_that_it_was_sent(
    control: Callable[..., socket.socket], tmp_path: Path
) -> None:
    ours = control(tmp_path / "log")
    parent, its = Pipe()
    socket.send_fds(ours, [encode(FORK)], [its.fileno()])
    its.close()
    forked = receive(ours)
    assert isinstance(forked, Forked)
    parent.send_bytes(json.dumps([CANARY, {"prompt": CANARY}]).encode())
    assert parent.poll(PATIENCE)
    told = parent.recv_bytes()
    assert isinstance(msgspec.msgpack.decode(told, type=FromRank), Failed)
    assert receive(ours) == Ended(pid=forked.pid, status=1)

    (line,) = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert (line["process"], line["rank"], line["level"]) == ("rank", 1, "error")
    assert line["event"] == "the rank failed"
    assert "Error" in line["exception"]
    assert CANARY not in (tmp_path / "log").read_text()
    assert CANARY.encode() not in told

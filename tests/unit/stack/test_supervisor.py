"""The supervisor over small real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.processes import spawn
from pipeline.stack.state import ProcessPhase
from pipeline.stack.supervisor import Service, StackError, StopRequests, Supervisor

#: Says that it is ready by making a file, and then lives until a signal.
_STEADY = "import pathlib, signal, sys; pathlib.Path(sys.argv[1]).touch(); signal.pause()"


@pytest.fixture
def stop() -> Iterator[StopRequests]:
    kept = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield StopRequests()
    for sig, handler in kept.items():
        signal.signal(sig, handler)


@pytest.fixture
def supervisor(stop: StopRequests) -> Iterator[Supervisor]:
    supervisor = Supervisor(stop, on_change=lambda: None)
    yield supervisor
    supervisor.stop(list(supervisor.states()))


def service(folder: Path, name: str, code: str = _STEADY, after: Sequence[str] = (), **options: object) -> Service:
    ready_file, log_path = folder / f"{name}.ready", folder / f"{name}.log"

    def launch() -> subprocess.Popen[bytes]:
        ready_file.unlink(missing_ok=True)
        return spawn([sys.executable, "-c", code, str(ready_file)], log_path=log_path)

    return Service(
        name=name,
        launch=launch,
        is_ready=lambda _: ready_file.exists(),
        log_path=log_path,
        after=tuple(after),
        **options,  # type: ignore[arg-type]
    )


def run_until(supervisor: Supervisor, condition: Callable[[], bool], limit: float = 20) -> None:
    """Let the supervisor watch until `condition()`."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"still waiting after {limit} s: {supervisor.states()}"
        supervisor.look()
        time.sleep(0.02)


def test_a_service_waits_for_what_it_needs(tmp_path: Path, supervisor: Supervisor) -> None:
    order: list[str] = []
    base, above = service(tmp_path, "base"), service(tmp_path, "above", after=["base"])

    def base_is_ready(pid: int) -> bool:
        order.append("base is asked")
        return base.is_ready(pid)

    def launch_above() -> subprocess.Popen[bytes]:
        order.append("above is launched")
        return above.launch()

    supervisor.start([replace(above, launch=launch_above), replace(base, is_ready=base_is_ready)])

    assert order[0] == "base is asked"
    assert order[-1] == "above is launched"
    assert {state.state for state in supervisor.states().values()} == {ProcessPhase.RUNNING}


def test_a_killed_process_comes_back_with_a_new_pid(tmp_path: Path, supervisor: Supervisor) -> None:
    supervisor.start([service(tmp_path, "one")])
    first = supervisor.states()["one"].pid
    assert first is not None

    for deaths in (1, 2):
        pid = supervisor.states()["one"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        run_until(supervisor, lambda n=deaths: supervisor.states()["one"].restarts == n)  # type: ignore[misc]
        assert supervisor.states()["one"].reason == "was ended by SIGKILL"
        run_until(supervisor, lambda: supervisor.states()["one"].state is ProcessPhase.RUNNING)
        assert supervisor.states()["one"].pid not in (pid, None)
    assert supervisor.states()["one"].reason is None


def test_the_mistake_that_a_process_tells_is_the_error(tmp_path: Path, supervisor: Supervisor) -> None:
    code = (
        "import sys; print('loading', 'Error: config.json: model_type bert is not supported.', sep='\\n'); sys.exit(1)"
    )

    with pytest.raises(StackError) as caught:
        supervisor.start([service(tmp_path, "group-0", code)])

    assert str(caught.value) == "group-0 could not start: config.json: model_type bert is not supported."


def test_a_crash_at_the_start_shows_the_end_of_its_own_log(tmp_path: Path, supervisor: Supervisor) -> None:
    (tmp_path / "bad.log").write_text("of an older run\n")

    with pytest.raises(StackError) as caught:
        supervisor.start([service(tmp_path, "bad", "print('about to fail', flush=True); raise ValueError('too bad')")])

    assert "bad ended with exit code 1 before it was ready" in str(caught.value)
    assert "about to fail" in str(caught.value)
    assert "ValueError: too bad" in str(caught.value)
    assert "older run" not in str(caught.value)


def test_a_process_that_can_not_be_launched_is_an_error_in_words(tmp_path: Path, supervisor: Supervisor) -> None:
    def launch() -> subprocess.Popen[bytes]:
        return spawn([str(tmp_path / "not-there")])

    with pytest.raises(StackError, match=r"one could not be started \(.*No such file.*not-there"):
        supervisor.start([replace(service(tmp_path, "one"), launch=launch)])


def test_a_check_that_fails_harms_nobody_else(tmp_path: Path, supervisor: Supervisor) -> None:
    one, asked = service(tmp_path, "one"), []

    def is_ready(pid: int) -> bool:
        asked.append(pid)
        if len(asked) == 1:
            raise RuntimeError
        return one.is_ready(pid)

    supervisor.start([replace(one, is_ready=is_ready)])

    assert supervisor.states()["one"].state is ProcessPhase.RUNNING


def test_a_start_that_takes_too_long_is_an_error(tmp_path: Path, supervisor: Supervisor) -> None:
    with pytest.raises(StackError, match=r"slow was not ready after 0\.3 s"):
        supervisor.start([service(tmp_path, "slow", "import signal; signal.pause()", ready_seconds=0.3)])


def test_a_server_may_fail_before_it_starts(tmp_path: Path, supervisor: Supervisor) -> None:
    flag = tmp_path / "failed-once"
    code = f"import pathlib, sys\nif not pathlib.Path({str(flag)!r}).exists():\n"
    code += f"    pathlib.Path({str(flag)!r}).touch(); sys.exit(1)\n{_STEADY}"

    supervisor.start([service(tmp_path, "moody", code, first_tries=3)])

    assert supervisor.states()["moody"].state is ProcessPhase.RUNNING
    assert supervisor.states()["moody"].restarts == 0


def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path, supervisor: Supervisor) -> None:
    code = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{_STEADY}\nwhile True: signal.pause()"
    supervisor.start([service(tmp_path, "deaf", code, stop_seconds=0.3)])
    pid = supervisor.states()["deaf"].pid

    supervisor.stop(["deaf"])

    assert supervisor.states()["deaf"].state is ProcessPhase.STOPPED
    assert not Path(f"/proc/{pid}").exists()


def test_asking_twice_to_stop_hurries(tmp_path: Path, supervisor: Supervisor, stop: StopRequests) -> None:
    code = (
        "import signal, sys, os\nsignal.signal(signal.SIGQUIT, lambda *_: sys.exit(0))\n"
        "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGINT))\n"
        f"{_STEADY}\nwhile True: signal.pause()"
    )
    supervisor.start([service(tmp_path, "drains", code, stop_seconds=60, hurry_signal=signal.SIGQUIT)])

    supervisor.stop(["drains"])  # it asks us a second time as soon as we ask it the first time

    assert stop.count == 1
    assert supervisor.states()["drains"].state is ProcessPhase.STOPPED

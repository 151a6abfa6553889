"""Processes whose clocks are off by an hour: leases, windows and bills go by the database's clock alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from faults import Fault, stack_faults
from harness import Chaos, running
from schedules import Schedule

#: By what is said on the command line of the process; in seconds.
SHIFTS = {"gateway": 3600, "control": -3600, "group-0": 3600, "group-1": -3600}
FAULTS = ["group-0 killed", "group-1 frozen", "control killed", "redis emptied"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("without a C compiler a process can't be given a clock of its own")
    library = tmp_path_factory.mktemp("clock") / "shifted_clock.so"
    source = Path(__file__).with_name("shifted_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def chaos(stack_folder: Path, tiny_model: Path, library: Path) -> Iterator[Chaos]:
    env = {
        "LD_PRELOAD": str(library),
        "SHIFTED_CLOCKS": ",".join(f"{word}={seconds}" for word, seconds in SHIFTS.items()),
        "RYZANSTEIN_ECHO_TOKENS_PER_SECOND": "400",
        "RYZANSTEIN_SLICE_REQUESTS": "20",
    }
    with running(stack_folder / "clocks", tiny_model, "--engine", "echo", "--groups", "2", **env) as chaos:
        yield chaos


def test_the_clocks_are_off(chaos: Chaos) -> None:
    """Else the test below would show nothing."""
    for name, shift in SHIFTS.items():
        log = (chaos.stack.data_dir / "logs" / f"{name}.log").read_text()
        written = re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", log)
        assert written is not None, log[:500]
        ahead = datetime.fromisoformat(written[0]).replace(tzinfo=UTC) - datetime.now(UTC)
        assert abs(ahead.total_seconds() - shift) < 600


@pytest.mark.parametrize("fault", [fault for fault in stack_faults() if fault.name in FAULTS], ids=lambda one: one.name)
def test_faults_cost_nothing_whatever_the_clocks_say(chaos: Chaos, fault: Fault) -> None:
    report = chaos.run(Schedule.of(fault, num_requests=120, after=20))

    assert report.violations == ()
    assert [hit.was_hit for hit in report.hits] == [True]


def test_doctor_says_which_clock_is_off(chaos: Chaos) -> None:
    for name, words in (("group-0", "ahead of"), ("control", "behind")):
        log = (chaos.stack.data_dir / "logs" / f"{name}.log").read_text()
        assert f"{words} the database" in log

"""The fuzzers share a time limit and a seed, and say at the end how much they tried."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from budget import SEED, TOTAL_SECONDS, Budget, budgets
from served_gateways import Served, serve_something
from sqlalchemy import Engine


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> Budget:
    """Of the test's own share."""
    return Budget(Path(str(request.node.path)).stem.removeprefix("test_fuzz_"))


@pytest.fixture
def quiet_log(tmp_path: Path) -> Iterator[Path]:
    """What is logged while fuzzing is of no interest but to whoever looks for a failure's cause."""
    path = tmp_path / "log.jsonl"
    with path.open("a", buffering=1) as file:
        structlog.configure(
            processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)],
            logger_factory=structlog.WriteLoggerFactory(file=file),
        )
        yield path
        structlog.reset_defaults()


@pytest.fixture
def served(database: Engine, redis_url: str, tmp_path: Path, quiet_log: Path) -> Iterator[Served]:
    with serve_something(database, tmp_path / "model") as served:
        yield served


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not budgets:
        return
    terminalreporter.write_line(f"fuzz: FUZZ_SEED={SEED} FUZZ_SECONDS={TOTAL_SECONDS:g}")
    for done in budgets:
        terminalreporter.write_line(f"fuzz: {done.name}: {done.num_inputs} inputs in {done.seconds_used:.0f} s")

"""The fuzzers share a time limit and a seed, and say at the end how much they tried."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from budget import TOTAL_SECONDS, Budget
from served_gateways import Served, serve_something
from sqlalchemy import Engine

from pipeline.settings import PREFIX, get_settings

#: Of a test's report, what a fuzzer has done.
_PROPERTY = "fuzz"


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> Iterator[Budget]:
    """Of the test's own share."""
    budget = Budget(Path(str(request.node.path)).stem.removeprefix("test_fuzz_"))
    yield budget
    # With the report, since the test may run in another process than the one that shows the summary.
    request.node.user_properties.append((_PROPERTY, str(budget)))


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
def served(
    database: Engine, redis_url: str, settings_env: pytest.MonkeyPatch, tmp_path: Path, quiet_log: Path
) -> Iterator[Served]:
    settings_env.setenv(f"{PREFIX}SIGNING_KEY_FILE", str(tmp_path / "signing_key.pem"))
    get_settings.cache_clear()
    with serve_something(database, tmp_path / "model") as served:
        yield served


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    properties = [pair for report in reports for pair in getattr(report, "user_properties", ())]
    done = sorted({value for name, value in properties if name == _PROPERTY})
    if done:
        terminalreporter.write_line(f"fuzz: FUZZ_SECONDS={TOTAL_SECONDS:g}; a test that fails shows its FUZZ_SEED")
    for line in done:
        terminalreporter.write_line(f"fuzz: {line}")

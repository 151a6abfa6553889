from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from pipeline.settings import Settings
from pipeline.telemetry.logs import configure_logging, format_error, summarize_error


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    logging.captureWarnings(False)


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_our_logs_and_those_of_libraries_are_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("control", Settings(log_format="json"))
    structlog.get_logger("pipeline.jobs").info("batch prepared", batch="batch_1", requests=2)
    logging.getLogger("some.library").warning("%s is %d", "it", 3)
    ours, theirs = logged(capsys)
    assert (ours["event"], ours["batch"], ours["requests"], ours["level"]) == ("batch prepared", "batch_1", 2, "info")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("it is 3", "warning", "some.library")
    assert {ours["process"], theirs["process"]} == {"control"}
    assert str(ours["timestamp"]).endswith("Z")


def test_the_level_holds_for_both(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("control", Settings(log_format="json", log_level="WARNING"))
    structlog.get_logger("a").info("no")
    logging.getLogger("b").info("no")
    assert logged(capsys) == []


def test_configuring_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    for process in ("a", "b"):
        configure_logging(process, Settings(log_format="json"))
    structlog.get_logger("x").info("once")
    assert [line["process"] for line in logged(capsys)] == ["b"]


def test_people_get_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("control", Settings(log_format="console"))
    structlog.get_logger("x").info("batch prepared", batch="batch_1")
    assert "batch prepared" in (text := capsys.readouterr().err)
    assert "batch=batch_1" in text


PROMPT = "the prompt"


def failing() -> None:
    detail = f"could not store it\nFailing row contains ({PROMPT})."
    try:
        raise ValueError(detail)
    except ValueError as error:
        raise RuntimeError("while recording") from error


def test_an_exception_is_logged_without_what_follows_the_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("control", Settings(log_format="json"))
    try:
        failing()
    except RuntimeError:
        structlog.get_logger("x").exception("ours")
        logging.getLogger("y").exception("theirs")
    for line in logged(capsys):
        exception = str(line["exception"])
        assert "ValueError: could not store it" in exception
        assert "RuntimeError: while recording" in exception
        assert "in failing" in exception
        assert PROMPT not in json.dumps(line)


def test_errors_of_the_database_do_not_say_what_was_written() -> None:
    engine = create_engine("sqlite://", hide_parameters=True)
    with engine.connect() as conn, pytest.raises(SQLAlchemyError) as raised:
        conn.execute(text("INSERT INTO nowhere VALUES (:body)"), {"body": PROMPT})
    assert PROMPT not in summarize_error(raised.value)
    assert PROMPT not in format_error(raised.value)


def test_a_long_text_is_cut() -> None:
    assert len(summarize_error(ValueError("x" * 10_000))) < 400
    assert summarize_error(ValueError()) == "ValueError"

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pipeline.errors import ConfigurationError
from pipeline.settings import Settings
from pipeline.telemetry import tracing

#: Port 9 is reserved, and nobody listens on it.
_NOBODY_LISTENS = """
import logging, sys
from pipeline.settings import Settings
from pipeline.telemetry import tracing
tracing.configure_tracing("test", Settings(otlp_endpoint="http://127.0.0.1:9"))
for number in range(20_000):
    with tracing.span("work", {"number": number}):
        pass
print("done", flush=True)
"""
_OFF = """
import sys
from pipeline.settings import Settings
from pipeline.telemetry import tracing
import pipeline.gateway.app, pipeline.jobs.tasks, workers.tasks, workers.group
tracing.configure_tracing("test", Settings())
with tracing.span("work") as span:
    assert span.context is None and tracing.current_context() is None
# redis imports the SDK's part for metrics where it is installed.
unwanted = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "pipeline.telemetry.otlp")
assert [name for name in sys.modules if name.startswith(unwanted)] == []
"""


def test_nothing_that_makes_or_sends_spans_is_imported_where_traces_are_off() -> None:
    done = subprocess.run([sys.executable, "-c", _OFF], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


def test_a_process_that_no_collector_listens_to_goes_on_and_ends() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _NOBODY_LISTENS], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout.splitlines()
    assert time.monotonic() - began < 30, "the SDK alone waits for half a minute at a process's end"
    assert (done.stdout + done.stderr).count("the collector of traces takes none") <= 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "pipeline.telemetry.otlp", raising=False)

    with pytest.raises(ConfigurationError, match=r"RYZANSTEIN_OTLP_ENDPOINT.*ryzanstein\[traces\]"):
        tracing.configure_tracing("test", Settings(otlp_endpoint="http://127.0.0.1:9"))
    assert not tracing.is_on()


@pytest.mark.parametrize(
    "given", ["", "00-xyz", "00-" + "0" * 31 + "-" + "0" * 16 + "-01", "00-" + "A" * 32 + "-" + "0" * 16 + "-01\n"]
)
def test_what_is_no_traceparent_is_not_handed_on(given: str) -> None:
    assert not tracing.is_traceparent(given)


def test_a_traceparent_is() -> None:
    assert tracing.is_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")

from __future__ import annotations

import re
from pathlib import Path

from pipeline.telemetry.metrics.__main__ import render
from pipeline.telemetry.metrics.metric import Kind
from pipeline.telemetry.metrics.names import METRICS

#: Of what there are more with every batch, or as many as anybody can think of.
UNBOUNDED = {
    "batch",
    "request",
    "slice",
    "attempt",
    "key",
    "api_key",
    "custom_id",
    "path",
    "url",
    "address",
    "user",
    "id",
}


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert page.read_text() == render(), "run: python -m pipeline.telemetry.metrics > docs/metrics.md"
    for metric in METRICS.values():
        assert f"| `{metric.name}` |" in render()


def test_names_follow_the_conventions_of_prometheus() -> None:
    for metric in METRICS.values():
        assert re.fullmatch("ryzanstein_[a-z_]+|vllm:[a-z0-9_]+", metric.name)
        if not metric.name.startswith("vllm:"):
            assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        assert metric.help.endswith("."), metric.name
        assert list(metric.buckets) == sorted(metric.buckets)


def test_no_label_grows_with_the_work() -> None:
    for metric in METRICS.values():
        assert not UNBOUNDED & set(metric.labels), metric.name

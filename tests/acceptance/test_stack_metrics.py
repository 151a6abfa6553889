"""The metrics of a running stack, as a Prometheus would find them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import openai
from batch_jobs import lines_of, submit, wait_for_end
from scraping import scrape
from stacks import RunningStack, wait_for

from pipeline.celery import SWEEP
from pipeline.telemetry.metrics.metric import Source
from pipeline.telemetry.metrics.names import METRICS

#: Of what does not happen in a healthy stack, or not always; and of ranks, which an echo does not have.
SELDOM = {"rank_up", "waste", "tenant_wait", "budget_utilization", "deadline_slack", "memory", "cache_config"}


def test_every_process_shows_its_metrics_where_prometheus_looks_for_them(
    stack: RunningStack, client: openai.OpenAI
) -> None:
    assert wait_for_end(client, submit(client, lines_of(3)).id).status == "completed"
    urls = stack.report["metrics_urls"]
    assert set(urls) == {"gateway", "control", "group-0", "flower"}

    def is_all_counted() -> bool:
        control, group, gateway = (scrape(urls[name]) for name in ("control", "group-0", "gateway"))
        return (
            len(control.all("ryzanstein_billing_drift_tokens")) == 2
            and control.total("ryzanstein_task_runs_total", task=SWEEP, result="succeeded") > 0
            and control.total("ryzanstein_finished_requests_total", result="succeeded") >= 3
            and group.total("ryzanstein_outcomes_total", outcome="succeeded") >= 3
            and gateway.total("ryzanstein_http_requests_total", method="POST", route="/v1/batches", status="200") >= 1
        )

    wait_for(is_all_counted, "the batch, a sweep and a comparison of the books to be counted")
    found = {name: scrape(url) for name, url in urls.items() if name != "flower"}  # which wants a password
    for name, source in (("gateway", Source.GATEWAY), ("control", Source.CONTROL), ("group-0", Source.GROUP)):
        named = {one for metric in METRICS.values() if metric.source is source for one in metric.series_names}
        missing = {one for one in named - found[name].names if not any(part in one for part in SELDOM)}
        assert missing == set()
        ours = {one for one in found[name].names if re.match("ryzanstein_|vllm:", one)}
        known = {one for metric in METRICS.values() for one in metric.series_names}
        assert ours <= known, "what is shown is what docs/observability.md tells"


def test_the_files_that_prometheus_reads_name_the_processes(stack: RunningStack) -> None:
    folder = Path(stack.report["data_dir"]) / "metrics"
    entries = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert {name: entry[0]["labels"] for name, entry in entries.items()} == {
        "gateway": {"process": "gateway"},
        "control": {"process": "control"},
        "group-0": {"process": "group"},
        "flower": {"process": "flower"},
    }
    for name, url in stack.report["metrics_urls"].items():
        assert url == f"http://{entries[name][0]['targets'][0]}/metrics"
        assert url.startswith("http://127.0.0.1:")

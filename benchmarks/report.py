"""The tables of docs/performance.md, from what the benchmarks wrote: python -m benchmarks.report."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def engine_table(results: Iterable[dict[str, Any]]) -> str:
    """One row per file of `benchmarks.engine`, in Markdown; seconds are medians."""
    rows = [
        "| workload | ours | seconds | total tok/s | peer | seconds | total tok/s | ours / peer | share of ceiling |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for result in results:
        settings = result["settings"]
        num_tokens = result["num_prompt_tokens"] + result["num_output_tokens"]
        cells = [result["workload"], _own_name(settings), *_speed(result["own"], num_tokens)]
        cells += [_peer_name(settings) if result["peer"] else "", *_speed(result["peer"], num_tokens)]
        cells += ["" if result["ratio"] is None else f"{result['ratio']:.2f}"]
        cells += ["" if result["share_of_ceiling"] is None else f"{result['share_of_ceiling']:.0%}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _own_name(settings: dict[str, Any]) -> str:
    parts = [settings["quantize"] or settings["dtype"]]
    parts += [f"tp {settings['tp']}"] if settings["tp"] > 1 else []
    return ", ".join([*parts, f"{settings['threads']} threads"])


def _peer_name(settings: dict[str, Any]) -> str:
    if settings["peer"] != "ours":
        return str(settings["peer"])
    return f"ours, tp {settings['peer_tp']}, {settings['peer_threads']} threads"


def _speed(seconds: list[float], num_tokens: int) -> list[str]:
    if not seconds:
        return ["", ""]
    median = statistics.median(seconds)
    return [f"{median:.2f}", f"{num_tokens / median:,.0f}"]


def main() -> None:
    print(engine_table(json.loads(path.read_text()) for path in sorted(RESULTS.glob("engine-*.json"))))


if __name__ == "__main__":
    main()

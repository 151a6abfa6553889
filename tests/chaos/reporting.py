"""What a number of schedules came to, as Markdown."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness import Hit, Report


def summarize(reports: Sequence[Report]) -> str:
    """Totals, and how often each fault went off."""
    attempts = sum((Counter(report.attempts) for report in reports), Counter[str]())
    seconds = sorted(report.seconds for report in reports)
    hits = Counter(hit.fault for report in reports for hit in report.hits if hit.was_hit)
    num_batches = sum(report.num_batches for report in reports)
    num_requests = sum(report.num_requests for report in reports)
    lines = [
        "| what | number |",
        "| --- | --- |",
        f"| schedules | {len(reports):,} |",
        f"| batches, of two tenants | {num_batches:,} |",
        f"| requests | {num_requests:,} |",
        f"| faults that hit something | {sum(hits.values()):,} |",
        *(f"| attempts that ended as {end} | {count:,} |" for end, count in sorted(attempts.items())),
        f"| seconds of a schedule: median, longest | {_at(seconds, 0.5)}, {_at(seconds, 1.0)} |",
        f"| **violations** | **{sum(len(report.violations) for report in reports)}** |",
        "",
        "| fault | times |",
        "| --- | --- |",
        *(f"| {fault} | {count:,} |" for fault, count in sorted(hits.items())),
    ]
    return "\n".join(lines)


def read_reports(results: Path) -> list[Report]:
    """What `soak.py --results` has written."""
    reports = []
    for line in results.read_text().splitlines():
        row = json.loads(line)
        hits = tuple(Hit(**hit) for hit in row.pop("hits"))
        reports.append(Report(**{**row, "hits": hits, "violations": tuple(row["violations"])}))
    return reports


def _at(sorted_values: Sequence[float], part: float) -> str:
    return f"{sorted_values[min(len(sorted_values) - 1, int(part * len(sorted_values)))]:.1f}" if sorted_values else "-"


if __name__ == "__main__":
    print(summarize(read_reports(Path(sys.argv[1]))))

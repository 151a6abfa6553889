"""Tables for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.billing.currencies import decimal_text, exact_text

if TYPE_CHECKING:
    from decimal import Decimal

    from pipeline.billing.reports import Bill, BillLine, Group, UsageLine


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout, as wide as it must be where stdout is no terminal; `#` marks a column of numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in headers:
        table.add_column(header.removeprefix("#"), justify="right" if header.startswith("#") else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # not markup: a tenant may be called [bold]
    console = Console() if sys.stdout.isatty() else Console(width=max(80, _width(headers, rows)))
    console.print(table)


def _width(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    columns = zip(headers, *rows, strict=True)
    return sum(max(len(cell) for cell in column) + 3 for column in columns) + 1


def print_csv(records: Sequence[Mapping[str, Any]]) -> None:
    """Records with the same keys, with a header line."""
    if not records:
        return
    writer = csv.DictWriter(sys.stdout, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)


def usage_record(line: UsageLine) -> dict[str, Any]:
    return {
        **_group_record(line.group),
        "requests": line.num_requests,
        "input_uncached_tokens": line.num_input_uncached_tokens,
        "input_cached_tokens": line.num_input_cached_tokens,
        "output_tokens": line.num_output_tokens,
        "engine_ms": line.engine_ms,
    }


def bill_record(bill: Bill) -> dict[str, Any]:
    """Amounts and prices are strings, so that no program reads them as floats."""
    return {
        "month": str(bill.month),
        "tenant": bill.tenant,
        "tenant_id": bill.tenant_id,
        "currency": bill.currency,
        "lines": [bill_line_record(line, bill.currency) for line in bill.lines],
        "exact": exact_text(bill.exact, bill.currency),
        "rounding": exact_text(bill.rounding, bill.currency),
        "total": exact_text(bill.total, bill.currency),
    }


def bill_line_record(line: BillLine, currency: str) -> dict[str, Any]:
    """Prices are of 1,000,000 tokens, before discount and multipliers; amounts are after them.

    A price is None where it depends on what was used.
    """
    return {
        **_group_record(line.group),
        "requests": line.num_requests,
        "input_uncached_tokens": line.num_input_uncached_tokens,
        "input_cached_tokens": line.num_input_cached_tokens,
        "output_tokens": line.num_output_tokens,
        "input_price": _price(line.input_price, currency),
        "cached_input_price": _price(line.cached_input_price, currency),
        "output_price": _price(line.output_price, currency),
        "batch_discount": decimal_text(line.batch_discount),
        "input_uncached_amount": exact_text(line.input_uncached_amount, currency),
        "input_cached_amount": exact_text(line.input_cached_amount, currency),
        "output_amount": exact_text(line.output_amount, currency),
        "amount": exact_text(line.amount, currency),
    }


def _price(price: Decimal | None, currency: str) -> str | None:
    return None if price is None else exact_text(price, currency)


def bill_rows(bill: Bill) -> list[dict[str, Any]]:
    """A bill as rows of one table: its lines, then what rounding added, then the total."""
    head = {"month": str(bill.month), "kind": "line", "currency": bill.currency}
    lines = [{**head, **bill_line_record(line, bill.currency)} for line in bill.lines]
    blank = {**dict.fromkeys(lines[0], ""), **head, "tenant": bill.tenant, "tenant_id": bill.tenant_id}
    rounding = {**blank, "kind": "rounding", "amount": exact_text(bill.rounding, bill.currency)}
    total = {**blank, "kind": "total", "amount": exact_text(bill.total, bill.currency)}
    return [*lines, rounding, total]


def _group_record(group: Group) -> dict[str, Any]:
    """Batch and key only where lines are split by them."""
    record: dict[str, Any] = {"tenant": group.tenant, "tenant_id": group.tenant_id, "model": group.model}
    if group.batch_id is not None:
        record["batch_id"] = group.batch_id
    if group.api_key_id is not None:
        record |= {"api_key_id": group.api_key_id, "api_key": group.api_key}
    return record


def duration(seconds: float) -> str:
    """`45s`, `3m20s`, `2h05m`, `3d4h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600}h"

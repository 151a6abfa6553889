"""Documents of invoices, made from a seed and without a database."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random

from pipeline.billing.documents import Charge, Document, Item, Party, make_lines
from pipeline.billing.reports import Month
from pipeline.tables import InvoiceStatus, LineKind, Meter, ServiceClass

MONTH, BEFORE = Month(2026, 11), Month(2026, 10)
#: With 2, 0, 3 and 4 decimals.
CURRENCIES = ("USD", "JPY", "KWD", "CLF")


def random_items(random: Random, count: int) -> list[Item]:
    """Of this month and, some, of the one before; exact amounts have up to 15 decimals, and may be below zero."""
    return [_item(random) for _ in range(count)]


def random_charges(random: Random, count: int) -> list[Charge]:
    kinds = (LineKind.COMMITMENT, LineKind.CREDIT_NOTE, LineKind.CREDIT)
    return [
        Charge(kind=kind, description=f"{kind} {number}", month=MONTH, exact=_amount(random))
        for number in range(count)
        for kind in [random.choice(kinds)]
    ]


def make_document(
    random: Random,
    *,
    currency: str = "USD",
    num_items: int = 40,
    num_charges: int = 2,
    customer: str = "Acme",
    names: dict[str, str] | None = None,
) -> Document:
    """An issued invoice."""
    lines, items = make_lines(random_items(random, num_items), random_charges(random, num_charges), MONTH, currency)
    return Document(
        id="inv_1",
        number="INV-2026-000007",
        status=InvoiceStatus.FINAL,
        tenant_id="tenant_1",
        currency=currency,
        month=MONTH,
        customer=Party(name=customer, address="Street 1\nTown", tax_id="X1"),
        supplier=Party(name="Supplier"),
        created_at=datetime(2026, 12, 1, tzinfo=UTC),
        issued_at=datetime(2026, 12, 1, 2, tzinfo=UTC),
        voided_at=None,
        void_reason=None,
        lines=lines,
        items=items,
        receipts_root="ab" * 32,
        num_receipts=3,
        names=names or {},
    )


def _item(random: Random) -> Item:
    month = MONTH if random.random() < 0.9 else BEFORE
    num_days = (month.end - timedelta(days=1)).day
    return Item(
        day=date(month.year, month.number, random.randint(1, num_days)),
        project_id=random.choice([None, "proj_1"]),
        api_key_id=f"key_{random.randint(1, 12)}",
        model=random.choice(["tiny", "owner/large"]),
        meter=random.choice(list(Meter)),
        service_class=random.choice(list(ServiceClass)),
        rate_card_id=random.randint(1, 2),
        unit_price=random.choice([None, Decimal("0.137")]),
        num_events=random.randint(0, 9),
        quantity=random.randint(-5, 10**9),
        exact=_amount(random),
    )


def _amount(random: Random) -> Decimal:
    """Often just beside, or on, the middle between two amounts that can be paid."""
    if random.random() < 0.3:
        return Decimal(random.randint(-99, 99)) / 200 + Decimal(random.choice([-1, 0, 1])).scaleb(-15)
    return Decimal(random.randint(-(10**6), 10**18)).scaleb(-random.randint(7, 15))

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import Engine, text

from pipeline.tables.arrays import numbers, words

TEXTS = [
    "",
    "plain",
    "NULL",
    "null",
    "with space",
    'quo"te',
    "back\\slash",
    '\\"',
    "{a,b}",
    "é 漢 🦊",
    "new\nline",
    "'",
]
NUMBERS = [
    0,
    -5,
    2**62,
    None,
    Decimal("0.000000000000001"),
    Decimal("-12345678901234567890.123456789"),
    Decimal("1E-7"),
]


def test_what_goes_in_as_an_array_comes_out_as_it_was(database: Engine) -> None:
    with database.connect() as conn:
        found = conn.scalar(text("SELECT CAST(:texts AS text[])"), {"texts": words(TEXTS)})
        assert found == TEXTS
        found = conn.scalar(text("SELECT CAST(:numbers AS numeric[])"), {"numbers": numbers(NUMBERS)})
        assert found == NUMBERS
        assert conn.scalar(text("SELECT CAST(:none AS bigint[])"), {"none": numbers([])}) == []

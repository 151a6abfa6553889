from __future__ import annotations

from pathlib import Path

import pytest
from no_floats import find_floats, main

import pipeline.billing


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("price = 0.1", "the literal 0.1"),
        ("price = 1e3", "the literal 1000.0"),
        ("def pay(amount: float) -> None: ...", "the name float"),
        ("amount = float('0.1')", "the name float"),
        ("amounts: dict[str, float] = {}", "the name float"),
        ("column = sqlalchemy.Float()", "the name Float"),
        ("import math", "the import of math"),
        ("wave = 2j", "the literal 2j"),
    ],
)
def test_a_float_is_found_where_it_is(source: str, found: str) -> None:
    [finding] = find_floats(f"import decimal\n{source}\n")
    assert (finding.line, finding.found) == (2, found)


def test_exact_numbers_are_let_through() -> None:
    source = 'total = Decimal("0.1") * 3 // 2\nname = "float 0.5"\n'
    assert find_floats(source) == []


def test_there_is_none_where_money_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(Path(pipeline.billing.__file__).parent)]) == 0, capsys.readouterr().out
    (tmp_path / "bad.py").write_text("x = 1\ny = 0.5\n")
    assert main([str(tmp_path)]) == 1
    assert "bad.py:2: the literal 0.5" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 2

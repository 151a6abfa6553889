from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from examples.invoices.demo import Answer, DemoError, read_answers
from examples.invoices.generate import Example, Side, examples, write_batch


@pytest.fixture
def held_out(tmp_path: Path) -> list[Example]:
    """Three sentences, whose expected answers lie in the folder."""
    held_out = list(islice(examples(Side.HELD_OUT, seed=1), 3))
    write_batch(tmp_path, held_out, model="m")
    return held_out


def output_line(custom_id: str, content: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": {"choices": [{"message": message}]}}}


def write_output(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "output.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_answers_are_matched_by_custom_id_whatever_their_order(tmp_path: Path, held_out: list[Example]) -> None:
    lines = [output_line(f"invoice-{i:04d}", e.invoice.answer) for i, e in enumerate(held_out, start=1)]
    write_output(tmp_path, lines[::-1])

    answers = read_answers(tmp_path)

    assert [answer.example for answer in answers] == held_out
    assert all(answer.is_right for answer in answers)


def test_a_missing_answer_is_an_error_that_names_it(tmp_path: Path, held_out: list[Example]) -> None:
    write_output(tmp_path, [output_line("invoice-0001", "{}"), output_line("invoice-0003", "{}")])

    with pytest.raises(DemoError, match=r"3 answers were expected and 2 came\. Missing: invoice-0002"):
        read_answers(tmp_path)


def test_an_answer_that_came_twice_is_an_error(tmp_path: Path, held_out: list[Example]) -> None:
    write_output(tmp_path, [output_line("invoice-0001", "{}"), output_line("invoice-0001", "{}")])

    with pytest.raises(DemoError, match="invoice-0001 twice"):
        read_answers(tmp_path)


@pytest.mark.parametrize("spoil", [lambda text: text[:-1], lambda text: "", lambda text: "[]", lambda text: "null"])
def test_an_answer_that_is_not_the_whole_object_is_wrong(spoil: Any, held_out: list[Example]) -> None:
    example = held_out[0]

    assert Answer(example=example, content=example.invoice.answer).is_right
    assert not Answer(example=example, content=spoil(example.invoice.answer)).is_right


@pytest.mark.parametrize("field", ["vendor", "number", "amount", "currency", "date"])
def test_one_wrong_field_makes_the_answer_wrong(field: str, held_out: list[Example]) -> None:
    fields = vars(held_out[0].invoice) | {field: "x"}

    assert not Answer(example=held_out[0], content=json.dumps(fields)).is_right


def test_a_field_too_many_makes_the_answer_wrong(held_out: list[Example]) -> None:
    fields = vars(held_out[0].invoice) | {"note": ""}

    assert not Answer(example=held_out[0], content=json.dumps(fields)).is_right

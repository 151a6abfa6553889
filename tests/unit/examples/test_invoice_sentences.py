from __future__ import annotations

import json
import random
import re
from datetime import date
from decimal import Decimal
from itertools import islice
from pathlib import Path

import pytest

from examples.invoices import phrases
from examples.invoices.generate import (
    Side,
    examples,
    make_date,
    make_example,
    ordinal_suffix,
    side_of,
    write_batch,
)


def test_the_same_seed_gives_the_same_sentences() -> None:
    first = list(islice(examples(Side.TRAINING, seed=7), 50))

    assert list(islice(examples(Side.TRAINING, seed=7), 50)) == first
    assert list(islice(examples(Side.TRAINING, seed=8), 50)) != first


def test_training_and_held_out_sentences_never_meet() -> None:
    training = {example.sentence for example in islice(examples(Side.TRAINING, seed=1), 2000)}
    held_out = {example.sentence for example in islice(examples(Side.HELD_OUT, seed=1), 500)}

    assert not training & held_out
    assert {side_of(sentence) for sentence in training} == {Side.TRAINING}
    assert {side_of(sentence) for sentence in held_out} == {Side.HELD_OUT}


def test_a_side_repeats_no_sentence() -> None:
    sentences = [example.sentence for example in islice(examples(Side.HELD_OUT, seed=1), 500)]

    assert len(set(sentences)) == len(sentences)


def test_an_answer_is_compact_json_with_its_fields_in_order() -> None:
    for example in islice(examples(Side.HELD_OUT, seed=3), 300):
        answer = json.loads(example.invoice.answer)
        assert list(answer) == ["vendor", "number", "amount", "currency", "date"]
        assert example.invoice.answer == json.dumps(answer, separators=(",", ":"), ensure_ascii=False)
        assert answer["vendor"] in example.sentence
        assert answer["number"] in example.sentence
        assert answer["currency"] in phrases.CURRENCIES
        assert re.fullmatch(r"[1-9]\d*" if answer["currency"] == "JPY" else r"[1-9]\d*\.\d\d", answer["amount"])
        assert Decimal(answer["amount"]) > 0
        assert date.fromisoformat(answer["date"]).isoformat() == answer["date"]


@pytest.mark.parametrize("phrasing", phrases.PHRASINGS)
def test_a_phrasing_has_every_slot_once_and_no_full_stop_after_the_vendor(phrasing: str) -> None:
    assert sorted(re.findall(r"{(\w+)}", phrasing)) == ["amount", "date", "number", "vendor"]
    assert "{vendor}." not in phrasing


def test_points_mean_day_first_and_slashes_mean_month_first() -> None:
    rng = random.Random(5)
    for _ in range(500):
        written, iso = make_date(rng)
        year, month, day = map(int, iso.split("-"))
        if "/" in written:
            assert written == f"{month}/{day}/{year}"
        if "." in written:
            assert written == f"{day:02d}.{month:02d}.{year}"


@pytest.mark.parametrize(
    ("day", "suffix"), [(1, "st"), (2, "nd"), (3, "rd"), (4, "th"), (11, "th"), (13, "th"), (22, "nd")]
)
def test_ordinals_are_english(day: int, suffix: str) -> None:
    assert ordinal_suffix(day) == suffix


def test_sentences_are_short() -> None:
    rng = random.Random(2)

    assert max(len(make_example(rng).sentence) for _ in range(2000)) < 220


def test_the_batch_file_holds_one_chat_request_per_sentence_beside_its_answer(tmp_path: Path) -> None:
    held_out = list(islice(examples(Side.HELD_OUT, seed=1), 20))

    batch, expected = write_batch(tmp_path, held_out, model="invoice-reader")

    lines = [json.loads(line) for line in batch.read_text(encoding="utf-8").splitlines()]
    answers = [json.loads(line) for line in expected.read_text(encoding="utf-8").splitlines()]
    assert [line["custom_id"] for line in lines] == [answer["custom_id"] for answer in answers]
    assert len({line["custom_id"] for line in lines}) == 20
    for line, answer, example in zip(lines, answers, held_out, strict=True):
        assert line["method"] == "POST"
        assert line["url"] == "/v1/chat/completions"
        assert line["body"]["model"] == "invoice-reader"
        assert line["body"]["messages"] == [{"role": "user", "content": example.sentence}]
        assert answer == {"custom_id": line["custom_id"], "sentence": example.sentence, "answer": vars(example.invoice)}

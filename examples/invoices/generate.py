"""Makes invoice sentences with their answers, and the demo's batch out of them.

Sentences come in two sides that cannot meet: a sentence's own hash decides its side, and each side draws from seeds of
its own. The network is trained on one side and asked about the other.

    python -m examples.invoices.generate --count 300 --seed 1 --folder demo-input
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from itertools import islice
from pathlib import Path

from examples.invoices import phrases

#: Answers are about 50 tokens long; more than this is a network that does not stop.
MAX_ANSWER_TOKENS = 96
#: One sentence in this many is held out.
HELD_OUT_ONE_IN = 10

FIRST_DAY = date(2019, 1, 1).toordinal()
LAST_DAY = date(2029, 12, 31).toordinal()


class Side(StrEnum):
    """Who may see a sentence."""

    TRAINING = "training"  #: only the training
    HELD_OUT = "held-out"  #: only the measurement


@dataclass(frozen=True, kw_only=True)
class Invoice:
    """The five fields; amount in units of the currency, as a plain decimal with a point; date as ISO 8601."""

    vendor: str
    number: str
    amount: str
    currency: str
    date: str

    @property
    def answer(self) -> str:
        """The one right answer: compact JSON in the order of the fields."""
        return json.dumps(vars(self), ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, kw_only=True)
class Example:
    """A sentence and the invoice that it tells of."""

    sentence: str
    invoice: Invoice


def side_of(sentence: str) -> Side:
    """The side that a sentence belongs to for ever, by its hash alone."""
    digest = hashlib.sha256(sentence.encode()).digest()
    return Side.HELD_OUT if int.from_bytes(digest[:8]) % HELD_OUT_ONE_IN == 0 else Side.TRAINING


def examples(side: Side, *, seed: int) -> Iterator[Example]:
    """An endless stream of distinct examples of one side; the same seed gives the same stream."""
    seen: set[str] = set()
    rng = random.Random(f"{side}:{seed}")
    while True:
        example = make_example(rng)
        if side_of(example.sentence) is side and example.sentence not in seen:
            seen.add(example.sentence)
            yield example


def make_example(rng: random.Random) -> Example:
    """One example of either side."""
    vendor = make_vendor(rng)
    number = make_number(rng)
    written_date, iso_date = make_date(rng)
    written_amount, amount, currency = make_amount(rng)
    slots = {"vendor": vendor, "number": number, "amount": written_amount, "date": written_date}
    opening = rng.choice(phrases.OPENINGS) if rng.random() < 0.3 else ""
    sentence = opening + rng.choice(phrases.PHRASINGS).format(**slots)
    if rng.random() < 0.5:
        sentence += make_remark(rng)
    invoice = Invoice(vendor=vendor, number=number, amount=amount, currency=currency, date=iso_date)
    return Example(sentence=sentence, invoice=invoice)


def make_vendor(rng: random.Random) -> str:
    """A company's name, usually one that occurs nowhere else."""
    name = make_name(rng)
    match rng.randrange(5):
        case 0:
            return f"{name} {rng.choice(phrases.LEGAL_FORMS)}"
        case 1:
            return f"{name} {rng.choice(phrases.TRADES)}"
        case 2:
            return f"{name} & {rng.choice(('Sons', 'Daughters', 'Partners', rng.choice(phrases.SURNAMES)))}"
        case 3:
            return f"{rng.choice(phrases.PLACES)} {rng.choice(phrases.TRADES)} {rng.choice(phrases.LEGAL_FORMS)}"
        case _:
            return f"{name} {rng.choice(phrases.TRADES)} {rng.choice(phrases.LEGAL_FORMS)}"


def make_name(rng: random.Random) -> str:
    """A surname, or a coined word of two or three syllables."""
    if rng.random() < 0.4:
        return rng.choice(phrases.SURNAMES)
    syllables = [rng.choice(phrases.SYLLABLE_HEADS), rng.choice(phrases.SYLLABLE_TAILS)]
    if rng.random() < 0.4:
        syllables.append(rng.choice(phrases.SYLLABLE_TAILS))
    return "".join(syllables).capitalize()


def make_number(rng: random.Random) -> str:
    """An invoice number in one of the shapes that companies use."""
    year = rng.randint(2019, 2029)
    serial = rng.randrange(10 ** rng.randint(3, 6))
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTVWXZ") for _ in range(rng.randint(1, 3)))
    match rng.randrange(7):
        case 0:
            return f"INV-{serial:05d}"
        case 1:
            return f"{year}-{serial:04d}"
        case 2:
            return f"{letters}-{year}-{serial:04d}"
        case 3:
            return f"{letters}{serial:04d}"
        case 4:
            return f"{letters}/{serial:04d}/{year % 100}"
        case 5:
            return f"{serial:06d}"
        case _:
            return f"{letters}-{serial:05d}"


def make_date(rng: random.Random) -> tuple[str, str]:
    """A date as written, and as ISO 8601. Points mean day first, slashes mean month first."""
    day = date.fromordinal(rng.randint(FIRST_DAY, LAST_DAY))
    month = phrases.MONTHS[day.month - 1]
    match rng.randrange(9):
        case 0 | 1:
            written = day.isoformat()
        case 2:
            written = f"{day.day} {month} {day.year}"
        case 3:
            written = f"{month} {day.day}, {day.year}"
        case 4:
            written = f"{day.day:02d}.{day.month:02d}.{day.year}"
        case 5:
            written = f"{day.month}/{day.day}/{day.year}"
        case 6:
            written = f"{day.day} {month[:3]} {day.year}"
        case 7:
            written = f"{month[:3]} {day.day}, {day.year}"
        case _:
            written = f"the {day.day}{ordinal_suffix(day.day)} of {month} {day.year}"
    return written, day.isoformat()


def ordinal_suffix(day: int) -> str:
    """English: 1st, 2nd, 3rd, 11th."""
    return "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


def make_amount(rng: random.Random) -> tuple[str, str, str]:
    """An amount as written, as a plain decimal, and its currency code. Yen have no decimals; the others have two."""
    currency = rng.choice(tuple(phrases.CURRENCIES))
    whole = rng.randrange(5, 10 ** rng.randint(2, 5))
    if currency == "JPY":
        whole *= 10
        figure, amount = group_thousands(whole, rng.choice((",", ""))), str(whole)
    else:
        cents = rng.randrange(100) if rng.random() < 0.8 else 0
        amount = f"{whole}.{cents:02d}"
        if cents == 0 and rng.random() < 0.5:
            figure = group_thousands(whole, rng.choice((",", "")))
        else:
            # A separator of thousands always comes with decimals or is a comma: "1.200" alone could be read both ways.
            thousands, point = rng.choice(((",", "."), (",", "."), ("", "."), (".", ","), (" ", ","), ("'", ".")))
            figure = f"{group_thousands(whole, thousands)}{point}{cents:02d}"
    return rng.choice(phrases.CURRENCIES[currency]).format(figure), amount, currency


def group_thousands(whole: int, separator: str) -> str:
    """1234567 as 1,234,567 with the given separator."""
    return f"{whole:,}".replace(",", separator)


def make_remark(rng: random.Random) -> str:
    """A closing remark, with figures that mean nothing for the answer."""
    return rng.choice(phrases.REMARKS).format(
        days=rng.choice((7, 10, 14, 21, 30, 45, 60, 90)),
        order=rng.randrange(1000, 1_000_000),
        percent=rng.choice((1, 2, 3, 5, 7, 8, 10, 19, 20, 21, 25)),
        extension=rng.randrange(100, 10_000),
        given=rng.choice(phrases.GIVEN_NAMES),
    )


def batch_line(example: Example, *, custom_id: str, model: str) -> dict[str, object]:
    """One line of an input file in OpenAI's batch format."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": model,
            "messages": [{"role": "user", "content": example.sentence}],
            "max_tokens": MAX_ANSWER_TOKENS,
            "temperature": 0,
        },
    }


def write_batch(folder: Path, held_out: Sequence[Example], *, model: str) -> tuple[Path, Path]:
    """Writes `input.jsonl` (the batch) and `expected.jsonl` (custom_id, sentence and answer per line) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    batch, expected = folder / "input.jsonl", folder / "expected.jsonl"
    with batch.open("w", encoding="utf-8") as batch_file, expected.open("w", encoding="utf-8") as expected_file:
        for index, example in enumerate(held_out, start=1):
            custom_id = f"invoice-{index:04d}"
            line = batch_line(example, custom_id=custom_id, model=model)
            batch_file.write(json.dumps(line, ensure_ascii=False) + "\n")
            record = {"custom_id": custom_id, "sentence": example.sentence, "answer": vars(example.invoice)}
            expected_file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return batch, expected


def main() -> None:
    """Writes a batch of held-out sentences."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=300, help="sentences to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which sentences (default: %(default)s)")
    parser.add_argument("--model", default="invoice-reader", help="model named in every line (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("demo-input"), help="where to (default: %(default)s)")
    arguments = parser.parse_args()
    held_out = list(islice(examples(Side.HELD_OUT, seed=arguments.seed), arguments.count))
    for path in write_batch(arguments.folder, held_out, model=arguments.model):
        print(path)


if __name__ == "__main__":
    main()

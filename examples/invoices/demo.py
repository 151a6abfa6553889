"""The demo: a real batch through the whole service, from upload to bill, on this machine alone.

    python -m examples.invoices.demo

Starts a stack, submits unseen invoice sentences with the stock `openai` client, waits, checks every answer, and stops
what it started. Exit codes: 0 all well; 1 something is wrong, and it says what; 130 and 143 interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from openai import APIError, DefaultHttpxClient, OpenAI
from openai.types import Batch

from examples.invoices.display import METERS, Display
from examples.invoices.generate import Example, Invoice, Side, examples, side_of, write_batch
from examples.invoices.stack import Stack, StackError, running_stack

MODEL = Path(__file__).parent / "invoice-reader"
LEAST_ACCURACY = 0.98
ENDPOINT: Final = "/v1/chat/completions"
BATCH_SECONDS = 300.0
POLL_SECONDS = 0.2
ENDED = {"completed", "failed", "expired", "cancelled"}


class DemoError(Exception):
    """Something that the demo promises did not happen."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the service answered to one sentence."""

    example: Example
    #: As it came; empty if none came.
    content: str

    @property
    def is_right(self) -> bool:
        """Whether the whole JSON object is the expected one."""
        try:
            return bool(json.loads(self.content) == vars(self.example.invoice))
        except ValueError:
            return False


def run(folder: Path, *, count: int, seed: int, num_ranks: int, display: Display) -> None:
    """Runs the demo and leaves its files in a folder. Raises DemoError and StackError."""
    display.heading("Starting PostgreSQL, Redis, the gateway and a group of ranks")
    with running_stack(MODEL, num_ranks=num_ranks) as stack, open_client(stack) as client:
        display.processes(stack.pids)
        sentences = unseen_sentences(count, seed)
        display.note(f"{count} sentences, none of them among those that the network was trained on")
        file_id = upload(client, folder, sentences)
        display.heading("A quote, before anything runs")
        quote = ask_price(client, file_id)
        display.quote(quote)
        batch = submit(client, file_id, quote)
        display.heading(f"Batch {batch.id} of {count} requests")
        batch = watch(client, batch, display)
        download(client, batch, folder)
        answers = read_answers(folder)
        display.answers([(answer.example.sentence, answer.content, answer.is_right) for answer in answers[:10]])
        accuracy = sum(answer.is_right for answer in answers) / count
        display.accuracy(accuracy, [(a.example.invoice.answer, a.content) for a in answers if not a.is_right])
        bill(stack, batch, quote, folder, display)
    display.note(f"Everything is stopped. The files are in {folder}/")
    if accuracy < LEAST_ACCURACY:
        raise DemoError(f"Only {accuracy:.1%} of the answers are right; at least {LEAST_ACCURACY:.0%} should be.")


def open_client(stack: Stack) -> OpenAI:
    """The stock client, on this machine whatever proxy the environment names."""
    return OpenAI(
        base_url=stack.base_url, api_key=stack.api_key, http_client=DefaultHttpxClient(trust_env=False, timeout=60)
    )


def unseen_sentences(count: int, seed: int) -> list[Example]:
    """Held-out sentences, after a check that the training saw none of them.

    The training's sentences are made again from its record, so that this holds for the checkpoint that is here.
    """
    held_out = list(islice(examples(Side.HELD_OUT, seed=seed), count))
    record = json.loads((MODEL / "training.json").read_text(encoding="utf-8"))
    training = islice(examples(Side.TRAINING, seed=record["seed"]), record["num_examples"])
    seen = {example.sentence for example in training}
    for example in held_out:
        if side_of(example.sentence) is not Side.HELD_OUT or example.sentence in seen:
            raise DemoError(f"The network was trained on this sentence: {example.sentence}")
    return held_out


def upload(client: OpenAI, folder: Path, sentences: list[Example]) -> str:
    """Writes the input file and uploads it; returns its id."""
    model = client.models.list().data[0].id
    path, _ = write_batch(folder, sentences, model=model)
    with path.open("rb") as file:
        return client.files.create(file=file, purpose="batch").id


def ask_price(client: OpenAI, file_id: str) -> dict[str, Any]:
    """A quote of the uploaded file. Raises DemoError if there is none."""
    body = {"input_file_id": file_id, "endpoint": ENDPOINT}
    quote: Any = client.post("/batches/quote", body=body, cast_to=object)
    deadline = time.monotonic() + BATCH_SECONDS
    while quote["status"] == "computing" and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        quote = client.get(f"/batches/quote/{quote['id']}", cast_to=object)
    if quote["status"] != "ready":
        raise DemoError(f"The quote is {quote['status']}: {quote['errors']}")
    return dict(quote)


def submit(client: OpenAI, file_id: str, quote: dict[str, Any]) -> Batch:
    """Creates the batch at the price of its quote."""
    return client.batches.create(
        input_file_id=file_id,
        endpoint=ENDPOINT,
        completion_window="24h",
        metadata={"job": "invoices"},
        extra_body={"quote_id": quote["id"]},
    )


def watch(client: OpenAI, batch: Batch, display: Display) -> Batch:
    """Waits for the end of a batch. Raises DemoError if it takes too long or ends in another way than completed."""
    deadline = time.monotonic() + BATCH_SECONDS
    with display.progress() as progress:
        while batch.status not in ENDED:
            if time.monotonic() > deadline:
                raise DemoError(f"The batch is still {batch.status} after {BATCH_SECONDS:g} s.")
            time.sleep(POLL_SECONDS)
            batch = client.batches.retrieve(batch.id)
            progress.update(batch)
    if batch.status != "completed":
        errors = batch.errors.data if batch.errors and batch.errors.data else []
        reasons = "; ".join(f"line {error.line}: {error.message}" for error in errors[:5])
        raise DemoError(f"The batch ended as {batch.status}. {reasons}".strip())
    return batch


def download(client: OpenAI, batch: Batch, folder: Path) -> None:
    """Writes output.jsonl and errors.jsonl; a batch without errors has no error file, and gets an empty one."""
    for name, file_id in (("output.jsonl", batch.output_file_id), ("errors.jsonl", batch.error_file_id)):
        if file_id:
            with client.files.with_streaming_response.content(file_id) as response:
                response.stream_to_file(folder / name)
        else:
            (folder / name).write_bytes(b"")


def read_answers(folder: Path) -> list[Answer]:
    """The answers of the downloaded output file in the order of the input. Raises DemoError if one is missing."""
    contents: dict[str, str] = {}
    for line in read_lines(folder / "output.jsonl"):
        if line["custom_id"] in contents:
            raise DemoError(f"The output file answers {line['custom_id']} twice.")
        contents[line["custom_id"]] = line["response"]["body"]["choices"][0]["message"]["content"]
    expected = read_lines(folder / "expected.jsonl")
    missing = [line["custom_id"] for line in expected if line["custom_id"] not in contents]
    if missing or len(contents) != len(expected):
        raise DemoError(
            f"{len(expected)} answers were expected and {len(contents)} came. "
            f"Missing: {', '.join(missing[:5]) or 'none'}. See {folder / 'errors.jsonl'}."
        )
    return [
        Answer(
            example=Example(sentence=line["sentence"], invoice=Invoice(**line["answer"])),
            content=contents[line["custom_id"]],
        )
        for line in expected
    ]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def bill(stack: Stack, batch: Batch, quote: dict[str, Any], folder: Path, display: Display) -> None:
    """Shows the usage and the bill of the batch's month, and writes bill.json.

    Raises DemoError if they count other requests or tokens than the downloaded answers, or not what the quote said.
    """
    month = f"{datetime.fromtimestamp(batch.completed_at or batch.created_at, UTC):%Y-%m}"
    usage = stack.report("usage", "--month", month)
    bills = stack.report("bill", "--month", month)
    (folder / "bill.json").write_text(json.dumps(bills, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    display.usage(usage)
    display.bill(bills)
    bodies = [line["response"]["body"] for line in read_lines(folder / "output.jsonl")]
    answered = (len(bodies), sum(body["usage"]["total_tokens"] for body in bodies))
    for name, lines in (("usage", usage), ("bill", [line for statement in bills for line in statement["lines"]])):
        counted = (
            sum(line["requests"] for line in lines),
            sum(line[f"{meter}_tokens"] for line in lines for _, meter, _ in METERS),
        )
        if counted != answered:
            raise DemoError(
                f"The answers are {answered[0]} requests of {answered[1]} tokens, but the {name} counts "
                f"{counted[0]} requests of {counted[1]} tokens."
            )
    num_prompt_tokens = sum(body["usage"]["prompt_tokens"] for body in bodies)
    billed = sum((Decimal(statement["exact"]) for statement in bills), Decimal(0))
    if num_prompt_tokens != quote["prompt_tokens"] or billed > Decimal(quote["cost"]["worst_case"]):
        raise DemoError(f"{num_prompt_tokens} prompt tokens and {billed} are not what the quote said: {quote}")


def main() -> None:
    """Runs a real batch on this machine and checks every answer."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo-output"), help="output (default: %(default)s)")
    parser.add_argument("--count", type=int, default=300, help="sentences (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which sentences (default: %(default)s)")
    parser.add_argument("--tp", type=int, default=2, help="ranks of the group (default: %(default)s)")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    # A shell starts its background jobs with this one ignored; asked to end, the demo ends all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run(
            arguments.folder,
            count=arguments.count,
            seed=arguments.seed,
            num_ranks=arguments.tp,
            display=Display(),
        )
    except (DemoError, StackError, APIError, OSError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        print("demo: interrupted; everything is stopped.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Ends through every `finally`, so that the stack is stopped."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()

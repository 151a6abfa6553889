from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from running_groups import running_group, wait_for
from seeds import MODEL, sql
from sqlalchemy import Engine
from submitting import Bench, request_line
from typer.testing import CliRunner

from pipeline.billing.invoice_reading import document_of
from pipeline.billing.invoices import create_invoices, finalize_invoice
from pipeline.billing.receipts import canonical, pack_choices
from pipeline.billing.reports import Month
from pipeline.billing.revisions import revisions_of
from pipeline.billing.verifying import Proofs, Verification, verify_lines, verify_root
from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.jobs.finalizing import finalize
from pipeline.jobs.lines import stream_view
from pipeline.jobs.preparing import prepare
from pipeline.jobs.recounting import prompts_of
from pipeline.settings import get_settings
from pipeline.signing import SigningKey, signing_key
from pipeline.tables import FileView
from pipeline.tables.session import transaction
from pipeline.tokenization import Tokenizer
from workers.backends.echo import EchoEngine

LINES: list[dict[str, Any] | str] = [
    request_line("plain", "The fox jumps over the lazy dog"),
    request_line("several", "Some words", n=3, max_tokens=5),
    request_line("stopped", "one two three four", stop=["three"], max_tokens=12),
    request_line("ids", [5, 6, 7, 8]),
]


@pytest.fixture
def bench(database: Engine, tmp_path: Path, settings_env: pytest.MonkeyPatch) -> Bench:
    settings_env.setenv("RYZANSTEIN_SIGNING_KEY_FILE", str(tmp_path / "key.pem"))
    get_settings.cache_clear()
    return Bench.make(database, tmp_path / "model")


def run(bench: Bench, folder: Path, **options: Any) -> str:
    """A batch of LINES that an engine has answered."""
    batch_id = bench.submit(LINES, **options)
    prepare(batch_id, bench.engine)
    assert bench.batch(batch_id).model, sql(bench.engine, "SELECT code, message FROM batch_errors")
    with running_group(bench.engine, EchoEngine(folder), model_path=folder):
        wait_for(lambda: bench.batch(batch_id).num_succeeded == len(LINES))
    finalize(batch_id, bench.engine)
    return batch_id


def output_of(bench: Bench, batch_id: str) -> bytes:
    return b"".join(stream_view(batch_id, FileView.OUTPUT, bench.engine))


def proofs_of(folder: Path, key: SigningKey) -> Proofs:
    tokenizer = Tokenizer.load(folder)
    content = "".join(json.dumps(line) + "\n" for line in LINES).encode()
    return Proofs(
        public_key=key.public_key_text,
        tokenizer=tokenizer,
        tokenizer_revision=revisions_of(folder).tokenizer,
        prompts=prompts_of(io.BytesIO(content), tokenizer, get_settings()),
    )


def test_receipts_prove_counts_texts_and_amounts_and_every_change_is_found(
    bench: Bench, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    folder = tmp_path / "model"
    batch_id = run(bench, folder, has_receipts=True)
    content = output_of(bench, batch_id)
    proofs = proofs_of(folder, signing_key())

    found = verify_lines(content.splitlines(), proofs)

    assert (found.faults, found.num_lines, found.num_proved) == ([], 4, 4)
    rated = sql(bench.engine, "SELECT sum(amount) FROM usage_prices")[0][0]
    assert dict(found.amounts) == {"USD": rated}
    # The file's size was known when the batch was closed.
    batch = bench.batch(batch_id)
    assert sql(bench.engine, "SELECT num_bytes FROM files WHERE id = :id", id=batch.output_file_id) == [(len(content),)]
    assert output_of(bench, batch_id) == content  # the same receipts whenever they are read
    # A receipt keeps the price that the answer was recorded with.
    sql(
        bench.engine,
        "INSERT INTO rated_lines (request_id, meter, revision, rate_card_id, ledger_transaction_id, quantity,"
        " unit_price, amount, currency)"
        " SELECT request_id, meter, 2, rate_card_id, ledger_transaction_id, quantity, 1, 1, currency FROM usage_prices",
    )
    assert output_of(bench, batch_id) == content

    key = signing_key()
    for name, (code, change) in CHANGES.items():
        with subtests.test(change=name):
            lines = [json.loads(line) for line in content.splitlines()]
            change(lines[1])
            if name.endswith("signed again"):
                receipt = lines[1]["receipt"]
                receipt["signature"] = base64.b64encode(key.sign(canonical(receipt["payload"]))).decode()
            changed = verify_lines([json.dumps(line).encode() for line in lines], proofs)
            assert [(fault.line, fault.code) for fault in changed.faults] == [(2, code)]
            assert changed.num_proved == 3


def _set(*path: str | int) -> Callable[[Any], Callable[[dict[str, Any]], None]]:
    def to(value: Any) -> Callable[[dict[str, Any]], None]:
        def change(line: dict[str, Any]) -> None:
            part: Any = line
            for step in path[:-1]:
                part = part[step]
            part[path[-1]] = value(part[path[-1]]) if callable(value) else value

        return change

    return to


def _other_tokens(line: dict[str, Any]) -> None:
    """Three more tokens, hashed and counted, but for the usage."""
    packed = pack_choices([[5, 6], [7], [8]])
    line["receipt"]["output_token_ids"] = base64.b64encode(packed).decode()
    line["receipt"]["payload"]["output_hash"] = hashlib.sha256(packed).hexdigest()


#: What is done to the second line, and what is said of it.
CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "amount": ("bad_signature", _set("receipt", "payload", "amount")("9")),
    "signature": ("bad_signature", _set("receipt", "signature")("AAAA")),
    "no receipt": ("no_receipt", lambda line: line.pop("receipt")),
    "other key": ("other_key", _set("receipt", "key_id")("0123456789abcdef")),
    "custom id": ("other_line", _set("custom_id")("another")),
    "model": ("other_line", _set("response", "body", "model")("larger")),
    "fewer tokens": ("wrong_count", _set("response", "body", "usage", "completion_tokens")(1)),
    "prompt tokens": ("wrong_count", _set("response", "body", "usage", "prompt_tokens")(1)),
    "tokens": ("wrong_tokens", _set("receipt", "output_token_ids")("AAAAAA==")),
    "tokens that are none": ("wrong_tokens", _set("receipt", "output_token_ids")("!")),
    "text": ("wrong_text", _set("response", "body", "choices", 2, "text")("something else")),
    "choices": ("wrong_text", _set("response", "body", "choices")(lambda choices: choices[:2])),
    "a choice that is none": ("wrong_text", _set("response", "body", "choices", 2, "index")(3)),
    "another choice": ("wrong_text", _set("response", "body", "choices", 2, "index")(-1)),
    "shape": ("incomplete", _set("response", "body", "usage")(None)),
    "other tokens, signed again": ("wrong_count", _other_tokens),
    "amount, signed again": ("wrong_amount", _set("receipt", "payload", "amount")("9")),
    "price, signed again": ("wrong_amount", _set("receipt", "payload", "meters", 0, "unit_price")("9")),
    "prompt, signed again": ("wrong_prompt", _set("receipt", "payload", "prompt_hash")("00")),
    "tokenizer, signed again": ("other_tokenizer", _set("receipt", "payload", "tokenizer_revision")("00")),
    "version, signed again": ("other_version", _set("receipt", "payload", "version")(2)),
}


def test_a_batch_without_receipts_keeps_no_tokens_and_shows_none(bench: Bench, tmp_path: Path) -> None:
    batch_id = run(bench, tmp_path / "model")
    assert sql(bench.engine, "SELECT count(*) FROM results WHERE output_token_ids IS NOT NULL") == [(0,)]
    content = output_of(bench, batch_id)
    assert b"receipt" not in content
    found = verify_lines(content.splitlines(), Proofs(public_key=signing_key().public_key_text))
    assert {fault.code for fault in found.faults} == {"no_receipt"}
    batch = bench.batch(batch_id)
    assert sql(bench.engine, "SELECT num_bytes FROM files WHERE id = :id", id=batch.output_file_id) == [(len(content),)]


def test_an_invoice_prints_the_root_of_its_receipts(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    batches = [run(bench, folder, has_receipts=True), run(bench, folder), run(bench, folder, has_receipts=True)]
    [(now,)] = sql(bench.engine, "SELECT max(occurred_at) FROM metered_usage")
    month = Month.of(now)
    after = datetime(month.end.year, month.end.month, 2, tzinfo=UTC)
    with transaction() as session:
        [draft] = create_invoices(session, bench.tenant.id, month, after)
        document = document_of(session, finalize_invoice(session, draft.id, after))
    assert document.num_receipts == 8

    proofs = proofs_of(folder, signing_key())
    found = Verification()
    files = []
    for batch_id in (batches[2], batches[0]):
        path = tmp_path / f"{batch_id}.jsonl"
        path.write_bytes(output_of(bench, batch_id))
        verify_lines(path.read_bytes().splitlines(), proofs, found)
        files.append(str(path))
    assert found.faults == []
    assert verify_root(found, 8, document.receipts_root) == []
    assert [fault.code for fault in verify_root(found, 8, "00" * 32)] == ["wrong_root"]
    assert [fault.code for fault in verify_root(Verification(), 8, document.receipts_root)] == ["other_receipts"]

    key = tmp_path / "public.pem"
    made = CliRunner().invoke(app, ["keys", "signing"])
    assert made.exit_code == 0, made.output
    key.write_text(made.stdout)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    report = CliRunner().invoke(
        app, ["bill", "report", "--month", str(month), "--format", "json", "--out", str(tmp_path / "out"), "--json"]
    )
    [invoice] = json.loads(report.stdout)[0]["files"]
    options = ["--key", str(key), "--model-folder", str(folder), "--input", str(tmp_path / "in.jsonl")]
    proved = CliRunner().invoke(app, ["verify", *files, *options, "--invoice", invoice, "--json"])
    assert proved.exit_code == 0, proved.output
    said = json.loads(proved.stdout)
    assert (said["proved"], said["faults"]) == (8, [])
    assert Decimal(said["amounts"]["USD"]) == sum(found.amounts.values())
    for content in ("[1]", '{"receipts": 8}', '{"receipts": {"count": "many"}}'):
        (other := tmp_path / "other.json").write_text(content)
        wrong = CliRunner().invoke(app, ["verify", *files, *options, "--invoice", str(other)])
        assert isinstance(wrong.exception, UserError), content
    doubled = CliRunner().invoke(app, ["verify", files[0], files[0], *options])
    assert doubled.exit_code == 3
    assert f"{files[0]}:1: doubled" in doubled.stdout


def test_a_group_of_the_version_before_gives_answers_without_receipts(bench: Bench, tmp_path: Path) -> None:
    batch_id = bench.submit(LINES, has_receipts=True)
    prepare(batch_id, bench.engine)
    bench.answer(bench.claim())  # keeps no tokens
    assert b'"receipt"' not in output_of(bench, batch_id)
    assert bench.batch(batch_id).model == MODEL

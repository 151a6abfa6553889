"""A model whose tokenizer or chat template turns out to be unusable fails the batch, soon, and nothing else."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from seeds import seed_batch, seed_model, seed_tenant
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from tokenizer_folders import byte_level, words

from pipeline.jobs.intake import IntakeReport, intake
from pipeline.settings import Settings
from pipeline.tables import Batch, OnInvalid
from pipeline.tokenization import ChatTemplateLimitError, Tokenizer

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def lines(endpoint: str, count: int, **body: Any) -> bytes:
    envelope = {"method": "POST", "url": endpoint, "body": {"model": "tiny", **body}}
    return b"".join(json.dumps({"custom_id": f"r{i}", **envelope}).encode() + b"\n" for i in range(count))


def run(database: Engine, folder: Path, endpoint: str, content: bytes) -> tuple[IntakeReport, list[tuple[int, str]]]:
    """What intake reports, and its errors by line and code."""
    seed_model(database, path=str(folder))
    batch_id = seed_batch(database, seed_tenant(database), [], endpoint=endpoint)
    with Session(database) as session, session.begin():
        batch = session.get_one(Batch, batch_id)
        batch.on_invalid = OnInvalid.SKIP
        session.flush()
        conn = session.connection()
        report = intake(conn, batch, io.BytesIO(content), Settings())
        query = text("SELECT line, code FROM batch_errors WHERE batch_id = :id ORDER BY line")
        return report, [(row.line, row.code) for row in conn.execute(query, {"id": batch_id})]


def test_a_tokenizer_that_breaks_over_a_prompt_fails_the_batch(database: Engine, tmp_path: Path) -> None:
    folder = words(tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["unk_token"] = "nowhere"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    report, errors = run(database, folder, COMPLETIONS, lines(COMPLETIONS, 2, prompt="unheard-of"))
    assert not report.is_accepted
    assert errors == [(0, "model_unavailable")]


def test_a_template_that_is_always_too_slow_fails_the_batch_after_a_few_lines(
    database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[object] = []

    def render(self: Tokenizer, chats: Sequence[object]) -> Iterator[ChatTemplateLimitError]:
        for chat in chats:
            rendered.append(chat)
            yield ChatTemplateLimitError("The chat template takes longer than 10 s of processor time.")

    monkeypatch.setattr(Tokenizer, "render_chats", render)
    content = lines(CHAT, 100, messages=[{"role": "user", "content": "hi"}])
    report, errors = run(database, byte_level(tmp_path), CHAT, content)
    assert not report.is_accepted
    assert errors == [(0, "model_unavailable")]
    assert len(rendered) == 3


def test_one_prompt_that_is_too_much_is_an_error_of_its_line(database: Engine, tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    template = "{% if messages[0].content == 'bad' %}{{ 'x' * 10 ** 12 }}{% endif %}{{ messages[0].content }}"
    (folder / "chat_template.jinja").write_text(template)
    good = [lines(CHAT, 1, messages=[{"role": "user", "content": "hi"}])]
    bad = lines(CHAT, 1, messages=[{"role": "user", "content": "bad"}]).replace(b"r0", b"bad")
    report, errors = run(database, folder, CHAT, b"".join([*good, bad]))
    assert report.is_accepted
    assert report.num_requests == 1
    assert errors == [(2, "invalid_value")]

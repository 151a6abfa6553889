"""Any bytes as the input file of a batch, through intake and planning as the control worker runs them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest
from budget import Budget
from hypothesis import strategies as st
from line_strategies import CHAT, COMPLETIONS, lines
from seeds import seed_batch, seed_model, seed_tenant
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session
from tokenizer_folders import byte_level

from pipeline.jobs.input_lines import read_lines
from pipeline.jobs.intake import IntakeReport, intake
from pipeline.jobs.intake_table import INTAKE_TABLE
from pipeline.jobs.planning import plan
from pipeline.schemas.generation import GenerationParams
from pipeline.settings import Settings
from pipeline.tables import Batch, OnInvalid
from pipeline.tokenization import unpack_token_ids

CONTEXT = 512
#: Small, so that the limits are met as well.
SETTINGS = Settings(max_line_bytes=16 * 1024, max_batch_file_bytes=64 * 1024, max_batch_lines=8)
FILE_CODES = {"too_many_requests", "file_too_large", "invalid_encoding", "empty_file"}


@pytest.fixture
def batches(database: Engine, tmp_path: Path) -> dict[str, str]:
    """By endpoint: a batch whose file is to be read."""
    seed_model(database, path=str(byte_level(tmp_path / "model")))
    with database.begin() as conn:
        conn.execute(text("UPDATE served_models SET context_length = :tokens"), {"tokens": CONTEXT})
    tenant = seed_tenant(database)
    return {endpoint: seed_batch(database, tenant, [], endpoint=endpoint) for endpoint in (CHAT, COMPLETIONS)}


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    endpoint = draw(st.sampled_from([CHAT, COMPLETIONS]))
    written = draw(st.lists(lines(endpoint), max_size=10))
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n"]))
    start = draw(st.sampled_from([b"", b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\n"]))
    return endpoint, start + end.join(written) + draw(st.sampled_from([b"", end]))


def test_any_file_is_read_to_its_end_and_every_line_is_accounted_for(
    database: Engine, batches: dict[str, str], budget: Budget, quiet_log: Path
) -> None:
    def one(file: tuple[str, bytes]) -> None:
        endpoint, content = file
        with Session(database) as session:
            batch = session.get_one(Batch, batches[endpoint])
            batch.on_invalid = OnInvalid.SKIP
            session.flush()
            conn = session.connection()
            report = intake(conn, batch, io.BytesIO(content), SETTINGS)
            check(conn, batch, content, report)
            if report.is_accepted:
                assert report.model is not None
                plan(conn, batch, report.model, SETTINGS)
            session.rollback()

    budget.run(one, file=files())


def check(conn: Connection, batch: Batch, content: bytes, report: IntakeReport) -> None:
    """One row or one error for each line, and nothing in them that a reader of ours could not take."""
    rows = conn.execute(text(f"SELECT * FROM {INTAKE_TABLE} ORDER BY line")).all()
    errors = conn.execute(text("SELECT * FROM batch_errors WHERE batch_id = :id ORDER BY line"), {"id": batch.id}).all()
    assert (report.num_requests, report.num_errors) == (len(rows), len(errors))
    if errors and errors[0].line == 0:
        assert errors[0].code in FILE_CODES
    else:
        present = [line.number for line in read_lines(io.BytesIO(content), 16 * 1024, 64 * 1024)]
        assert sorted([row.line for row in rows] + [error.line for error in errors]) == present
    assert len({row.custom_id for row in rows}) == len(rows)
    own = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for row in rows:
        assert json.loads(own[row.line - 1])["custom_id"] == row.custom_id
        ids = unpack_token_ids(row.prompt_token_ids)
        assert 0 < len(ids) == row.num_prompt_tokens
        params = msgspec.json.decode(json.dumps(row.params), type=GenerationParams)
        assert len(ids) + params.max_tokens <= CONTEXT
        assert row.num_tokens == len(ids) + params.n * params.max_tokens
    for error in errors:
        assert error.code
        assert error.message
        assert len(error.message) < 1000
        assert error.param is None or len(error.param) <= 128

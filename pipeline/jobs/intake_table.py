"""Where intake leaves the requests of a batch for planning: a temporary table, gone with the transaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import msgspec
import psycopg
from sqlalchemy import Connection, text

from pipeline.schemas.generation import GenerationParams
from pipeline.schemas.invalid import InvalidRequestError
from pipeline.tokenization import pack_token_ids

#: Planning reads it ordered by `prompt_token_ids, line`, in the transaction that intake wrote it in. The columns are
#: those of `requests`, but for `num_tokens`: the most work that the request can be, prompt_tokens + n x max_tokens.
INTAKE_TABLE = "intake_requests"

_CREATE = f"""
    CREATE TEMPORARY TABLE {INTAKE_TABLE} (
        line bigint NOT NULL,
        custom_id text NOT NULL,
        prompt_token_ids bytea NOT NULL,
        num_prompt_tokens bigint NOT NULL,
        params jsonb NOT NULL,
        num_tokens bigint NOT NULL
    ) ON COMMIT DROP
"""
_COPY_REQUESTS = (
    f"COPY {INTAKE_TABLE} (line, custom_id, prompt_token_ids, num_prompt_tokens, params, num_tokens) FROM STDIN"
)
_COPY_ERRORS = "COPY batch_errors (batch_id, line, custom_id, code, param, message) FROM STDIN"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRequest:
    """A good line: what the engine will be asked."""

    line: int
    custom_id: str
    prompt_token_ids: list[int]
    params: GenerationParams

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + self.params.n * self.params.max_tokens


@dataclass(frozen=True, slots=True)
class InvalidLine:
    """A bad line, or with line 0 what is wrong with the file; `custom_id` as far as it could be read."""

    line: int
    custom_id: str | None
    code: str
    param: str | None
    message: str

    @classmethod
    def of(cls, line: int, custom_id: str | None, error: InvalidRequestError) -> InvalidLine:
        # An error that is kept keeps its frames, and with them the whole line.
        return cls(line, custom_id, error.code, error.param, str(error))


def create_intake_table(conn: Connection) -> None:
    """Once per transaction."""
    conn.execute(text(_CREATE))


def write_requests(conn: Connection, requests: Iterable[PreparedRequest]) -> None:
    """Append to the table; a short COPY of its own."""
    encode = msgspec.json.encode
    with _driver(conn).cursor() as cursor, cursor.copy(_COPY_REQUESTS) as copy:
        for request in requests:
            copy.write_row(
                (
                    request.line,
                    request.custom_id,
                    pack_token_ids(request.prompt_token_ids),
                    len(request.prompt_token_ids),
                    encode(request.params).decode(),
                    request.num_tokens,
                )
            )


def write_errors(conn: Connection, batch_id: str, lines: Iterable[InvalidLine]) -> None:
    """To `batch_errors`."""
    with _driver(conn).cursor() as cursor, cursor.copy(_COPY_ERRORS) as copy:
        for line in lines:
            copy.write_row((batch_id, line.line, line.custom_id, line.code, line.param, line.message))


def _driver(conn: Connection) -> psycopg.Connection:
    return cast(psycopg.Connection, conn.connection.driver_connection)

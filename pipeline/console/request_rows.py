"""Requests, answers and errors of one batch, in the order of its input file, a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from pipeline.jobs.lines import CANCELLED_CODE, CANCELLED_MESSAGE, EXPIRED_CODE, EXPIRED_MESSAGE
from pipeline.tables import OutcomeKind

#: What requests can be narrowed to; `none` are those without an outcome yet.
OUTCOMES: Final = (*(kind.value for kind in OutcomeKind), "none")
#: Answers that are longer than this, in bytes, are for downloading.
MOST_ANSWER_BYTES: Final = 256 * 1024

# Few rows of whatever is kept: they are looked up, and never found by reading all partitions of a table.
_BY_KEY: Final = text("""
    SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
           set_config('enable_mergejoin', 'off', true), set_config('enable_sort', 'off', true)
""")
_REQUESTS: Final = text("""
    SELECT line, custom_id, outcome, num_prompt_tokens, error_code, error_message
    FROM requests
    WHERE batch_id = :batch_id AND line > :after
      AND (:outcome = '' OR coalesce(outcome, 'none') = :outcome)
    ORDER BY line LIMIT :limit
""")
_BY_CUSTOM_ID: Final = text("""
    SELECT line, custom_id, outcome, num_prompt_tokens, error_code, error_message
    FROM requests WHERE batch_id = :batch_id AND custom_id = :custom_id
""")
_ANSWERS: Final = text("""
    SELECT r.line, r.custom_id, r.outcome, r.num_prompt_tokens, r.error_code, r.error_message,
           a.request_id IS NOT NULL AS is_answered,
           CASE WHEN a.num_line_bytes <= :most_bytes THEN a.body END AS body
    FROM requests r LEFT JOIN results a ON a.request_id = r.id
    WHERE r.batch_id = :batch_id AND r.line > :after AND (:line = 0 OR r.line = :line)
      AND (:line > 0 OR r.outcome = 'succeeded')
    ORDER BY r.line LIMIT :limit
""")
_ERRORS: Final = text("""
    (SELECT line, custom_id, outcome, error_code AS code, error_message AS message, NULL AS param FROM requests
     WHERE batch_id = :batch_id AND line > :after AND outcome <> 'succeeded' ORDER BY line LIMIT :limit)
    UNION ALL
    (SELECT line, custom_id, NULL, code, message, param FROM batch_errors
     WHERE batch_id = :batch_id AND line > :after ORDER BY line LIMIT :limit)
    ORDER BY line LIMIT :limit
""")


@dataclass(frozen=True)
class LinePage:
    """Rows in the order of their lines."""

    rows: Sequence[Row[Any]]
    #: The line after which the next page begins; None: there is none.
    next_after: int | None


@dataclass(frozen=True, kw_only=True)
class LineError:
    """What went wrong with a line; line 0 is the file as a whole."""

    line: int
    custom_id: str | None
    code: str
    param: str | None
    message: str


def read_requests(session: Session, batch_id: str, *, outcome: str, after: int, limit: int) -> LinePage:
    """`outcome` is one of OUTCOMES, or empty."""
    return _page(session, _REQUESTS, limit, batch_id=batch_id, outcome=outcome, after=after)


def find_request(session: Session, batch_id: str, custom_id: str) -> LinePage:
    """The one request that the client has given this name."""
    session.execute(_BY_KEY)
    return LinePage(session.execute(_BY_CUSTOM_ID, {"batch_id": batch_id, "custom_id": custom_id}).all(), None)


def read_answers(session: Session, batch_id: str, *, after: int, limit: int) -> LinePage:
    """Requests that have an answer, with it; `body` is None where it is longer than MOST_ANSWER_BYTES."""
    return _page(session, _ANSWERS, limit, batch_id=batch_id, line=0, after=after, most_bytes=MOST_ANSWER_BYTES)


def read_answer(session: Session, batch_id: str, line: int) -> Row[Any] | None:
    """One request with its answer, if it has one; None where no request of the batch is on this line."""
    rows = _page(session, _ANSWERS, 1, batch_id=batch_id, line=line, after=0, most_bytes=MOST_ANSWER_BYTES).rows
    return rows[0] if rows else None


def read_errors(session: Session, batch_id: str, *, after: int, limit: int) -> tuple[list[LineError], int | None]:
    """What is, or will be, in the error file, and what a batch failed with; and the line after which more is."""
    page = _page(session, _ERRORS, limit, batch_id=batch_id, after=after)
    return [_error(row) for row in page.rows], page.next_after


def _page(session: Session, query: Any, limit: int, **params: Any) -> LinePage:
    session.execute(_BY_KEY)
    rows = session.execute(query, {**params, "limit": limit + 1}).all()
    return LinePage(rows[:limit], rows[limit - 1].line if len(rows) > limit else None)


def _error(row: Row[Any]) -> LineError:
    match row.outcome:
        case OutcomeKind.CANCELLED:
            code, message = CANCELLED_CODE, CANCELLED_MESSAGE
        case OutcomeKind.EXPIRED:
            code, message = EXPIRED_CODE, EXPIRED_MESSAGE
        case _:
            code, message = row.code or "internal_error", row.message or "The request failed."
    return LineError(line=row.line, custom_id=row.custom_id, code=code, param=row.param, message=message)

"""The lines of a batch's output and error files: views over its outcomes, in the order of the input file.

Lines have OpenAI's shape. An answer is in the output file; every other outcome, and every invalid line that was
skipped, is in the error file. Both can be read while the batch runs and then hold the outcomes there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import Connection, Engine, text

from pipeline.billing.receipts import BlankSigner, batch_receipts
from pipeline.ids import request_public_id
from pipeline.signing import signing_key
from pipeline.tables import FileView, OutcomeKind
from pipeline.tables.session import connection

CANCELLED_CODE: Final = "batch_cancelled"
CANCELLED_MESSAGE: Final = "This request was not executed because its batch was cancelled."
EXPIRED_CODE: Final = "batch_expired"
EXPIRED_MESSAGE: Final = "This request could not be executed before the completion window expired."

#: A piece of a file: so many lines, or so many bytes (but one line at least), at most.
_PIECE_LINES: Final = 1_000
_PIECE_BYTES: Final = 2 * 1024**2

# A piece is few rows of whatever is kept: they are looked up, and never found by reading all partitions of a table.
_BY_KEY: Final = text("""
    SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
           set_config('enable_mergejoin', 'off', true)
""")

# The sizes of the next lines come first, so that no more answers are read than a piece holds.
_OUTPUT_SIZES: Final = text("""
    SELECT r.line, a.num_line_bytes FROM requests r JOIN results a ON a.request_id = r.id
    WHERE r.batch_id = :batch_id AND r.line > :after ORDER BY r.line LIMIT :limit
""")
_OUTPUT_LINES: Final = text("""
    SELECT r.id, r.custom_id, a.body FROM requests r JOIN results a ON a.request_id = r.id
    WHERE r.batch_id = :batch_id AND r.line > :after AND r.line <= :last ORDER BY r.line
""")
_HAS_RECEIPTS: Final = text("SELECT has_receipts FROM batches WHERE id = :batch_id")
#: What a line of a batch with receipts has more than OpenAI's.
_RECEIPT: Final = b',"receipt":%b'
_OUTPUT_BYTES: Final = text("SELECT coalesce(sum(num_line_bytes), 0) FROM results WHERE batch_id = :batch_id")

_ERROR_LINES: Final = text("""
    (SELECT line, id, custom_id, outcome, error_code, error_message, NULL AS param FROM requests
     WHERE batch_id = :batch_id AND line > :after AND outcome <> 'succeeded' ORDER BY line LIMIT :limit)
    UNION ALL
    (SELECT line, NULL, custom_id, NULL, code, message, param FROM batch_errors
     WHERE batch_id = :batch_id AND line > :after ORDER BY line LIMIT :limit)
    ORDER BY line LIMIT :limit
""")


def output_line(request_id: int, custom_id: str, body_json: str, receipt_json: bytes | None = None) -> bytes:
    """The line of a request that succeeded, with its newline. What is JSON already goes in as it is."""
    receipt = b"" if receipt_json is None else _RECEIPT % receipt_json
    line = b'{"id":"%b","custom_id":%b,"response":{"status_code":200,"request_id":"%b","body":%b},"error":null%b}\n'
    return line % (
        request_public_id(request_id).encode(),
        orjson.dumps(custom_id),
        f"req_{request_id:032x}".encode(),
        body_json.encode(),
        receipt,
    )


def error_line(request_id: int, custom_id: str, code: str, message: str) -> bytes:
    """The line of a request that failed, was cancelled or expired, with its newline."""
    return _error_line(request_public_id(request_id), custom_id, {"code": code, "message": message})


def invalid_line(batch_id: str, line: int, custom_id: str | None, code: str, param: str | None, message: str) -> bytes:
    """The line of an invalid line that was skipped, with its newline.

    Its error has two fields more than OpenAI's, `param` and `line`: the line may have no custom_id to find it by.
    """
    digest = hashlib.sha256(f"{batch_id}:{line}".encode()).hexdigest()[:32]
    return _error_line(
        f"batch_req_{digest}", custom_id, {"code": code, "message": message, "param": param, "line": line}
    )


def _error_line(public_id: str, custom_id: str | None, error: dict[str, Any]) -> bytes:
    return orjson.dumps(
        {"id": public_id, "custom_id": custom_id, "response": None, "error": error}, option=orjson.OPT_APPEND_NEWLINE
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    data: bytes
    #: The input line after which the next piece begins.
    last_line: int


def stream_view(batch_id: str, view: FileView, engine: Engine | None = None) -> Iterator[bytes]:
    """The bytes of a file in pieces of a few megabytes at most.

    Each piece is a transaction of its own, so that a slow client holds neither a connection nor a snapshot.
    """
    after = 0
    while True:
        with connection(engine) as conn:
            conn.execute(_BY_KEY)
            piece = _READ_PIECE[view](conn, batch_id, after)
        if piece is None:
            return
        yield piece.data
        after = piece.last_line


def view_num_bytes(conn: Connection, batch_id: str, view: FileView) -> int:
    """Length of a file as it is now."""
    if view is FileView.OUTPUT:
        num_bytes = int(conn.scalar(_OUTPUT_BYTES, {"batch_id": batch_id}) or 0)
        return num_bytes + _num_receipt_bytes(conn, batch_id)
    num_bytes, after = 0, 0
    while (piece := _read_error_piece(conn, batch_id, after)) is not None:
        num_bytes += len(piece.data)
        after = piece.last_line
    return num_bytes


def _read_output_piece(conn: Connection, batch_id: str, after: int) -> _Piece | None:
    sizes = conn.execute(_OUTPUT_SIZES, {"batch_id": batch_id, "after": after, "limit": _PIECE_LINES})
    num_bytes, last = 0, None
    for line, num_line_bytes in sizes:
        if last is not None and num_bytes + num_line_bytes > _PIECE_BYTES:
            break
        num_bytes += num_line_bytes
        last = line
    if last is None:
        return None
    rows = conn.execute(_OUTPUT_LINES, {"batch_id": batch_id, "after": after, "last": last}).all()
    receipts: dict[int, bytes] = {}
    if conn.scalar(_HAS_RECEIPTS, {"batch_id": batch_id}):
        receipts = batch_receipts(conn, batch_id, after, last, signing_key())
    lines = [output_line(row.id, row.custom_id, row.body, receipts.get(row.id)) for row in rows]
    return _Piece(b"".join(lines), last)


def _num_receipt_bytes(conn: Connection, batch_id: str) -> int:
    """What receipts add to the output file; they are as long whoever signs them."""
    if not conn.scalar(_HAS_RECEIPTS, {"batch_id": batch_id}):
        return 0
    num_bytes, after = 0, 0
    while True:
        sizes = conn.execute(_OUTPUT_SIZES, {"batch_id": batch_id, "after": after, "limit": _PIECE_LINES}).all()
        if not sizes:
            return num_bytes
        last = sizes[-1].line
        receipts = batch_receipts(conn, batch_id, after, last, BlankSigner())
        num_bytes += sum(len(_RECEIPT % receipt) for receipt in receipts.values())
        after = last


def _read_error_piece(conn: Connection, batch_id: str, after: int) -> _Piece | None:
    rows = conn.execute(_ERROR_LINES, {"batch_id": batch_id, "after": after, "limit": _PIECE_LINES}).all()
    if not rows:
        return None
    lines = []
    for line, request_id, custom_id, outcome, code, message, param in rows:
        if request_id is None:
            lines.append(invalid_line(batch_id, line, custom_id, code, param, message))
        elif outcome == OutcomeKind.CANCELLED:
            lines.append(error_line(request_id, custom_id, CANCELLED_CODE, CANCELLED_MESSAGE))
        elif outcome == OutcomeKind.EXPIRED:
            lines.append(error_line(request_id, custom_id, EXPIRED_CODE, EXPIRED_MESSAGE))
        else:
            lines.append(error_line(request_id, custom_id, code or "internal_error", message or "The request failed."))
    return _Piece(b"".join(lines), rows[-1].line)


_READ_PIECE: Final[dict[FileView, Callable[[Connection, str, int], _Piece | None]]] = {
    FileView.OUTPUT: _read_output_piece,
    FileView.ERROR: _read_error_piece,
}

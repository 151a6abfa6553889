"""Runs intake over files of 200 MB in a process of its own, and prints the most memory that it ever held."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

from sqlalchemy.orm import Session

from pipeline.jobs.intake import intake
from pipeline.settings import Settings
from pipeline.tables import Batch
from pipeline.tables.session import make_engine

FILE_BYTES = 200 * 1024**2
LINE_BYTES = 4 * 1024**2


class Generated(io.RawIOBase):
    """A file that is never in memory as a whole."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        block, self._rest = self._rest[:size], self._rest[size:]
        return block


def one_line() -> Iterator[bytes]:
    """One line that never ends."""
    return chain([b'{"custom_id":"a","method":"POST","url":"'], repeat(b"x" * 65536, FILE_BYTES // 65536 - 1))


def many_lines() -> Iterator[bytes]:
    """As many good lines as are allowed."""
    num_lines = 50_000
    filler = b"x" * (FILE_BYTES // num_lines - 300)
    for number in range(num_lines):
        yield _line(number, b'"messages":[{"role":"user","content":"hi"}],"max_tokens":4,"user":"%s"' % filler)


def long_lines() -> Iterator[bytes]:
    """The longest lines, of kinds that take much more memory than bytes; each is refused, but the last."""
    message = b'{"role":"user","content":"x"}'
    kinds = [
        b'"messages":[{"role":"user","content":"' + _fill(b"Zq7") + b'"}]',
        b'"messages":[' + _fill(message + b",") + message + b"]",
        b'"messages":[' + _fill(b"{},") + b"{}]",
        b'"messages":[' + message + b'],"tools":[' + _fill(b"{},") + b"{}]",
        b'"messages":[' + message + b'],"tools":[' + _fill(b"257,") + b"1]",
        b'"messages":['
        + message
        + b'],"logit_bias":{'
        + b",".join(b'"%d":1' % i for i in range(LINE_BYTES // 12))
        + b"}",
    ]
    for number in range(FILE_BYTES // LINE_BYTES - 1):
        yield _line(number, kinds[number % len(kinds)])
    yield _line(-1, b'"max_tokens":4,"messages":[' + message + b"]")


def _fill(item: bytes) -> bytes:
    return item * ((LINE_BYTES - 1000) // len(item))


def _line(number: int, fields: bytes) -> bytes:
    head = b'{"custom_id":"request-%d","method":"POST","url":"/v1/chat/completions","body":{"model":"tiny",' % number
    return head + fields + b"}}\n"


def peak_bytes() -> int:
    """The kernel's `VmHWM`; unlike `ru_maxrss` it does not begin with that of the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main(database_url: str, batch_id: str, kind: str) -> None:
    pieces = {"one_line": one_line, "many_lines": many_lines, "long_lines": long_lines}[kind]()
    with Session(make_engine(database_url)) as session, session.begin():
        batch = session.get_one(Batch, batch_id)
        report = intake(session.connection(), batch, Generated(pieces), Settings())  # type: ignore[arg-type]
    print(json.dumps({"requests": report.num_requests, "errors": report.num_errors, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])

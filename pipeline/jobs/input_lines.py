"""The lines of an input file, read as a stream: what is held is one line and one block, however long the file is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_BLOCK_BYTES = 256 * 1024
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class FileTooLargeError(ValueError):
    """The file has more bytes than are allowed."""


class FileEncodingError(ValueError):
    """The file says by its first bytes that it is UTF-16."""


@dataclass(frozen=True, slots=True)
class InputLine:
    #: In the file, from 1; blank lines count.
    number: int
    #: Without its end. None: it is longer than allowed, and was not kept.
    data: bytes | None


def read_lines(stream: BinaryIO, max_line_bytes: int, max_file_bytes: int) -> Iterator[InputLine]:
    """The lines that are not blank. Raises FileTooLargeError and FileEncodingError, once that is known."""
    for number, data in enumerate(_split(stream, max_line_bytes, max_file_bytes), 1):
        if data is None or data.strip():
            yield InputLine(number, data)


def _split(stream: BinaryIO, max_line_bytes: int, max_file_bytes: int) -> Iterator[bytes | None]:
    pending: list[bytes] = []  # blocks of the line that is being read
    num_pending = 0
    num_bytes = 0
    while block := stream.read(_BLOCK_BYTES):
        is_first = num_bytes == 0
        num_bytes += len(block)
        if num_bytes > max_file_bytes:
            raise FileTooLargeError
        *ends, rest = (_without_mark(block) if is_first else block).split(b"\n")
        for end in ends:
            yield b"".join((*pending, end)) if num_pending + len(end) <= max_line_bytes else None
            pending, num_pending = [], 0
        num_pending += len(rest)
        pending = [*pending, rest] if num_pending <= max_line_bytes else []
    if num_pending:
        yield b"".join(pending) if num_pending <= max_line_bytes else None


def _without_mark(block: bytes) -> bytes:
    if block.startswith(_UTF16_MARKS):
        raise FileEncodingError
    return block.removeprefix(_UTF8_MARK)

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.jobs import input_lines
from pipeline.jobs.input_lines import FileEncodingError, FileTooLargeError, InputLine, read_lines


def lines(content: bytes, max_line_bytes: int = 100, max_file_bytes: int = 10_000) -> list[InputLine]:
    return list(read_lines(io.BytesIO(content), max_line_bytes, max_file_bytes))


@given(content=st.text(alphabet="ab \r\n", max_size=60), block_bytes=st.integers(1, 9), max_bytes=st.integers(1, 9))
def test_blocks_leave_no_trace(content: str, block_bytes: int, max_bytes: int) -> None:
    data = content.encode()
    whole = [InputLine(i, line) for i, line in enumerate(data.split(b"\n"), 1) if line.strip() or len(line) > max_bytes]
    expected = [line if len(line.data or b"") <= max_bytes else InputLine(line.number, None) for line in whole]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_lines, "_BLOCK_BYTES", block_bytes)
        assert lines(data, max_bytes) == expected


def test_blank_lines_are_counted_but_not_given() -> None:
    assert lines(b"\n\r\na\n\n b\n") == [InputLine(3, b"a"), InputLine(5, b" b")]


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert lines(b"\xef\xbb\xbfa\n\xef\xbb\xbfb") == [InputLine(1, b"a"), InputLine(2, b"\xef\xbb\xbfb")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_recognised_by_its_mark(encoding: str) -> None:
    mark = "" if encoding == "utf-16" else "\ufeff"
    with pytest.raises(FileEncodingError):
        lines((mark + "a\n").encode(encoding))


def test_a_file_that_is_too_large_is_given_up_at_that_point() -> None:
    assert len(lines(b"a\n" * 50, max_file_bytes=100)) == 50
    with pytest.raises(FileTooLargeError):
        lines(b"a\n" * 50, max_file_bytes=99)

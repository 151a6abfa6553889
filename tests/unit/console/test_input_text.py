from __future__ import annotations

from typing import Any

import pytest

from pipeline import storage
from pipeline.console import input_text
from pipeline.console.input_text import LineText, read_input_lines
from pipeline.ids import new_id


def put(content: bytes) -> str:
    key = new_id("blob")
    storage.write_blob(key, [content])
    return key


@pytest.fixture(autouse=True)
def small_blocks(settings_env: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that lines lie across blocks, and places are noted early."""
    monkeypatch.setattr(input_text, "_BLOCK_BYTES", 7)
    monkeypatch.setattr(input_text, "_STRIDE", 4)


def test_lines_are_found_by_number_whatever_was_read_before() -> None:
    lines = [f"line {number} ".encode() + b"x" * (number % 11) for number in range(1, 41)]
    key = put(b"\n".join(lines))
    for wanted in ([1], [40], [3, 17], [39], range(1, 41), [5], [4, 8, 12]):
        found = read_input_lines(key, wanted, 1_000)
        assert found == {number: LineText(lines[number - 1], True) for number in wanted}
    assert read_input_lines(key, [0, 41, 99], 1_000) == {}
    assert read_input_lines(key, [], 1_000) == {}


def test_a_later_look_begins_near_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    key = put(b"".join(f"{number:06}\n".encode() for number in range(1, 101)))
    read_input_lines(key, [97], 100)
    begun: list[int] = []
    real = input_text._pieces

    def noted(blob: Any, offset: int) -> Any:
        begun.append(offset)
        return real(blob, offset)

    monkeypatch.setattr(input_text, "_pieces", noted)
    assert read_input_lines(key, [98], 100)[98].data == b"000098"
    assert begun == [96 * 7]


def test_blank_lines_count_and_ends_need_no_newline() -> None:
    key = put(b"a\n\n\nd\n\nf")
    assert {number: line.data for number, line in read_input_lines(key, range(1, 9), 10).items()} == {
        1: b"a",
        2: b"",
        3: b"",
        4: b"d",
        5: b"",
        6: b"f",
    }


def test_a_long_line_is_cut_and_said_to_be() -> None:
    key = put(b"a" * 1_000 + b"\n" + b"b" * 20 + b"\nc\n")
    found = read_input_lines(key, [1, 2, 3], 20)
    assert found == {1: LineText(b"a" * 20, False), 2: LineText(b"b" * 20, True), 3: LineText(b"c", True)}


def test_a_mark_at_the_beginning_is_no_part_of_the_line() -> None:
    assert read_input_lines(put(b"\xef\xbb\xbfa\xff\n"), [1], 10)[1].text == "a\ufffd"

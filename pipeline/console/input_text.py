"""Single lines of input files, by their numbers, without reading what is before them each time.

Blobs have no index. The first look at a file notes where every so many lines begin, as far as it had to read; later
looks begin there. What is noted is a convenience of this process: another one reads from the beginning.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO, Final

from pipeline.storage import open_blob

_BLOCK_BYTES: Final = 1024**2
#: Lines between two places that are noted.
_STRIDE: Final = 256
#: Files of which places are known.
_MOST_FILES: Final = 64
_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class LineText:
    """A line of an input file, or its beginning."""

    data: bytes
    is_whole: bool

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")


class _Places:
    """Where line `1 + n * _STRIDE` of a file begins, for the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offsets = [0]

    def before(self, number: int) -> tuple[int, int]:
        """Number and offset of the nearest line at or before this one."""
        with self._lock:
            found = min((number - 1) // _STRIDE, len(self._offsets) - 1)
            return 1 + found * _STRIDE, self._offsets[found]

    def note(self, number: int, offset: int) -> None:
        with self._lock:
            if number == 1 + len(self._offsets) * _STRIDE:
                self._offsets.append(offset)


@lru_cache(maxsize=_MOST_FILES)
def _places_of(storage_key: str) -> _Places:
    """A blob never changes."""
    return _Places()


def read_input_lines(storage_key: str, numbers: Iterable[int], most_bytes: int) -> dict[int, LineText]:
    """These lines, from 1 as intake numbers them, of each no more than `most_bytes`; without those that the file lacks.

    Raises BlobNotFoundError, StorageError.
    """
    wanted = {number for number in numbers if number > 0}
    if not wanted:
        return {}
    last = max(wanted)
    places = _places_of(storage_key)
    number, offset = places.before(min(wanted))
    found: dict[int, LineText] = {}
    with open_blob(storage_key) as blob:
        blob.seek(offset)
        for begins_at, piece, ends in _pieces(blob, offset):
            if begins_at is not None:
                places.note(number, begins_at)
            if number in wanted and (piece or number not in found):
                found[number] = _longer(found.get(number), piece, most_bytes)
            if ends:
                number += 1
                if number > last:
                    break
    if 1 in found:
        found[1] = LineText(found[1].data.removeprefix(_MARK), found[1].is_whole)
    return found


def _longer(line: LineText | None, piece: bytes, most_bytes: int) -> LineText:
    data = (line.data if line else b"") + piece[: most_bytes + 1]
    is_whole = (line is None or line.is_whole) and len(data) <= most_bytes
    return LineText(data[:most_bytes], is_whole)


def _pieces(blob: BinaryIO, offset: int) -> Iterator[tuple[int | None, bytes, bool]]:
    """Parts of lines: where the line begins if this is its first part, the part, and whether it is the last."""
    is_first = True
    while block := blob.read(_BLOCK_BYTES):
        at = 0
        while at < len(block):
            end = block.find(b"\n", at)
            stop = len(block) if end < 0 else end
            yield (offset + at if is_first else None), block[at:stop], end >= 0
            is_first = end >= 0
            at = stop + 1
        offset += len(block)

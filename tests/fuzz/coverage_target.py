"""What atheris calls with bytes that it changes so that they reach new code: the reader and the checker of lines.

Run by `test_fuzz_coverage.py` in a process of its own, with libFuzzer's options.
"""

from __future__ import annotations

import io
import sys

import atheris

with atheris.instrument_imports(include=["pipeline.schemas", "pipeline.jobs.input_lines"]):
    from pipeline.jobs.input_lines import FileEncodingError, FileTooLargeError, read_lines
    from pipeline.schemas.invalid import InvalidRequestError
    from pipeline.schemas.requests import BODIES, check_line, parse_body, parse_line, readable_custom_id

ENDPOINTS = tuple(BODIES)
VOCABULARY = 400


def read(content: bytes) -> None:
    """The first byte chooses the endpoint, the rest is the file. Whatever is raised but our own errors is a fault."""
    endpoint = ENDPOINTS[content[0] % len(ENDPOINTS)] if content else ENDPOINTS[0]
    try:
        lines = list(read_lines(io.BytesIO(content[1:]), 4096, 65536))
    except (FileEncodingError, FileTooLargeError):
        return
    for line in lines:
        if line.data is None:
            continue
        try:
            envelope = parse_line(line.data)
            check_line(envelope, endpoint)
            body = parse_body(envelope, endpoint)
            body.params(max_tokens=1, vocab_size=VOCABULARY)
        except InvalidRequestError as error:
            check(error.code, str(error), error.param or "", readable_custom_id(line.data) or "")


def check(*texts: str) -> None:
    """What is written into `batch_errors`."""
    for text in texts:
        text.encode()
        assert "\0" not in text
        assert len(text) < 1000


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()

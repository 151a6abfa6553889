"""What atheris calls with bytes that it changes so that they reach new code: readers of lines, uploads and templates.

Run by `test_fuzz_coverage.py` in a process of its own, with libFuzzer's options.
"""

from __future__ import annotations

import inspect
import io
import sys
from types import ModuleType

import atheris
import jinja2.lexer
import jinja2.parser

from pipeline.gateway import uploads
from pipeline.gateway.errors import ApiError
from pipeline.gateway.uploads import UploadForm
from pipeline.jobs import input_lines
from pipeline.jobs.input_lines import FileEncodingError, FileTooLargeError, read_lines
from pipeline.schemas import bodies, invalid, messages, requests
from pipeline.schemas.invalid import InvalidRequestError
from pipeline.schemas.requests import BODIES, check_line, parse_body, parse_line, readable_custom_id
from pipeline.settings import Settings
from pipeline.tokenization.chat_template import ChatTemplate, ChatTemplateError

ENDPOINTS = tuple(BODIES)
VOCABULARY = 400
SETTINGS = Settings(max_upload_bytes=2048, max_batch_file_bytes=1024)


def instrument(module: ModuleType) -> None:
    """Count what its functions and methods reach. Atheris's own hook does not see through an editable installation."""
    for item in vars(module).values():
        if getattr(item, "__module__", None) != module.__name__:
            continue
        for function in vars(item).values() if inspect.isclass(item) else [item]:
            function = function.fget if isinstance(function, property) else function
            function = getattr(function, "__func__", function)
            if inspect.isfunction(function):
                atheris.instrument_func(function)


def read(content: bytes) -> None:
    """The first byte chooses who reads the rest. Whatever is raised but our own errors is a fault."""
    if not content:
        return
    kind, content = content[0] % 4, content[1:]
    if kind < len(ENDPOINTS):
        read_file(ENDPOINTS[kind], content)
    elif kind == 2:
        read_upload(content)
    else:
        read_template(content)


def read_file(endpoint: str, content: bytes) -> None:
    try:
        lines = list(read_lines(io.BytesIO(content), 4096, 65536))
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


def read_upload(content: bytes) -> None:
    """A body in two pieces."""
    try:
        form = UploadForm("multipart/form-data; boundary=b", SETTINGS)
        form.feed(content[: len(content) // 2])
        num_bytes = len(form.take())
        form.feed(content[len(content) // 2 :])
        upload = form.finish()
        num_bytes += len(form.take())
    except ApiError as error:
        check(error.message, error.code or "", error.param or "")
    else:
        assert upload.num_bytes == num_bytes <= SETTINGS.max_upload_bytes
        check(upload.filename, upload.purpose)
        assert upload.filename


def read_template(content: bytes) -> None:
    """Only read: running it is for a process of its own."""
    try:
        ChatTemplate(content.decode(errors="replace"), {})
    except ChatTemplateError as error:
        check(str(error))


def check(*texts: str) -> None:
    """What is written into SQL, or answered."""
    for text in texts:
        text.encode()
        assert "\0" not in text
        assert len(text) < 1000


if __name__ == "__main__":
    for module in (input_lines, bodies, invalid, messages, requests, uploads, jinja2.lexer, jinja2.parser):
        instrument(module)
    for function in (read, read_file, read_upload, read_template):
        atheris.instrument_func(function)
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()

"""Uploads: a multipart body goes to blob storage as it arrives, so that its size costs no memory and no second copy."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import Request
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from pipeline import storage
from pipeline.gateway.errors import ApiError, invalid
from pipeline.schemas.files import BATCH_PURPOSE, UPLOAD_PURPOSES, ExpiresAfter
from pipeline.settings import Settings

#: Bytes collected before a thread is asked to write them.
_WRITE_BYTES = 1024**2
#: Longest value of a field that is no file.
_MAX_FIELD_BYTES = 1024
#: What boundaries, headers and fields add to the length of a body, at most.
_MAX_OVERHEAD_BYTES = 64 * 1024
_MAX_FILENAME_CHARS = 255

_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Digest(Protocol):
    """Of `hashlib`."""

    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file whose blob has been written."""

    filename: str
    purpose: str
    num_bytes: int
    expires_after_seconds: int | None


async def receive_upload(
    request: Request, storage_key: str, settings: Settings, digest: Digest | None = None
) -> Upload:
    """Write the file part of `request` under `storage_key`; nothing is left there if this raises.

    `digest` is fed with the content. Raises ApiError for a body that is no upload, or is too long; StorageError;
    ClientDisconnect.
    """
    form = UploadForm(request.headers.get("content-type", ""), settings)
    num_said = request.headers.get("content-length", "0")
    form.expect(int(num_said) if num_said.isdigit() else 0)
    writer = await run_in_threadpool(storage.create_blob, storage_key)

    def write(data: bytes) -> None:
        if digest is not None:
            digest.update(data)
        writer.write(data)

    try:
        async for chunk in request.stream():
            form.feed(chunk)
            if len(form.pending) >= _WRITE_BYTES:
                await run_in_threadpool(write, form.take())
        upload = form.finish()
        await run_in_threadpool(write, form.take())
        await run_in_threadpool(writer.commit)
    finally:
        await run_in_threadpool(writer.discard)
    return upload


class UploadForm:
    """Reads the parts of an upload: one `file`, and fields in any order. Does no input or output."""

    def __init__(self, content_type: str, settings: Settings) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise invalid(None, "Send the file as multipart/form-data, with the fields 'file' and 'purpose'.")
        self._max_file_bytes = settings.max_upload_bytes
        self._max_batch_bytes = min(settings.max_upload_bytes, settings.max_batch_file_bytes)
        #: Content of the file that waits to be written.
        self.pending = bytearray()
        self._num_bytes = 0
        #: Length of the file by what the body says of its own.
        self._num_said = 0
        self._filename: str | None = None
        self._fields: dict[str, str] = {}
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._part = ""
        self._value = bytearray()
        self._is_complete = False
        callbacks: dict[str, Callable[..., Any]] = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        except FormParserError as error:
            raise _malformed() from error

    def expect(self, num_body_bytes: int) -> None:
        """Refuse at once a body that says that it is longer than any file may be; 0 where it does not say."""
        self._num_said = max(0, num_body_bytes - _MAX_OVERHEAD_BYTES)
        self._check_length()

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed() from error

    def take(self) -> bytes:
        """What `feed` has found of the file since the last call."""
        taken = bytes(self.pending)
        self.pending.clear()
        return taken

    def finish(self) -> Upload:
        """The upload, when the whole body has been fed and is complete and right."""
        if not self._is_complete:
            raise _malformed()
        if self._filename is None:
            raise invalid("file", "Missing required parameter: 'file'.", "missing_required_parameter")
        purpose = self._fields.get("purpose")
        if purpose is None:
            raise invalid("purpose", "Missing required parameter: 'purpose'.", "missing_required_parameter")
        return Upload(
            filename=self._filename,
            purpose=purpose,
            num_bytes=self._num_bytes,
            expires_after_seconds=self._expires_after_seconds(),
        )

    def _expires_after_seconds(self) -> int | None:
        given = {
            name.removeprefix("expires_after[").removesuffix("]"): value
            for name, value in self._fields.items()
            if name.startswith("expires_after[")
        }
        if not given:
            return None
        try:
            return ExpiresAfter.model_validate(given).seconds
        except ValidationError as error:
            mistake = error.errors()[0]
            param = f"expires_after.{mistake['loc'][0]}"
            raise invalid(param, f"Invalid '{param}': {mistake['msg']}") from None

    def _check_length(self) -> None:
        is_batch = self._fields.get("purpose") == BATCH_PURPOSE
        limit = self._max_batch_bytes if is_batch else self._max_file_bytes
        if max(self._num_bytes, self._num_said) > limit:
            raise ApiError(
                413,
                f"The file is too large. The input file of a batch may have {self._max_batch_bytes} bytes at most, any "
                f"other file {self._max_file_bytes}. Split it.",
                param="file",
                code="file_too_large",
            )

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._value.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part = options.get(b"name", b"").decode("utf-8", "replace")
        if self._part == "file":
            if b"filename" not in options:
                raise invalid("file", "'file' must be a file with a name, not a text field.")
            if self._filename is not None:
                raise invalid("file", "Send one file at a time.")
            self._filename = _clean(options[b"filename"])
        elif self._part not in _FIELDS:
            shown = _CONTROL.sub("", self._part)[:64]
            raise invalid(shown or None, f"Unknown parameter: '{shown}'.", "unknown_parameter")
        elif self._part in self._fields:
            raise invalid(self._part, f"'{self._part}' was sent twice.")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == "file":
            self._num_bytes += end - start
            self._check_length()
            self.pending += memoryview(data)[start:end]
        elif len(self._value) + end - start > _MAX_FIELD_BYTES:
            raise invalid(self._part, f"'{self._part}' is too long.")
        else:
            self._value += data[start:end]

    def _on_part_end(self) -> None:
        if self._part == "file":
            return
        value = self._value.decode("utf-8", "replace")
        if self._part == "purpose" and value not in UPLOAD_PURPOSES:
            raise invalid("purpose", f"{_clean(value)[:64]!r} is not one of {', '.join(UPLOAD_PURPOSES)}.")
        self._fields[self._part] = value
        self._check_length()

    def _on_end(self) -> None:
        self._is_complete = True


def _malformed() -> ApiError:
    return invalid(None, "The body is not complete, well-formed multipart/form-data.")


def _clean(name: bytes | str) -> str:
    """A name for showing: the last part of a path, without control characters, of bounded length."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return _CONTROL.sub("", re.split(r"[/\\]", text)[-1])[-_MAX_FILENAME_CHARS:].strip() or "upload"

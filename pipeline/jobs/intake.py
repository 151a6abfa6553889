"""Intake: reads the input file of a batch as a stream, checks every line, and tokenises those that are good."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import structlog
from sqlalchemy import Connection, text

from pipeline.billing.cards_in_effect import priced_models
from pipeline.jobs.input_lines import FileEncodingError, FileTooLargeError, InputLine, read_lines
from pipeline.jobs.intake_table import InvalidLine, create_intake_table, write_errors, write_requests
from pipeline.jobs.prompts import CheckedLine, PromptEncoder, RenderedRequest
from pipeline.schemas.invalid import InvalidRequestError
from pipeline.schemas.requests import RequestLine, check_line, parse_body, parse_line, readable_custom_id
from pipeline.settings import Settings
from pipeline.tables.batches import Batch, OnInvalid
from pipeline.tokenization import Tokenizer, TokenizerError

#: Lines, and bytes of them, that are rendered at once.
_RENDERED_LINES = 64
_RENDERED_BYTES = 256 * 1024
#: Requests, and bytes of their prompts, that are tokenised and written at once. Tokenising takes some 200 bytes of
#: memory for each token, and a text can have as many tokens as bytes.
_CHUNK_REQUESTS = 1024
_CHUNK_BYTES = 256 * 1024

_MODELS = text("SELECT name, path, context_length FROM served_models")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class IntakeReport:
    """What intake found. The good lines are in the intake table, the bad ones in `batch_errors`."""

    #: None where no line named a model that is served and has a price.
    model: str | None
    num_requests: int
    num_errors: int
    #: Whether the batch goes on; otherwise it fails, with its errors listed.
    is_accepted: bool


@dataclass(frozen=True, kw_only=True)
class InputReport:
    """What is in an input file. The good lines are in the intake table."""

    #: None where no line named a model that is served and has a price.
    model: str | None
    num_requests: int
    #: One for each bad line; of line 0 where it is the file as a whole.
    errors: Sequence[InvalidLine]
    #: Whether the file was read to its end.
    is_whole: bool

    def is_accepted(self, on_invalid: OnInvalid) -> bool:
        """Whether a batch that does this with invalid lines goes on."""
        is_good_enough = not self.errors or on_invalid is OnInvalid.SKIP
        return self.is_whole and is_good_enough and self.num_requests > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    name: str
    path: Path
    #: Tokens.
    context_length: int
    is_priced: bool


class _FileError(InvalidRequestError):
    """Something is wrong with the file as a whole; no more of it is read."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, None, message)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Of a model folder; kept, and read again when a file of it has changed. Raises TokenizerError."""
    return _load_tokenizer(folder, max((path.stat().st_mtime_ns for path in folder.glob("*.j*")), default=0))


@lru_cache(maxsize=8)
def _load_tokenizer(folder: Path, changed_ns: int) -> Tokenizer:
    return Tokenizer.load(folder)


def intake(
    conn: Connection,
    batch: Batch,
    stream: BinaryIO,
    settings: Settings,
    tokenizer_of: Callable[[Path], Tokenizer] = load_tokenizer,
) -> IntakeReport:
    """Check every line of `stream`, the input file of `batch`, within the caller's transaction.

    Good lines are left in the intake table, for planning. Every bad line becomes one row of `batch_errors`, with the
    first thing that is wrong with it; line 0 is the file as a whole. The batch itself is left as it is. Memory is
    bounded, whatever the file holds. Raises what `stream` and the database raise, and nothing else.
    """
    priced = priced_models(conn, batch.tenant_id, batch.rate_card_id)
    report = read_input(conn, batch.endpoint, stream, settings, tokenizer_of, priced=priced)
    write_errors(conn, batch.id, report.errors)
    return IntakeReport(
        model=report.model,
        num_requests=report.num_requests,
        num_errors=len(report.errors),
        is_accepted=report.is_accepted(batch.on_invalid),
    )


def read_input(
    conn: Connection,
    endpoint: str,
    stream: BinaryIO,
    settings: Settings,
    tokenizer_of: Callable[[Path], Tokenizer] = load_tokenizer,
    *,
    priced: Collection[str],
) -> InputReport:
    """Check every line of `stream`, whose requests are for `endpoint`, and leave the good ones in the intake table.

    `priced` are the models that have a price for the tenant; requests for others are refused.

    Once per transaction. Memory is bounded, but for what is said about each bad line. Raises what `stream` and the
    database raise, and nothing else.
    """
    create_intake_table(conn)
    state = _Intake(conn, endpoint, settings, tokenizer_of, priced)
    is_whole = True
    try:
        state.read(stream)
    except _FileError as error:
        is_whole = False
        state.errors.append(InvalidLine.of(0, None, error))
    return InputReport(
        model=state.model.name if state.model else None,
        num_requests=state.num_requests,
        errors=state.errors,
        is_whole=is_whole,
    )


class _Intake:
    """One pass over one file."""

    def __init__(
        self,
        conn: Connection,
        endpoint: str,
        settings: Settings,
        tokenizer_of: Callable[[Path], Tokenizer],
        priced: Collection[str],
    ) -> None:
        self._conn = conn
        self._endpoint = endpoint
        self._settings = settings
        self._tokenizer_of = tokenizer_of
        self._models = {
            row.name: _Model(
                name=row.name, path=Path(row.path), context_length=row.context_length, is_priced=row.name in priced
            )
            for row in conn.execute(_MODELS)
        }
        self._encoder: PromptEncoder | None = None
        self._custom_ids: set[str] = set()
        self._checked: list[CheckedLine] = []
        self._num_checked_bytes = 0
        self._chunk: list[RenderedRequest] = []
        self._num_chunk_bytes = 0
        self.model: _Model | None = None
        self.errors: list[InvalidLine] = []
        self.num_requests = 0

    def read(self, stream: BinaryIO) -> None:
        """Raises _FileError."""
        max_bytes, max_lines = self._settings.max_batch_file_bytes, self._settings.max_batch_lines
        num_lines = 0
        try:
            for line in read_lines(stream, self._settings.max_line_bytes, max_bytes):
                num_lines += 1
                if num_lines > max_lines:
                    message = f"The file has more than {max_lines} requests. Split it into several batches."
                    raise _FileError("too_many_requests", message)
                self._read_line(line)
            self._render()
            self._write_chunk()
        except FileTooLargeError:
            message = f"The file has more than {max_bytes} bytes. Split it into several batches."
            raise _FileError("file_too_large", message) from None
        except FileEncodingError:
            raise _FileError("invalid_encoding", "The file is UTF-16. Save it as UTF-8.") from None
        except TokenizerError as error:
            raise _unavailable(self.model.name if self.model else "", error) from None
        if num_lines == 0:
            raise _FileError("empty_file", "The file has no requests. Write one JSON object per line.")

    def _read_line(self, line: InputLine) -> None:
        try:
            checked = self._check(line)
        except _FileError:
            raise
        except InvalidRequestError as error:
            self.errors.append(InvalidLine.of(line.number, readable_custom_id(line.data), error))
            return
        self._checked.append(checked)
        self._num_checked_bytes += len(line.data or b"")
        if len(self._checked) >= _RENDERED_LINES or self._num_checked_bytes >= _RENDERED_BYTES:
            self._render()

    def _render(self) -> None:
        if self._encoder is None:
            return
        rendered, invalid = self._encoder.render(self._checked)
        self._checked, self._num_checked_bytes = [], 0
        self.errors += invalid
        for request in rendered:
            self._chunk.append(request)
            self._num_chunk_bytes += request.num_bytes
            if len(self._chunk) >= _CHUNK_REQUESTS or self._num_chunk_bytes >= _CHUNK_BYTES:
                self._write_chunk()

    def _check(self, line: InputLine) -> CheckedLine:
        """Everything but what needs the prompt. Raises InvalidRequestError."""
        if line.data is None:
            message = f"This line is longer than {self._settings.max_line_bytes} bytes."
            raise InvalidRequestError("line_too_long", None, message)
        envelope = parse_line(line.data)
        check_line(envelope, self._endpoint)
        self._check_unique(envelope)
        body = parse_body(envelope, self._endpoint)
        self._choose(body.model)
        return CheckedLine(line.number, envelope.custom_id, body)

    def _check_unique(self, envelope: RequestLine) -> None:
        if envelope.custom_id in self._custom_ids:
            message = (
                "The custom_id for this request is a duplicate of another request. "
                "The custom_id parameter must be unique for each request in a batch."
            )
            raise InvalidRequestError("duplicate_custom_id", "custom_id", message)
        self._custom_ids.add(envelope.custom_id)

    def _choose(self, name: str) -> None:
        """The first line's model is the batch's. Raises InvalidRequestError where `name` is not it."""
        if self.model is not None and name == self.model.name:
            return
        model = self._models.get(name)
        if model is None:
            shown = f"'{name}'" if len(name) <= 128 else "of this line"
            message = f"The model {shown} does not exist. GET /v1/models lists those that do."
            raise InvalidRequestError("model_not_found", "body.model", message)
        if not model.is_priced:
            message = f"The model '{name}' has no price yet, so that it can't be billed. Ask the operator for one."
            raise InvalidRequestError("model_not_priced", "body.model", message)
        if self.model is not None:
            message = f"The model '{name}' differs from '{self.model.name}' of earlier lines. A batch has one model."
            raise InvalidRequestError("mismatched_model", "body.model", message)
        try:
            tokenizer = self._tokenizer_of(model.path)
        except TokenizerError as error:
            raise _unavailable(name, error) from None
        self.model = model
        self._encoder = PromptEncoder(tokenizer, model.context_length)

    def _write_chunk(self) -> None:
        if self._encoder is None:
            return
        prepared, invalid = self._encoder.encode(self._chunk)
        write_requests(self._conn, prepared)
        self.num_requests += len(prepared)
        self.errors += invalid
        self._chunk, self._num_chunk_bytes = [], 0


def _unavailable(model: str, error: TokenizerError) -> _FileError:
    """No line of the file can be run, and the client can do nothing about it; the log has the reason."""
    log.error("tokenizer can't be used", model=model, error=str(error))
    message = f"The model '{model}' can't be used, because its tokenizer can't be used. Tell the operator."
    return _FileError("model_unavailable", message)

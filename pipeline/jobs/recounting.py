"""The prompts of an input file, tokenised again, for whoever checks what was billed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from pipeline.errors import UserError
from pipeline.jobs.input_lines import FileEncodingError, FileTooLargeError, read_lines
from pipeline.jobs.prompts import CheckedLine, PromptEncoder
from pipeline.schemas.invalid import InvalidRequestError
from pipeline.schemas.requests import BODIES, check_line, parse_body, parse_line
from pipeline.settings import Settings
from pipeline.tokenization import Tokenizer, pack_token_ids

#: Lines that are rendered and tokenised at once.
_CHUNK: Final = 64


def prompts_of(stream: BinaryIO, tokenizer: Tokenizer, settings: Settings) -> dict[str, bytes]:
    """Packed tokens of each good line's prompt, by custom_id. What intake would refuse is left out.

    Raises UserError for a file that can't be read as an input file, and TokenizerError.
    """
    prompts: dict[str, bytes] = {}
    encoder = PromptEncoder(tokenizer, tokenizer.context_length)
    chunk: list[CheckedLine] = []
    try:
        for line in _good_lines(stream, settings):
            if chunk and type(line.body) is not type(chunk[0].body):
                prompts |= _encoded(encoder, chunk)
                chunk = []
            chunk.append(line)
            if len(chunk) >= _CHUNK:
                prompts |= _encoded(encoder, chunk)
                chunk = []
    except (FileTooLargeError, FileEncodingError) as error:
        raise UserError(f"The input file can't be read: {type(error).__doc__}") from None
    return prompts | _encoded(encoder, chunk)


def _good_lines(stream: BinaryIO, settings: Settings) -> Iterator[CheckedLine]:
    for line in read_lines(stream, settings.max_line_bytes, settings.max_batch_file_bytes):
        if line.data is None:
            continue
        try:
            envelope = parse_line(line.data)
            endpoint = envelope.url if envelope.url in BODIES else next(iter(BODIES))
            check_line(envelope, endpoint)
            yield CheckedLine(line.number, envelope.custom_id, parse_body(envelope, endpoint))
        except InvalidRequestError:
            continue


def _encoded(encoder: PromptEncoder, lines: list[CheckedLine]) -> dict[str, bytes]:
    if not lines:
        return {}
    rendered, _ = encoder.render(lines)
    prepared, _ = encoder.encode(rendered)
    return {request.custom_id: pack_token_ids(request.prompt_token_ids) for request in prepared}

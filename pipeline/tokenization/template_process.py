"""Renders a chat template in a process of its own: whatever the template does, it does to this process alone.

A sandbox keeps a template from reaching out, not from running for ever or filling the memory: `'x' * 10**11` is one
operation that nothing interrupts. Here the kernel does: the processor time of a prompt and the memory of the process
are limited, and `chat_template.py`, which starts it, goes on without it. It is run by its path, so that it imports
Jinja and nothing else of this project.

Over the socket that is its standard input come frames, each a length (4 bytes, big-endian) and JSON: first an Opening,
then lists of prompts. Each prompt is answered by a frame that begins with the byte of an Answer, as soon as it is
rendered: when the process comes to its end, it is the first that was not answered that was too much for it.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Never, TypedDict

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Bytes of a frame's length.
LENGTH_BYTES: Final = 4
#: Bytes that are asked for at once.
READ_BYTES: Final = 256 * 1024
_SOCKET: Final = 0
#: Of a message that a template raises; it is the template's text, but may quote a role or a field.
_MAX_REASON_CHARS: Final = 200


class Opening(TypedDict):
    """What the process is told at first."""

    source: str
    special_tokens: Mapping[str, str]
    #: Most processor time for one prompt, in seconds.
    seconds: float
    #: Longest prompt.
    chars: int
    #: Most memory of the process, as addresses that it has asked for.
    bytes: int


class Prompt(TypedDict):
    """What is to be rendered."""

    messages: list[dict[str, Any]]
    #: ISO 8601.
    now: str


class Answer(StrEnum):
    """The first character of an answer; the rest of it is text."""

    TEXT = "T"  #: The prompt.
    REFUSED = "R"  #: The template refuses the messages; its reason.
    FAILED = "F"  #: The template can't render them; the kind of error.
    TOO_LONG = "L"  #: The prompt is longer than it may be.
    OUT_OF_MEMORY = "M"  #: The template wants more memory than it may have.


class RaisedByTemplate(jinja2.TemplateError):
    """The template called `raise_exception`."""


class _TooLongError(Exception):
    pass


def make_environment() -> ImmutableSandboxedEnvironment:
    """What templates are read with: the meaning that transformers gives to them, in a sandbox that can change nothing.

    `strftime_now` is for whoever renders to set.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


class Renderer:
    """One template, compiled at the first prompt: compiling works out what is constant, so it needs the limits too."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._environment = make_environment()
        self._template: jinja2.Template | None = None

    def answer(self, prompt: Prompt) -> tuple[Answer, str]:
        try:
            text = self._render(prompt)
            text.encode()  # half a character, as a template can write it, is no text
        except RaisedByTemplate as error:
            return Answer.REFUSED, str(error)[:_MAX_REASON_CHARS].encode(errors="replace").decode()
        except _TooLongError:
            return Answer.TOO_LONG, ""
        except MemoryError:
            return Answer.OUT_OF_MEMORY, ""
        # What foreign code raises can be anything; its text may hold parts of a prompt, so only its kind is shown.
        except Exception as error:  # noqa: BLE001
            return Answer.FAILED, type(error).__name__
        return Answer.TEXT, text

    def _render(self, prompt: Prompt) -> str:
        if self._template is None:
            self._template = self._environment.from_string(self._opening["source"])
        now = datetime.fromisoformat(prompt["now"])
        written = io.StringIO()
        num_chars = 0
        for piece in self._template.generate(
            messages=prompt["messages"],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            strftime_now=now.strftime,
            **self._opening["special_tokens"],
        ):
            num_chars += len(piece)
            if num_chars > self._opening["chars"]:
                raise _TooLongError
            written.write(piece)
        return written.getvalue()


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks what training learns from; it writes its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which a model has never seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> Never:
    raise RaisedByTemplate(message)


def main() -> None:
    """Answer until the other end closes."""
    frames = _Frames()
    if (first := frames.read()) is None:
        return
    opening: Opening = json.loads(first)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = opening["bytes"] if most == resource.RLIM_INFINITY else min(opening["bytes"], most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    renderer = Renderer(opening)
    while (frame := frames.read()) is not None:
        for prompt in json.loads(frame):
            # Not caught: the default of SIGPROF ends the process even in the middle of one long operation. Waiting for
            # the next prompt takes no processor time, so that the timer need not be stopped.
            signal.setitimer(signal.ITIMER_PROF, opening["seconds"])
            kind, text = renderer.answer(prompt)
            _write_frame(kind.encode() + text.encode())


class _Frames:
    """What comes from the other end. Most frames are short enough to come at once."""

    def __init__(self) -> None:
        self._pending = b""

    def read(self) -> bytes | None:
        """The next frame; None where the other end has closed."""
        while (end := frame_end(self._pending)) is None or end > len(self._pending):
            piece = os.read(_SOCKET, max(READ_BYTES, (end or 0) - len(self._pending)))
            if not piece:
                return None
            self._pending += piece
        frame, self._pending = self._pending[LENGTH_BYTES:end], self._pending[end:]
        return frame


def frame_end(data: bytes) -> int | None:
    """Where the frame ends that `data` begins with; None as long as that is not known."""
    if len(data) < LENGTH_BYTES:
        return None
    return LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "big")


def _write_frame(data: bytes) -> None:
    left = memoryview(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    while left:
        left = left[os.write(_SOCKET, left) :]


if __name__ == "__main__":
    main()

"""Chat templates: messages to the text of a prompt, with the meaning that transformers gives to a template."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, TemplateSyntaxError

from pipeline.errors import PipelineError
from pipeline.tokenization.template_process import (
    LENGTH_BYTES,
    READ_BYTES,
    Answer,
    Opening,
    Prompt,
    frame_end,
    make_environment,
)

_PROGRAM: Final = Path(__file__).with_name("template_process.py")
#: Longest template; real ones have some ten thousand characters.
MAX_SOURCE_CHARS: Final = 256 * 1024
#: A process that is stopped, or starved by others, is given up after so many times the processor time that it may use.
_WALL_FACTOR: Final = 6
#: What the process needs of our environment to start; it must not see our secrets.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")


class ChatTemplateError(PipelineError):
    """The chat template can't render these messages."""


class ChatTemplateLimitError(ChatTemplateError):
    """The chat template took more time or memory than it may, or wrote more. Such a template may do so every time."""


@dataclass(frozen=True, kw_only=True)
class RenderLimits:
    """What one prompt may cost. No template that is meant well comes near it."""

    #: Of processor time.
    seconds: float = 10.0
    #: Longer than any context.
    chars: int = 32 * 1024**2
    #: Of the process that renders, as addresses; some 250 MB of them are Python's own.
    bytes: int = 1024**3


class ChatTemplate:
    """A template, and the process that runs it. Templates and messages are both foreign: see `template_process`.

    The process starts with the first prompt, ends with this object, and is replaced when a prompt was too much for it.
    Thread-safe; prompts are rendered one after the other.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        limits: RenderLimits | None = None,
    ) -> None:
        """`special_tokens` become variables: `bos_token`, `eos_token` and so on.

        Raises ChatTemplateError where `source` is no template.
        """
        _check_syntax(source)
        self._now = now
        self._limits = limits or RenderLimits()
        self._opening = Opening(
            source=source,
            special_tokens=dict(special_tokens),
            seconds=self._limits.seconds,
            chars=self._limits.chars,
            bytes=self._limits.bytes,
        )
        self._knows_developers = "developer" in source
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._close: weakref.finalize[..., ChatTemplate] | None = None

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt up to where the assistant begins. Keys without a value are left out, as transformers does.

        Raises ChatTemplateError, with the template's own reason where it gives one; OSError if no process can start.
        """
        (rendered,) = self.render_many([messages])
        if isinstance(rendered, ChatTemplateError):
            raise rendered
        return rendered

    def render_many(self, chats: Sequence[Sequence[dict[str, Any]]]) -> Generator[str | ChatTemplateError]:
        """The same for many, in less time: the prompt of each, or why it has none, as they come. Raises OSError."""
        now = self._now().isoformat()
        prompts = [Prompt(messages=[self._plain(message) for message in messages], now=now) for messages in chats]
        num_done = 0
        is_second_try = False
        with self._lock:
            while num_done < len(prompts):
                num_before = num_done
                for answer in self._ask(prompts[num_done:], is_second_try):
                    num_done += 1
                    yield answer
                is_second_try = num_done == num_before

    def _ask(self, prompts: Sequence[Prompt], is_second_try: bool) -> Generator[str | ChatTemplateError]:
        """For the first of the prompts, up to one that the process did not outlive."""
        process = self._running_process()
        num_good = 0
        try:
            for kind, text in process.ask(prompts):
                num_good += kind is not Answer.OUT_OF_MEMORY
                yield self._understand(kind, text)
                if kind is Answer.OUT_OF_MEMORY:
                    return
        except _EndedError as error:
            # Others end processes as well: only who ends two of them is to blame.
            if error.status == -signal.SIGPROF or is_second_try:
                yield self._explain(error)
        finally:
            if num_good < len(prompts):  # it is gone, its memory is full, or nobody heard all that it had to say
                self._drop_process()

    def _understand(self, kind: Answer, text: str) -> str | ChatTemplateError:
        limits = self._limits
        match kind:
            case Answer.TEXT:
                return text
            case Answer.REFUSED:
                return ChatTemplateError(f"The model's chat template refuses these messages: {text}")
            case Answer.FAILED:
                return ChatTemplateError(f"The model's chat template can't render these messages ({text}).")
            case Answer.TOO_LONG:
                return ChatTemplateLimitError(f"The chat template writes more than {limits.chars} characters.")
            case Answer.OUT_OF_MEMORY:
                return ChatTemplateLimitError(f"The chat template needs more than {limits.bytes} bytes of memory.")

    def _explain(self, ended: _EndedError) -> ChatTemplateError:
        if ended.status in (-signal.SIGPROF, None):
            message = f"The chat template takes longer than {self._limits.seconds:g} s of processor time."
        else:
            message = f"The chat template broke the process that ran it, which ended with status {ended.status}."
        return ChatTemplateLimitError(message)

    def _running_process(self) -> _Process:
        if self._process is None or self._process.has_ended:
            self._drop_process()
            self._process = _Process(self._opening, patience=_WALL_FACTOR * self._limits.seconds)
            self._close = weakref.finalize(self, self._process.close)
        return self._process

    def _drop_process(self) -> None:
        if self._close is not None:
            self._close()
        self._process = self._close = None

    def _plain(self, message: dict[str, Any]) -> dict[str, Any]:
        if None in message.values():
            message = {key: value for key, value in message.items() if value is not None}
        # `developer` is OpenAI's newer name of `system`; few templates have heard of it.
        if message.get("role") == "developer" and not self._knows_developers:
            return {**message, "role": "system"}
        return message


class _EndedError(Exception):
    """The process has ended in the middle of a prompt."""

    def __init__(self, status: int | None) -> None:
        """None: it did not answer in time. Below 0: the signal that ended it."""
        self.status = status


class _Process:
    """Parent's end of a `template_process`."""

    def __init__(self, opening: Opening, patience: float) -> None:
        """`patience` is in seconds, for each piece of an answer. Raises OSError."""
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-P", str(_PROGRAM)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # a crash of it could tell of a prompt
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    start_new_session=True,  # Ctrl-C is for us: it ends when our end of the socket is closed
                )
            except OSError:
                self._socket.close()
                raise
        self._socket.settimeout(patience)
        self._pending = b""
        with contextlib.suppress(OSError):  # if it is gone already, the first prompt will say so
            self._send(opening)

    @property
    def has_ended(self) -> bool:
        return self._child.poll() is not None

    def ask(self, prompts: Sequence[Prompt]) -> Iterator[tuple[Answer, str]]:
        """The answer to each. Raises _EndedError."""
        try:
            self._send(prompts)
            for _ in prompts:
                answer = self._receive()
                yield Answer(answer[:1].decode()), answer[1:].decode()
        except TimeoutError:
            raise _EndedError(None) from None
        except (OSError, EOFError):
            self._child.kill()  # which changes nothing for a process that has ended
            raise _EndedError(self._child.wait()) from None

    def close(self) -> None:
        """It ends by itself unless it is busy or stopped, and nobody waits for what it does."""
        self._socket.close()
        self._child.kill()
        self._child.wait()

    def _send(self, content: Opening | Sequence[Prompt]) -> None:
        data = json.dumps(content).encode()
        self._socket.sendall(len(data).to_bytes(LENGTH_BYTES, "big") + data)

    def _receive(self) -> bytes:
        while (end := frame_end(self._pending)) is None or end > len(self._pending):
            piece = self._socket.recv(max(READ_BYTES, (end or 0) - len(self._pending)))
            if not piece:
                raise EOFError
            self._pending += piece
        frame, self._pending = self._pending[LENGTH_BYTES:end], self._pending[end:]
        return frame


@cache
def _reader() -> Environment:
    return make_environment()


def _check_syntax(source: str) -> None:
    """Raises ChatTemplateError. Reading costs little for what is short; compiling is left to the process."""
    if len(source) > MAX_SOURCE_CHARS:
        raise ChatTemplateError(
            f"The chat template has {len(source)} characters; no more than {MAX_SOURCE_CHARS} are read."
        )
    try:
        _reader().parse(source)
    except TemplateSyntaxError as error:
        raise ChatTemplateError(f"The chat template is wrong in line {error.lineno}: {error.message}") from None
    except Exception as error:  # noqa: BLE001 - numbers with a thousand digits, nesting: what a reader did not foresee
        kind = type(error).__name__
        raise ChatTemplateError(
            f"The chat template can't be read ({kind}): it is nested too deeply, or has a number that is none."
        ) from None

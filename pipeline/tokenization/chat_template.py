"""Chat templates: messages to the text of a prompt, with the meaning that transformers gives to a template."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Never

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.errors import PipelineError

#: Longest prompt that a template may write; longer than any context, so only a template that runs away reaches it.
MAX_RENDERED_CHARS = 32 * 1024**2
#: Longest time for one prompt. Looked at between the pieces of text that a template writes.
MAX_RENDER_SECONDS = 10.0
#: Of a message that a template raises; it is the template's text, but may quote a role or a field.
_MAX_REASON_CHARS = 200


class ChatTemplateError(PipelineError):
    """The chat template can't render these messages."""


class _RaisedByTemplate(jinja2.TemplateError):
    """The template called `raise_exception`."""


class ChatTemplate:
    """A compiled template. Templates and messages are both foreign: they run in a sandbox that can change nothing.

    Thread-safe.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`special_tokens` become variables: `bos_token`, `eos_token` and so on.

        Raises ChatTemplateError where `source` is no template.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(f"The chat template is wrong in line {error.lineno}: {error.message}") from None
        self._special_tokens = dict(special_tokens)
        self._knows_developers = "developer" in source

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """The prompt up to where the assistant begins. Keys without a value are left out, as transformers does.

        Raises ChatTemplateError, with the template's own reason where it gives one.
        """
        try:
            return self._render([self._plain(message) for message in messages])
        except ChatTemplateError:
            raise
        except _RaisedByTemplate as error:
            reason = str(error)[:_MAX_REASON_CHARS]
            raise ChatTemplateError(f"The model's chat template refuses these messages: {reason}") from None
        # What foreign code raises can be anything; its text may hold parts of a prompt, so only its kind is shown.
        except Exception as error:  # noqa: BLE001
            kind = type(error).__name__
            raise ChatTemplateError(f"The model's chat template can't render these messages ({kind}).") from None

    def _render(self, messages: list[dict[str, Any]]) -> str:
        written = io.StringIO()
        num_chars = 0
        deadline = time.monotonic() + MAX_RENDER_SECONDS
        for piece in self._template.generate(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
        ):
            num_chars += len(piece)
            if num_chars > MAX_RENDERED_CHARS:
                raise ChatTemplateError(f"The chat template writes more than {MAX_RENDERED_CHARS} characters.")
            if time.monotonic() > deadline:
                raise ChatTemplateError(f"The chat template takes longer than {MAX_RENDER_SECONDS:g} s.")
            written.write(piece)
        return written.getvalue()

    def _plain(self, message: dict[str, Any]) -> dict[str, Any]:
        if None in message.values():
            message = {key: value for key, value in message.items() if value is not None}
        # `developer` is OpenAI's newer name of `system`; few templates have heard of it.
        if message.get("role") == "developer" and not self._knows_developers:
            return {**message, "role": "system"}
        return message


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
    raise _RaisedByTemplate(message)

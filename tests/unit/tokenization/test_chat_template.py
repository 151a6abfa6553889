from __future__ import annotations

from datetime import UTC, datetime

import pytest

import pipeline.tokenization.chat_template
from pipeline.tokenization.chat_template import ChatTemplate, ChatTemplateError

USER = {"role": "user", "content": "hi"}


def render(source: str, *messages: dict[str, object]) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages or (USER,))


def test_special_tokens_are_variables() -> None:
    assert render("{{ bos_token }}{{ eos_token }}{{ messages[0].content }}") == "<s>hi"


def test_the_reason_of_a_template_reaches_the_user() -> None:
    with pytest.raises(ChatTemplateError, match=r"refuses these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_a_long_reason_is_cut() -> None:
    with pytest.raises(ChatTemplateError) as caught:
        render("{{ raise_exception('x' * 100000) }}")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].missing.deeper }}",
        "{{ 1 // 0 }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% include 'etc/passwd' %}",
    ],
)
def test_a_template_that_fails_or_breaks_out_is_an_error_without_any_prompt_in_it(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="can't render these messages") as caught:
        render(source, {"role": "user", "content": "secret"})
    assert "secret" not in str(caught.value)


def test_a_template_that_writes_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.tokenization.chat_template, "MAX_RENDERED_CHARS", 1000)
    with pytest.raises(ChatTemplateError, match="more than 1000 characters"):
        render("{% for i in range(9999) %}x{% endfor %}")


def test_a_template_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.tokenization.chat_template, "MAX_RENDER_SECONDS", -1.0)
    with pytest.raises(ChatTemplateError, match="takes longer than"):
        render("{{ bos_token }}")


def test_a_developer_is_a_system_where_the_template_knows_no_developers() -> None:
    developer: dict[str, object] = {"role": "developer", "content": "x"}
    assert render("{{ messages[0].role }}", developer) == "system"
    assert render("{{ messages[0].role }}{# developer #}", developer) == "developer"


def test_the_clock_is_passed_in() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, now=lambda: datetime(2026, 5, 3, tzinfo=UTC))
    assert template.render([USER]) == "03 May 2026"


def test_a_template_that_is_none_is_refused_with_its_line() -> None:
    with pytest.raises(ChatTemplateError, match="wrong in line 2"):
        ChatTemplate("\n{% endfor %}", {})

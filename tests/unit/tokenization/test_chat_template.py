from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipeline.tokenization.chat_template import (
    ChatTemplate,
    ChatTemplateError,
    ChatTemplateLimitError,
    RenderLimits,
)

USER = {"role": "user", "content": "hi"}


def render(source: str, *messages: dict[str, object], limits: RenderLimits | None = None) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}, limits=limits).render(messages or (USER,))


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
        "{{ messages[0] | map(attribute='__class__') | list | first | length + '' }}",
        "{{ cycler.__init__.__globals__.os.environ }}",
        "{{ self.__init__.__globals__ }}",
        "{% import 'os' as os %}",
        "{{ '\\ud800' }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_template_that_fails_or_breaks_out_is_an_error_without_any_prompt_in_it(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="can't render these messages") as caught:
        render(source, {"role": "user", "content": "secret"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["{{ '{0.__class__}'.format(messages) }}", "{{ messages | attr('__class__') }}", "{{ ''.__class__ }}"]
)
def test_what_lies_behind_a_value_is_not_there(source: str) -> None:
    assert render(source) == ""


def test_a_template_that_writes_without_end_is_stopped() -> None:
    with pytest.raises(ChatTemplateLimitError, match="more than 1000 characters"):
        render("{% for i in range(9999) %}x{% endfor %}", limits=RenderLimits(chars=1000))


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

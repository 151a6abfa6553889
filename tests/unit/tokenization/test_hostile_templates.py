"""Templates that want all of the processor or of the memory get a process of their own to waste, for a moment."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.tokenization.chat_template import (
    MAX_SOURCE_CHARS,
    ChatTemplate,
    ChatTemplateError,
    ChatTemplateLimitError,
    RenderLimits,
)

LIMITS = RenderLimits(seconds=0.2, chars=100_000, bytes=512 * 1024**2)
MESSAGES = [{"role": "user", "content": "hi"}]
#: Far more than the limits say, for a machine that is busy.
PATIENCE_SECONDS = 30.0
REFUSALS = r"takes longer|needs more|writes more|broke the process|can't render"


def children() -> list[psutil.Process]:
    """Processes that render, of this one, for templates that are still there."""
    gc.collect()
    return [child for child in psutil.Process().children() if "template_process" in " ".join(_arguments(child))]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% set k = i * j %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(90) }}",
        "{% for a in [[[]]] recursive %}{% for b in range(99999) %}{{ loop([a]) }}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 10) }}",
        "{% set n = 10 ** 9 %}{{ (n ** n) % 7 }}",
        "{{ range(99999) | map('string') | map('length') | sum ~ (3 ** 99999999) }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"
        "{% endfor %}{{ ns.x | length }}",
        "{{ 'x' * 10 ** 11 }}",
        "{{ [0] * 10 ** 11 }}",
        "{{ '%99999999999d' % 1 }}",
        "{{ '{:>99999999999}'.format(1) }}",
        "{{ 'x' | center(99999999999) }}",
        "{{ 'x'.ljust(99999999999) }}",
        "{{ ('x' * 99999).replace('', 'x' * 99999) }}",
        "{{ messages | tojson(indent=99999999999) }}",
        "{{ lipsum(n=99999999) }}",
        "{{ 'x' * 200000 }}",
    ],
)
def test_a_template_that_wants_too_much_is_stopped(source: str) -> None:
    began = time.monotonic()
    with pytest.raises(ChatTemplateError, match=REFUSALS):
        ChatTemplate(source, {}, limits=LIMITS).render(MESSAGES)
    assert time.monotonic() - began < PATIENCE_SECONDS


@pytest.mark.parametrize(
    "source", ["{{ 1 + " + "(" * 50_000, "{{ " + "[" * 3000 + "]" * 3000 + " }}", "{{ 9" + "9" * 5000 + " }}"]
)
def test_a_template_that_can_not_be_read_is_refused_at_once(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(source, {}).render(MESSAGES)


def test_a_template_longer_than_any_real_one_is_refused() -> None:
    with pytest.raises(ChatTemplateError, match=f"has {MAX_SOURCE_CHARS + 1} characters"):
        ChatTemplate("x" * (MAX_SOURCE_CHARS + 1), {})


def test_the_next_prompt_is_rendered_as_if_nothing_had_been() -> None:
    source = "{% if messages[0].content == 'bad' %}{{ 3 ** (10 ** 9 + messages | length) }}{% endif %}fine"
    template = ChatTemplate(source, {}, limits=LIMITS)
    for _ in range(2):
        assert template.render(MESSAGES) == "fine"
        with pytest.raises(ChatTemplateLimitError):
            template.render([{"role": "user", "content": "bad"}])
    assert template.render(MESSAGES) == "fine"


def test_of_many_prompts_those_that_are_too_much_alone_fail() -> None:
    source = (
        "{% if messages[0].content == 'slow' %}{{ 3 ** (10 ** 9 + messages | length) }}{% endif %}"
        "{% if messages[0].content == 'large' %}{{ 'x' * 10 ** 11 }}{% endif %}"
        "{% if messages[0].content == 'long' %}{{ 'x' * 200000 }}{% endif %}"
        "{{ messages[0].content }}"
    )
    said = ["a", "slow", "b", "large", "long", "c", "slow"]
    chats = [[{"role": "user", "content": text}] for text in said]
    rendered = list(ChatTemplate(source, {}, limits=LIMITS).render_many(chats))
    assert [text if isinstance(text, str) else "too much" for text in rendered] == [
        "a", "too much", "b", "too much", "too much", "c", "too much"
    ]  # fmt: skip
    assert all(isinstance(text, str | ChatTemplateLimitError) for text in rendered)


def test_whoever_stops_listening_leaves_nothing_for_the_next() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    chats = [[{"role": "user", "content": str(number)}] for number in range(100)]
    heard = template.render_many(chats)
    assert next(heard) == "0"
    heard.close()
    assert template.render(MESSAGES) == "hi"


def test_a_process_that_was_killed_is_replaced() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert template.render(MESSAGES) == "hi"
    (child,) = children()
    child.kill()
    child.wait()
    assert template.render(MESSAGES) == "hi"


def test_a_prompt_whose_process_was_killed_by_others_is_rendered_by_the_next() -> None:
    source = "{% for i in range(99999) %}{% for j in range(50) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
    template = ChatTemplate(source, {})
    killed: list[int] = []

    def kill() -> None:
        limit = time.monotonic() + PATIENCE_SECONDS
        while not killed and time.monotonic() < limit:
            for child in children():
                if child.cpu_times().user > 0.05:  # it is at work
                    child.kill()
                    killed.append(child.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    assert [template.render(MESSAGES) for _ in range(3)] == ["hi"] * 3
    killer.join()
    assert killed


def test_a_process_that_is_stopped_is_given_up() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, limits=RenderLimits(seconds=0.1))
    assert template.render(MESSAGES) == "hi"
    (child,) = children()
    os.kill(child.pid, signal.SIGSTOP)
    assert template.render(MESSAGES) == "hi"
    assert not child.is_running()


def test_no_process_is_there_before_the_first_prompt_or_after_the_last() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert children() == []
    template.render(MESSAGES)
    assert len(children()) == 1
    del template
    assert children() == []


def test_the_process_sees_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RYZANSTEIN_DATABASE_URL", "postgresql://secret")
    template = ChatTemplate("x", {})
    template.render(MESSAGES)
    (child,) = children()
    assert b"secret" not in Path(f"/proc/{child.pid}/environ").read_bytes()


def test_threads_share_a_template() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    wrong: list[str] = []

    def ask(number: int) -> None:
        for turn in range(50):
            said = f"{number}-{turn}"
            if template.render([{"role": "user", "content": said}]) != said:
                wrong.append(said)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_long_messages_go_through(tmp_path: Path) -> None:
    text = "é🙂" * 500_000
    assert ChatTemplate("{{ messages[0].content }}", {}).render([{"role": "user", "content": text}]) == text

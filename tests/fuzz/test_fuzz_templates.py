"""Chat templates made of everything that a template can do, much of it too much: text or an error of ours, in time."""

from __future__ import annotations

import time

from budget import Budget
from hypothesis import strategies as st

from pipeline.tokenization.chat_template import ChatTemplate, ChatTemplateError, RenderLimits

LIMITS = RenderLimits(seconds=0.3, chars=100_000, bytes=512 * 1024**2)
#: Far more than the limits say, for a machine that is busy.
PATIENCE_SECONDS = 30.0
MESSAGES = [{"role": "user", "content": "secret-of-a-tenant"}, {"role": "assistant", "content": "{{ 1 }}", "name": "x"}]

ATOMS = st.sampled_from(
    [
        "1", "0", "-1", "10**9", "10**9**9", "'x'", "''", "'\\ud800'", "'%99999999d'", "'{:>99999999}'", "[]", "{}",
        "none", "true", "messages", "messages[0].content", "bos_token", "self", "loop", "namespace", "cycler", "joiner",
        "lipsum", "range", "dict", "raise_exception", "strftime_now", "range(99999)", "missing",
    ]
)  # fmt: skip
ATTRIBUTES = st.sampled_from(
    [
        "__class__", "__mro__", "__subclasses__", "__globals__", "__init__", "__dict__", "format", "format_map",
        "join", "replace", "split", "items", "append", "upper", "center", "encode", "mro", "gi_frame", "_context", "x",
    ]
)  # fmt: skip
FILTERS = st.sampled_from(
    [
        "tojson", "tojson(indent=99999999)", "list", "length", "join('x')", "trim", "upper", "sort", "reverse", "sum",
        "unique", "map('upper')", "map(attribute='__class__')", "selectattr('role')", "center(99999999)", "indent(99)",
        "replace('', 'xxxxxxxxxx')", "batch(3)", "batch(99999999, 1)", "wordwrap(1)", "urlize", "xmlattr", "pprint",
        "format(1)", "attr('__class__')", "string", "int", "default('d')", "random", "striptags", "truncate(3)",
        "dictsort", "items", "groupby('role')", "first", "last", "round(99)", "filesizeformat", "escape", "nothing",
    ]
)  # fmt: skip


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operator = st.sampled_from(["+", "*", "**", "%", "~", "/", "//", "-", "in", "and", "==", "<"])
    return (
        st.tuples(inner, operator, inner).map(lambda parts: f"({' '.join(parts)})")
        | st.tuples(inner, FILTERS).map(lambda parts: f"({parts[0]} | {parts[1]})")
        | st.tuples(inner, ATTRIBUTES).map(".".join)
        | st.tuples(inner, inner).map(lambda parts: f"{parts[0]}[{parts[1]}]")
        | st.tuples(inner, inner).map(lambda parts: f"{parts[0]}({parts[1]})")
        | inner.map(lambda value: f"({value} if messages else {value})")
    )


EXPRESSIONS = st.recursive(ATOMS, _larger, max_leaves=6)
NAMES = st.sampled_from(["a", "b", "messages", "loop", "range"])


def _longer(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return (
        st.tuples(NAMES, EXPRESSIONS, inner).map(lambda p: f"{{% for {p[0]} in {p[1]} %}}{p[2]}{{% endfor %}}")
        | st.tuples(EXPRESSIONS, inner).map(
            lambda p: f"{{% for c in {p[0]} recursive %}}{p[1]}{{{{ loop(c) }}}}{{% endfor %}}"
        )
        | st.tuples(NAMES, inner).map(lambda p: f"{{% macro {p[0]}(x) %}}{p[1]}{{{{ {p[0]}(x) }}}}{{% endmacro %}}")
        | st.tuples(NAMES, inner).map(lambda p: f"{{% set {p[0]} %}}{p[1]}{p[1]}{{% endset %}}{{{{ {p[0]} }}}}")
        | st.tuples(EXPRESSIONS, inner).map(lambda p: f"{{% if {p[0]} %}}{p[1]}{{% endif %}}")
        | inner.map(lambda text: f"{{% generation %}}{text}{{% endgeneration %}}")
        | st.tuples(inner, inner).map("".join)
    )


STATEMENTS = st.recursive(
    EXPRESSIONS.map(lambda value: f"{{{{ {value} }}}}")
    | st.tuples(NAMES, EXPRESSIONS).map(lambda p: f"{{% set {p[0]} = {p[1]} %}}")
    | st.sampled_from(
        [
            "{% break %}",
            "{% include 'x' %}",
            "{% import 'os' as os %}",
            "{% extends messages %}",
            "{{",
            "{% raw %}",
            "é",
        ]
    ),
    _longer,
    max_leaves=5,
)


def test_any_template_gives_text_or_an_error_of_ours_in_time(budget: Budget) -> None:
    def one(source: str) -> None:
        began = time.monotonic()
        text = refusal = ""
        try:
            text = ChatTemplate(source, {"bos_token": "<s>"}, limits=LIMITS).render(MESSAGES)
        except ChatTemplateError as error:
            refusal = str(error)
        assert len(text) <= LIMITS.chars
        text.encode()
        assert len(refusal.encode()) < 1000
        # What a template gives as its reason may quote; what we say does not.
        assert "secret-of-a-tenant" not in refusal or "refuses these messages" in refusal
        assert time.monotonic() - began < PATIENCE_SECONDS

    budget.run(one, source=STATEMENTS)

"""Renders the settings as `docs/settings.md`: `python -m pipeline.settings_docs > docs/settings.md`."""

from __future__ import annotations

import sys
import types
from decimal import Decimal
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from pipeline.settings import PREFIX, Settings

_INTRODUCTION = """\
# Settings

Every process reads its settings once, at its start, from the environment. A variable that begins with `{prefix}` and
is not in this table is an error, so that a misspelt one is not taken for its default. `ryzanstein up` sets those that
say where things are for the processes that it starts; all others can be set for it too.

| variable | type | default | meaning |
| --- | --- | --- | --- |
"""
_TYPES: dict[Any, str] = {
    str: "text",
    bool: "`true` or `false`",
    int: "whole number",
    float: "number",
    Decimal: "decimal",
    SecretStr: "secret",
    Path: "path",
}
_BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


def render() -> str:
    """The page, generated from the class, so that it can't be out of date."""
    rows = [_row(name, field) for name, field in Settings.model_fields.items()]
    return _INTRODUCTION.format(prefix=PREFIX) + "\n".join(rows) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    cells = (f"`{PREFIX}{name.upper()}`", _type(field), _default(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(field: FieldInfo) -> str:
    kind: Any = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(choice for choice in get_args(kind) if choice is not type(None))
    return " ".join([_TYPES[kind], *_limits(field)])


def _limits(field: FieldInfo) -> list[str]:
    limits = []
    for limit in field.metadata:
        for bound, (attribute, sign) in _BOUNDS.items():
            if isinstance(limit, bound):
                limits.append(f"{sign} {getattr(limit, attribute)}")
        if pattern := getattr(limit, "pattern", None):
            limits.append(f"`{pattern}`")
    return limits


def _default(field: FieldInfo) -> str:
    default: Any = field.default
    if default is None:
        return "none"
    if isinstance(default, SecretStr):  # the defaults are addresses without a password
        default = default.get_secret_value()
    return f"`{default}`"


if __name__ == "__main__":
    sys.stdout.write(render())

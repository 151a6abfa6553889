"""What we add to Flower's pages: results that can be read, and a link from a task to its batch in the console.

Flower's own templates stay as they are; one of ours extends one of theirs and fills a block of it.
"""

from __future__ import annotations

import ast
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import flower
from tornado.template import BaseLoader, Template
from tornado.web import RequestHandler

from pipeline.settings import get_settings

_OURS: Final = Path(__file__).parent / "flower_templates"
_THEIRS: Final = Path(flower.__file__).parent / "templates"
#: In front of the name of a template of Flower's that one of ours extends.
_PREFIX: Final = "flower/"

_BATCH: Final = re.compile(r"batch_[0-9A-Za-z]+")


class TemplateLoader(BaseLoader):
    """Our templates first, then Flower's; `flower/NAME` is Flower's in any case."""

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        return name

    def _create_template(self, name: str) -> Template:
        folder = _THEIRS if name.startswith(_PREFIX) or not (_OURS / name).exists() else _OURS
        source = folder / name.removeprefix(_PREFIX)
        return Template(source.read_bytes(), name=name, loader=self)


def batch_in_console(_: RequestHandler, task: Any) -> dict[str, str] | None:
    """Id and address of the batch that a task names, in its arguments or its result; None where there is none."""
    console = get_settings().console_url.rstrip("/")
    found = _BATCH.search(f"{task.args} {getattr(task, 'result', None)}")
    if not console or found is None:
        return None
    return {"id": found[0], "url": f"{console}/batches/{found[0]}"}


def format_task(task: Any) -> Any:
    """A task as its pages show it: what our tasks return as `name=value`, and no parentheses around no arguments."""
    with suppress(ValueError, SyntaxError, TypeError):  # it has not ended, or is none of ours
        returned = ast.literal_eval(task.result)
        if isinstance(returned, dict):
            task.result = " ".join(f"{name}={value}" for name, value in returned.items())
    if task.args == "()":
        task.args = ""
    return task

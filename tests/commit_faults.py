"""Errors before and after commits: every place that commits is known, and each can be made to fail.

The connection to PostgreSQL really is closed, either with the transaction open or right after it was committed; or
PostgreSQL's refusal is played, which rolls back and keeps the connection. What calls it can't tell the first two apart.
"""

from __future__ import annotations

import ast
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
from sqlalchemy import Engine

import pipeline
import workers

_ROOTS = tuple(Path(str(package.__file__)).parent for package in (pipeline, workers))
#: What begins and commits a transaction on behalf of whoever calls it.
_PLUMBING = {"pipeline/tables/session.py:transaction", "pipeline/tables/session.py:connection"}
_PLUMBING |= {"workers/recorder.py:Recorder._in_transaction"}
_OPENERS = {"transaction", "connection", "begin", "_in_transaction"}


class Moment(StrEnum):
    BEFORE = "before"  #: The connection breaks, and the transaction with it.
    AFTER = "after"  #: It is committed, and the connection breaks before anybody hears of it.
    REFUSED = "refused"  #: Rolled back, as after a deadlock or a serialization failure.


class CommitFaults:
    """Sees every commit of an engine that writes, and breaks those that it is told to.

    `choose` is asked with the site of the commit and how often that site has committed before.
    """

    def __init__(self, choose: Callable[[str, int], Moment | None]) -> None:
        self._choose = choose
        self._lock = threading.Lock()
        #: Every site that has committed, whether or not it wrote anything.
        self.seen: set[str] = set()
        #: Commits of each site that wrote something.
        self.written: Counter[str] = Counter()
        self.broken: list[tuple[str, Moment]] = []

    @contextmanager
    def of(self, engine: Engine) -> Iterator[CommitFaults]:
        dialect = engine.dialect
        commit = dialect.do_commit

        def do_commit(connection: Any) -> None:
            moment = self._moment(connection.driver_connection)
            if moment is None:
                commit(connection)
                return
            if moment is Moment.AFTER:
                commit(connection)
            if moment is Moment.REFUSED:
                connection.driver_connection.rollback()
                raise psycopg.errors.SerializationFailure("a fault: rolled back, as if another had been in the way")
            connection.driver_connection.close()
            raise psycopg.OperationalError(f"a fault: the connection broke {moment} the commit")

        dialect.do_commit = do_commit  # type: ignore[method-assign]
        try:
            yield self
        finally:
            dialect.do_commit = commit  # type: ignore[method-assign]

    def _moment(self, connection: psycopg.Connection[Any]) -> Moment | None:
        site = _site(sys._getframe(2))
        if site is None:
            return None  # the test itself
        row = connection.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL").fetchone()
        with self._lock:
            self.seen.add(site)
            if row is None or not row[0]:
                return None
            number = self.written[site]
            self.written[site] += 1
            moment = self._choose(site, number)
            if moment is not None:
                self.broken.append((site, moment))
            return moment


def _site(frame: FrameType | None) -> str | None:
    """The function of the service that commits, as `FILE:NAME`."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        root = next((root for root in _ROOTS if path.is_relative_to(root)), None)
        if root is not None:
            # A generator that is a context manager, or a function in a function, counts as the one around it.
            name = frame.f_code.co_qualname.split(".<locals>")[0]
            if (site := f"{path.relative_to(root.parent)}:{name}") not in _PLUMBING:
                return site
        frame = frame.f_back
    return None


def committing_functions(*places: str) -> set[str]:
    """Every function below these folders, or in these files, that opens a transaction, by reading the source."""
    found = set()
    for place in places:
        whole = _ROOTS[0].parent / place
        for path in [whole] if whole.is_file() else sorted(whole.rglob("*.py")):
            for name, node in _functions(ast.parse(path.read_text())):
                if any(_opens_transaction(inner) for inner in ast.walk(node)):
                    found.add(f"{path.relative_to(_ROOTS[0].parent)}:{name}")
    return found - _PLUMBING


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Functions and methods with their qualified names; those inside another belong to it."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{inner.name}", inner
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node


def _opens_transaction(node: ast.AST) -> bool:
    if isinstance(node, ast.With | ast.AsyncWith):
        return any(_is_opener(item.context_expr) for item in node.items)
    return isinstance(node, ast.Call) and _called(node) == "_in_transaction"


def _is_opener(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and _called(node) in _OPENERS


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")

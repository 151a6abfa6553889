"""Quotes that are computed while a test runs, as control does it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.jobs.quoting import compute_waiting


@contextmanager
def computing_quotes() -> Iterator[None]:
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(0.02):
            compute_waiting()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()

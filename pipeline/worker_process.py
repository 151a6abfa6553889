"""The life of a process that is one Celery worker."""

from __future__ import annotations

import signal
import sys
from typing import Any, Final, NoReturn

#: Those that ask a worker to end.
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def run_worker(worker: Any) -> NoReturn:
    """Work until a signal or an error ends this Celery worker, and then the process with its exit code."""
    worker.start()
    # Python takes its handlers away before it is gone; a signal that came then would kill it, and be its exit status.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(worker.exitcode)

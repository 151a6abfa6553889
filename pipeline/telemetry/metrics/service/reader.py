"""Reads sections of metrics when somebody asks, seldom enough that asking never hurts, and in a thread of its own.

Whoever asks waits a second at most and gets what is known: a server that hangs makes metrics absent, and no scrape
late.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import structlog

from pipeline.telemetry.logs import summarize_error
from pipeline.telemetry.metrics.metric import Metric

log = structlog.get_logger(__name__)

#: Values of a metric with those of its labels.
Samples = Sequence[tuple[Sequence[str], float]]
Values = Mapping[Metric, Samples]

Source = TypeVar("Source")

#: Longest that whoever asks is kept waiting, in seconds.
WAIT_SECONDS: Final = 1.0
#: Without a section's end for so long, the source hangs, in seconds.
HANG_SECONDS: Final = 4.0
#: A section is read at most for this part of the time.
_SHARE: Final = 0.05
#: What was read longer ago than this many times its age says nothing about now; nor what is older than so many seconds.
_STALE_AGES: Final = 3
_LEAST_STALE_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Section(Generic[Source]):
    """Metrics that are read together."""

    name: str
    read: Callable[[Source], Values]
    #: Read again when it is so old, in seconds; later if reading it takes long.
    age_seconds: float


@dataclass
class _Read:
    values: Values = field(default_factory=dict)
    is_up: bool = False
    seconds: float = 0.0
    at: float = float("-inf")


@dataclass(frozen=True)
class Answer:
    """What a reader knows."""

    #: Whether the source answers.
    is_up: bool
    values: Sequence[Values]
    #: Of each section: whether it could be read, and how long that took, in seconds.
    sections: Mapping[str, tuple[bool, float]]


class Reader(Generic[Source]):
    """`use` calls its argument with a source to read from, or raises; each section has a call of its own."""

    def __init__(
        self,
        name: str,
        sections: Iterable[Section[Source]],
        use: Callable[[Callable[[Source], Values]], Values],
        errors: tuple[type[Exception], ...],
        check: Callable[[Source], Values],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`check` is read before all others, every time: whether the source answers at all."""
        self._name = name
        self._sections = list(sections)
        self._use = use
        self._errors = errors
        self._check = check
        self._clock = clock
        self._lock = threading.Lock()
        self._read = {section.name: _Read() for section in self._sections}
        #: Whether the check of this round has passed; None while it has not ended.
        self._is_up: bool | None = None
        self._moved_at = 0.0
        self._thread: threading.Thread | None = None
        #: What failed the last time it was tried, and was logged.
        self._failing: set[str] = set()

    def ask(self) -> Callable[[float], Answer]:
        """Begin a round of reading what is due, unless one is under way.

        Returns what waits for its end, so many seconds at most, and gives what is known then.
        """
        with self._lock:
            thread = self._thread
            if thread is None or not thread.is_alive():
                self._is_up, self._moved_at = None, self._clock()
                thread = self._thread = threading.Thread(target=self._run, name=f"metrics-{self._name}", daemon=True)
                thread.start()
        return lambda timeout: self._answer(thread, timeout)

    def _answer(self, thread: threading.Thread, timeout: float) -> Answer:
        thread.join(max(0.0, timeout))
        with self._lock:
            now = self._clock()
            # What neither ends nor fails hangs: statements have a limit of their own, which is shorter.
            if not self._is_up or (thread.is_alive() and now - self._moved_at > HANG_SECONDS):
                return Answer(False, [], {name: (False, read.seconds) for name, read in self._read.items()})
            known = {
                section.name: read.values
                for section in self._sections
                if (read := self._read[section.name]).is_up and now - read.at <= _longest_age(section, read)
            }
            told = {name: (name in known, read.seconds) for name, read in self._read.items()}
            return Answer(True, list(known.values()), told)

    def _run(self) -> None:
        """One round."""
        is_up = self._try("check", self._check) is not None
        with self._lock:
            self._is_up, self._moved_at = is_up, self._clock()
        for section in self._sections if is_up else ():
            self._refresh(section)

    def _refresh(self, section: Section[Source]) -> None:
        before, began = self._read[section.name], self._clock()
        # What failed is tried again soon, but not what took long to fail.
        rest = max(section.age_seconds if before.is_up else 0.0, before.seconds / _SHARE)
        if began - before.at < rest:
            return
        values = self._try(section.name, section.read)
        now = self._clock()
        with self._lock:
            self._read[section.name] = _Read(values or {}, values is not None, now - began, now)
            self._moved_at = now

    def _try(self, part: str, read: Callable[[Source], Values]) -> Values | None:
        try:
            values = self._use(read)
        except self._errors as error:
            if part not in self._failing:
                log.warning("metrics can't be read", source=self._name, part=part, reason=summarize_error(error))
        except Exception as error:
            if part not in self._failing:
                log.error("metrics can't be read", source=self._name, part=part, exc_info=error)
        else:
            self._failing.discard(part)
            return values
        self._failing.add(part)
        return None


def _longest_age(section: Section[Source], read: _Read) -> float:
    return max(_LEAST_STALE_SECONDS, _STALE_AGES * max(section.age_seconds, read.seconds / _SHARE))

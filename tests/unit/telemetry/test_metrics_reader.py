from __future__ import annotations

import threading
from collections.abc import Callable

from pipeline.telemetry.metrics.control_names import OUTBOX_AGE
from pipeline.telemetry.metrics.service.reader import HANG_SECONDS, Answer, Reader, Section, Values


class Source:
    """Answers with the number of times that it was read; breaks, hangs and takes time as a test wants."""

    def __init__(self) -> None:
        self.now = 0.0
        self.num_reads = 0
        self.takes = 0.0
        self.breaks = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.reader = Reader(
            "test", [Section("one", self.read, 2.0)], self.use, (OSError,), self.check, lambda: self.now
        )

    def use(self, read: Callable[[Source], Values]) -> Values:
        return read(self)

    def check(self, _: Source) -> Values:
        assert self.may_go_on.wait(20)
        return {}

    def read(self, _: Source) -> Values:
        self.now += self.takes
        if self.breaks:
            raise OSError("it broke")
        self.num_reads += 1
        return {OUTBOX_AGE: [((), float(self.num_reads))]}

    def ask(self, timeout: float = 20.0) -> Answer:
        return self.reader.ask()(timeout)


def test_what_was_just_read_is_not_read_again() -> None:
    source = Source()
    for now, num_reads in ((0.0, 1), (1.9, 1), (2.1, 2), (2.2, 2)):
        source.now = now
        assert source.ask().values == [{OUTBOX_AGE: [((), float(num_reads))]}]


def test_what_takes_long_is_read_for_a_twentieth_of_the_time() -> None:
    source = Source()
    source.takes = 3.0
    source.ask()
    source.now = 3.0 + 59
    assert source.ask().values == [{OUTBOX_AGE: [((), 1.0)]}], "it is shown until then"
    source.now = 3.0 + 61
    assert source.ask().values == [{OUTBOX_AGE: [((), 2.0)]}]


def test_what_breaks_is_absent_and_said_to_be() -> None:
    source = Source()
    source.ask()
    source.breaks, source.now = True, 5.0
    answer = source.ask()
    assert (answer.is_up, answer.values, answer.sections["one"][0]) == (True, [], False)
    source.breaks = False
    assert source.ask().sections["one"][0], "it is tried again at once"


def test_what_takes_long_to_break_is_not_tried_again_and_again() -> None:
    source = Source()
    source.breaks, source.takes = True, 2.0
    source.ask()
    source.breaks = False
    assert not source.ask().sections["one"][0]
    source.now += 41
    assert source.ask().sections["one"][0]


def test_a_source_that_hangs_is_down_and_asked_once() -> None:
    source = Source()
    assert source.ask().is_up
    source.may_go_on.clear()
    try:
        num_threads = threading.active_count()
        answers = [source.ask(timeout=0.05) for _ in range(3)]
        assert [(answer.is_up, answer.values) for answer in answers] == [(False, [])] * 3
        assert threading.active_count() <= num_threads + 1
    finally:
        source.may_go_on.set()
    assert source.ask().is_up
    assert HANG_SECONDS > 2.0, "longer than a statement may take"

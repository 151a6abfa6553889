"""How long each fuzzer runs and from which seed: FUZZ_SECONDS in all, and FUZZ_SEED to repeat a run."""

from __future__ import annotations

import os
import random
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

TOTAL_SECONDS = float(os.environ.get("FUZZ_SECONDS") or 60)
#: The same in every process of a run.
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or secrets.token_hex(16)
SEED = int(os.environ.get("FUZZ_SEED") or zlib.crc32(_RUN.encode()))
#: Of the whole; each is for the file `test_fuzz_NAME.py`.
SHARES = {"lines": 0.25, "coverage": 0.2, "routes": 0.15, "bytes": 0.1, "checkpoints": 0.2, "templates": 0.1}
#: Inputs between two looks at the clock.
_ROUND = 40


class Budget:
    """The share of one fuzzer, from when it asks for its first seed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seconds = SHARES[name] * TOTAL_SECONDS
        self.num_inputs = 0
        self._began = self._ended = 0.0
        print(f"FUZZ_SEED={SEED}, {self.seconds:g} s")

    def __str__(self) -> str:
        return f"{self.name}: {self.num_inputs} inputs in {self.seconds_used:.0f} s"

    @property
    def seconds_used(self) -> float:
        return self._ended - self._began

    def seconds_used_up(self) -> None:
        """For a fuzzer that looks at the clock by itself."""
        self._ended = time.monotonic()

    def seeds(self) -> Iterator[int]:
        """A seed for each round, until the time is up; at least one."""
        rng = random.Random(f"{SEED} {self.name}")
        self._began = self._ended = time.monotonic()
        while True:
            yield rng.randrange(2**32)
            self._ended = time.monotonic()
            if self.seconds_used >= self.seconds:
                return

    def run(self, test: Callable[..., None], **strategies: SearchStrategy[Any]) -> None:
        """A test that hypothesis gives what these strategies make, in rounds.

        A failure is made as small as it gets, and shown with what the test is given.
        """
        # Nothing is kept between runs: the seed alone says what is tried.
        quick = settings(
            max_examples=_ROUND,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        for number in self.seeds():
            seed(number)(quick(given(**strategies)(test)))()
            self.num_inputs += _ROUND

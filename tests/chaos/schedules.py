"""Seeded schedules: the same seed gives the same faults at the same moments of a batch's progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from faults import Fault


@dataclass(frozen=True, kw_only=True)
class Event:
    """A fault at a moment."""

    fault: Fault
    #: Begins when so many requests have an outcome; 0 is before the batches are submitted.
    after: int
    #: How long it lasts, of a fault that has to be healed.
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    seed: int
    num_requests: int
    #: By moment.
    events: tuple[Event, ...]

    @classmethod
    def of(cls, fault: Fault, *, num_requests: int, after: int) -> Schedule:
        """One fault, lasting as long as it may."""
        event = Event(fault=fault, after=after, seconds=fault.longest)
        return cls(seed=0, num_requests=num_requests, events=(event,))

    @classmethod
    def random(cls, seed: int, faults: Sequence[Fault], *, num_requests: int, max_faults: int) -> Schedule:
        """1 to `max_faults` of `faults`, at moments of the first nine tenths of the requests."""
        if not faults:
            return cls(seed=seed, num_requests=num_requests, events=())
        rng = Random(seed)
        chosen = rng.choices(faults, [fault.weight for fault in faults], k=rng.randint(1, max_faults))
        events = [
            Event(
                fault=fault,
                after=rng.randint(0, num_requests * 9 // 10),
                seconds=round(rng.uniform(0.1, 1.0) * fault.longest, 2),
            )
            for fault in chosen
        ]
        return cls(seed=seed, num_requests=num_requests, events=tuple(sorted(events, key=lambda event: event.after)))

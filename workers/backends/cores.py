"""Which cores the ranks on a host compute on, and how their threads wait for each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

#: How often a thread that waits looks again before it sleeps; some 0.1 ms. A step of W1 with 32 rows on two idle cores:
#: 29.0 ms if threads sleep at once, 27.2 with 1,000, 22.3 with 2,000, 20.0 with 5,000, 19.8 with 10,000, 19.9 without
#: a bound. Not more than it takes: where other processes need the cores too, what is spun away is theirs, and without a
#: bound steps were seen to take ten times as long. Binding a single rank's threads, tcmalloc, glibc's thresholds and
#: Intel's OpenMP each changed these 20 ms by less than 2%, and are left out.
SPIN_COUNT = 5_000
#: Whoever sets one of these has decided how threads wait, or where they run.
_WAITING = frozenset({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})
_PLACING = frozenset({"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"})


@dataclass(frozen=True)
class Cores:
    """How the ranks of one group divide the cores that this process may run on."""

    #: Threads that each rank computes with.
    num_threads: int
    #: Every rank's own cores, one per thread; empty where ranks run wherever the system puts them.
    own: tuple[tuple[int, ...], ...]
    #: Whether each thread of every rank can have a core to itself.
    are_enough: bool

    @classmethod
    def divide(cls, num_ranks: int, cores: list[int], environment: Mapping[str, str]) -> Self:
        """`cores` by their numbers. OMP_NUM_THREADS in the environment says how many threads a rank has.

        Several ranks are pinned to their shares where these are all the cores: a rank that another one wakes would
        often find itself on the other's core. A single rank is not: it may be one of several groups on the machine,
        whose first threads would then share a core while another is idle. And where cores are left over, nobody knows
        which of them other groups take.
        """
        told = environment.get("OMP_NUM_THREADS", "")
        num_threads = int(told) if told.isdecimal() and int(told) > 0 else max(1, len(cores) // num_ranks)
        own: tuple[tuple[int, ...], ...] = ()
        if num_ranks > 1 and num_ranks * num_threads == len(cores) and not _PLACING & environment.keys():
            own = tuple(tuple(cores[rank * num_threads : (rank + 1) * num_threads]) for rank in range(num_ranks))
        return cls(num_threads=num_threads, own=own, are_enough=num_ranks * num_threads <= len(cores))

    def of_rank(self, rank: int) -> tuple[int, ...]:
        """The only ones that its threads may run on, each where the system puts it; all of them if there are none."""
        return self.own[rank] if self.own else ()

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What to add to the environment of the ranks, which OpenMP reads when it is loaded."""
        added = {"OMP_NUM_THREADS": str(self.num_threads)}
        if not _WAITING & environment.keys():
            added["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
        return added


def usable_cores() -> list[int]:
    """The numbers of those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))

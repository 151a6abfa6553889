"""What can go wrong with a running stack. Each fault is one frozen object that knows how to begin and how to end it.

A fault keeps no state: what it needs to know when it is healed it finds out again, so that faults may overlap, and a
process that was restarted meanwhile is no problem. `inject` returns whether there was anything to hit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import psutil
import psycopg
import redis
from stacks import RunningStack

from pipeline.celery import (
    BROKER_ERRORS,
    CANCEL,
    CONTROL_QUEUE,
    FINALIZE,
    GENERATE,
    PREPARE,
    PROMPT_OPTIONS,
    app,
    generate_queue,
    queue,
)

#: How long the harness itself waits for a server that may be frozen, in seconds.
_PATIENCE = 2.0
#: Connections of the stack, and not the harness's.
_OURS = "FROM pg_stat_activity WHERE application_name = 'ryzanstein'"


@dataclass(frozen=True, kw_only=True)
class Fault(ABC):
    name: str
    #: How often a random schedule picks it, beside the others.
    weight: float = 1.0
    #: Longest time that it lasts, in seconds; 0 for one that is over at once.
    longest: float = 0.0

    @abstractmethod
    def inject(self, stack: RunningStack, rng: Random) -> bool:
        """Begin; False if there was nothing to hit, because another fault was faster."""

    def heal(self, stack: RunningStack) -> None:  # noqa: B027  most faults are over at once
        """End it; called once for a fault with a `longest`."""


@dataclass(frozen=True, kw_only=True)
class Signalled(Fault):
    """A process gets a signal: SIGKILL, or one that it handles."""

    process: str
    sig: signal.Signals = signal.SIGKILL

    def inject(self, stack: RunningStack, rng: Random) -> bool:
        pid = stack.pid(self.process)
        return pid is not None and _send([pid], self.sig) > 0


@dataclass(frozen=True, kw_only=True)
class Frozen(Fault):
    """A process and its children stop, and go on later, without knowing."""

    process: str
    #: PostgreSQL works in its children; a group's ranks are processes that others watch, and have faults of their own.
    with_children: bool = False

    def inject(self, stack: RunningStack, rng: Random) -> bool:
        return _send(self._pids(stack), signal.SIGSTOP) > 0

    def heal(self, stack: RunningStack) -> None:
        _send(self._pids(stack), signal.SIGCONT)

    def _pids(self, stack: RunningStack) -> list[int]:
        pid = stack.pid(self.process)
        if pid is None:
            return []
        return [pid, *(_children(pid) if self.with_children else [])]


@dataclass(frozen=True, kw_only=True)
class RankSignalled(Fault):
    """A rank of a group dies, or hangs. The group replaces it in both cases, so there is nothing to heal."""

    group: str
    rank: int
    sig: signal.Signals

    def inject(self, stack: RunningStack, rng: Random) -> bool:
        pid = stack.status()["pids"].get(f"{self.group}.rank-{self.rank}")
        return pid is not None and _send([pid], self.sig) > 0


@dataclass(frozen=True, kw_only=True)
class RedisCommand(Fault):
    """Redis is told something that a person, a failover or a full memory would bring about."""

    begin: tuple[str, ...]
    end: tuple[str, ...] = ()

    def inject(self, stack: RunningStack, rng: Random) -> bool:
        return _ask_redis(stack, self.begin)

    def heal(self, stack: RunningStack) -> None:
        _ask_redis(stack, self.end)  # one that is being restarted forgets by itself


@dataclass(frozen=True, kw_only=True)
class BackendKilled(Fault):
    """One backend of PostgreSQL dies by SIGKILL: the server drops all connections and recovers."""

    def inject(self, stack: RunningStack, rng: Random) -> bool:
        pids = _backends(stack)
        return bool(pids) and _send([rng.choice(pids)], signal.SIGKILL) > 0


@dataclass(frozen=True, kw_only=True)
class ConnectionsCut(Fault):
    """Every connection to PostgreSQL ends, again and again, wherever its transaction is."""

    times: int

    def inject(self, stack: RunningStack, rng: Random) -> bool:
        num_cut = 0
        with contextlib.suppress(psycopg.Error), connect(stack) as conn:
            for _ in range(self.times):
                cut = conn.execute(f"SELECT count(pg_terminate_backend(pid)) {_OURS}").fetchone()
                num_cut += 0 if cut is None else cut[0]
                time.sleep(rng.uniform(0.005, 0.05))
        return num_cut > 0


@dataclass(frozen=True, kw_only=True)
class MessagesDoubled(Fault):
    """Tickets for nothing, and every message about every batch once more, whether or not it is its time."""

    num_tickets: int = 20

    def inject(self, stack: RunningStack, rng: Random) -> bool:
        with contextlib.suppress(psycopg.Error, *BROKER_ERRORS), connect(stack) as conn:
            batches = [batch_id for (batch_id,) in conn.execute("SELECT id FROM batches ORDER BY id DESC LIMIT 10")]
            messages = [(GENERATE, generate_queue("tiny"), "tiny")] * self.num_tickets
            messages += [(task, CONTROL_QUEUE, one) for one in batches for task in (PREPARE, FINALIZE, CANCEL)]
            with app.connection_for_write(stack.report["redis_url"], transport_options=PROMPT_OPTIONS) as broker:
                for task, name, argument in messages:
                    app.send_task(task, args=[argument], queue=queue(name), connection=broker, ignore_result=True)
            return True
        return False


@dataclass(frozen=True, kw_only=True)
class RowsLocked(Fault):
    """Somebody locks rows of the batches, and then their slices: the other way round than the service does."""

    def inject(self, stack: RunningStack, rng: Random) -> bool:
        num_locked = 0
        # It may be this one that has to give way.
        with contextlib.suppress(psycopg.OperationalError), connect(stack) as conn, conn.transaction():
            num_locked = len(conn.execute("SELECT id FROM batches FOR UPDATE").fetchall())
            time.sleep(rng.uniform(0.1, 0.5))
            conn.execute("SELECT FROM slices FOR UPDATE")
        return num_locked > 0


def connect(stack: RunningStack) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection of the harness's own, which no fault here looks for."""
    return psycopg.connect(
        stack.report["database_url"],
        autocommit=True,
        connect_timeout=2,
        application_name="chaos",
        client_encoding="utf8",
    )


def _backends(stack: RunningStack) -> list[int]:
    with contextlib.suppress(psycopg.Error), connect(stack) as conn:
        return [pid for (pid,) in conn.execute(f"SELECT pid {_OURS} ORDER BY pid")]
    return []


def _ask_redis(stack: RunningStack, command: tuple[str, ...]) -> bool:
    with (
        contextlib.suppress(redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError),  # by another fault
        redis.Redis.from_url(stack.report["redis_url"], socket_timeout=_PATIENCE, retry=None) as client,
    ):
        client.execute_command(*command)
        return True
    return False


def _send(pids: list[int], sig: signal.Signals) -> int:
    """Signal these processes; returns how many were there."""
    num_sent = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)
            num_sent += 1
    return num_sent


def _children(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def _killed(process: str, weight: float) -> Signalled:
    return Signalled(name=f"{process} killed", process=process, weight=weight)


def _frozen(process: str, longest: float, weight: float = 1.0, *, with_children: bool = False) -> Frozen:
    return Frozen(
        name=f"{process} frozen", process=process, longest=longest, weight=weight, with_children=with_children
    )


def stack_faults(num_groups: int = 2) -> Iterator[Fault]:
    """The faults of a stack with echo groups. A start costs a second of processor, so kills are rarer than the rest.

    Beat and the relay are a thread and a task of control: what happens to control happens to them. Frozen for longer
    than a lease (1.5 s), a group loses what it holds and finds out when it wakes.
    """
    yield _killed("gateway", 0.5)
    yield _frozen("gateway", 1.0)
    yield Signalled(name="gateway terminated", process="gateway", sig=signal.SIGTERM, weight=0.25)
    yield _killed("control", 0.4)
    yield _frozen("control", 3.0)
    yield Signalled(name="control terminated", process="control", sig=signal.SIGTERM, weight=0.2)
    for index in range(num_groups):
        group = f"group-{index}"
        yield _killed(group, 0.4)
        yield _frozen(group, 3.0, 1.5)
        yield Signalled(name=f"{group} terminated", process=group, sig=signal.SIGTERM, weight=0.2)
    yield _killed("redis", 0.8)
    yield _frozen("redis", 3.0)
    yield RedisCommand(name="redis emptied", begin=("FLUSHALL",), weight=2.0)
    yield RedisCommand(
        name="redis out of memory",
        begin=("CONFIG", "SET", "maxmemory", "1"),
        end=("CONFIG", "SET", "maxmemory", "0"),
        longest=3.0,
        weight=2.0,
    )
    yield RedisCommand(
        name="redis read-only",
        begin=("REPLICAOF", "127.0.0.1", "1"),
        end=("REPLICAOF", "NO", "ONE"),
        longest=3.0,
        weight=2.0,
    )
    yield RedisCommand(name="redis connections cut", begin=("CLIENT", "KILL", "TYPE", "normal"), weight=2.0)
    yield RedisCommand(name="redis subscriptions cut", begin=("CLIENT", "KILL", "TYPE", "pubsub"))
    yield MessagesDoubled(name="messages doubled", weight=2.0)
    yield RowsLocked(name="rows locked the wrong way round", weight=1.0)
    yield _killed("postgres", 0.5)
    yield Signalled(name="postgres stopped at once", process="postgres", sig=signal.SIGQUIT, weight=0.5)
    yield Signalled(name="postgres stopped in order", process="postgres", sig=signal.SIGINT, weight=0.5)
    yield _frozen("postgres", 3.0, with_children=True)
    yield BackendKilled(name="postgres backend killed", weight=1.0)
    yield ConnectionsCut(name="postgres connections cut", times=1, weight=2.0)
    yield ConnectionsCut(name="postgres connections cut again and again", times=20, weight=2.0)


def rank_faults(num_ranks: int) -> Iterator[Fault]:
    """The faults of the ranks of the first group."""
    for rank in range(num_ranks):
        for word, sig in (("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP)):
            yield RankSignalled(name=f"rank-{rank} {word}", group="group-0", rank=rank, sig=sig)

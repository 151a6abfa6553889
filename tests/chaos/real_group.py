"""A group with a real engine beside the echo groups of a stack, of another model; it is started again when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from random import Random

import psycopg
from faults import Fault, connect
from stacks import RunningStack, wait_for

from pipeline.settings import PREFIX

#: What its model is called. It is the stack's own, of random weights.
MODEL = "tiny-real"
_RANKS = "SELECT state, rank_pids, (info->>'restarts')::int FROM groups WHERE model = %s ORDER BY heartbeat_at DESC"
#: With one more crash the engine would wait for a person.
_MOST_RESTARTS = 2


class RealGroup:
    """Runs from `start` to `stop`."""

    def __init__(self, stack: RunningStack) -> None:
        self._stack = stack
        self._is_stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = threading.Thread(target=self._keep)

    def start(self) -> None:
        self._stack.run("rates", "set", MODEL, "--input", "0.10", "--output", "0.40", check=True)
        self._keeper.start()
        self.wait_until_ready()

    def stop(self) -> None:
        self._is_stopping.set()
        if self._process is not None:
            self._process.terminate()
        self._keeper.join()

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            with contextlib.suppress(psycopg.Error), connect(self._stack) as conn:
                row = conn.execute(_RANKS, [MODEL]).fetchone()
                return row is not None and row[0] == "ready"
            return False

        wait_for(is_ready, "the real group", 120)

    def refresh(self) -> None:
        """What a person does with an engine that has crashed too often: start the group again."""
        with connect(self._stack) as conn:
            row = conn.execute(_RANKS, [MODEL]).fetchone()
        if self._process is not None and row is not None and (row[2] or 0) >= _MOST_RESTARTS:
            self._process.terminate()

    def _keep(self) -> None:
        report = self._stack.report
        env = {
            **self._stack.environment,
            PREFIX + "DATABASE_URL": report["database_url"].replace("postgresql:", "postgresql+psycopg:"),
            PREFIX + "REDIS_URL": report["redis_url"],
            PREFIX + "MAX_NUM_SEQUENCES": "4",
        }
        argv = [sys.executable, "-m", "workers", str(self._stack.model), "--model-name", MODEL, "--name", MODEL]
        with self._stack.data_dir.with_name("real-group.log").open("ab") as log:
            while not self._is_stopping.is_set():
                self._process = subprocess.Popen([*argv, "--tp", "2"], env=env, stdout=log, stderr=log)
                self._process.wait()
                self._is_stopping.wait(0.5)


@dataclass(frozen=True, kw_only=True)
class RealProcessSignalled(Fault):
    """The real group, or one of its ranks, dies or hangs."""

    #: None for the group itself.
    rank: int | None
    sig: signal.Signals

    def inject(self, stack: RunningStack, rng: Random) -> bool:
        with contextlib.suppress(psycopg.Error, ProcessLookupError), connect(stack) as conn:
            row = conn.execute("SELECT pid, rank_pids FROM groups WHERE model = %s", [MODEL]).fetchone()
            if row is not None:
                pids = [row[0]] if self.rank is None else row[1][self.rank :]
                if pids:
                    os.kill(pids[0], self.sig)
                    return True
        return False


def real_faults() -> list[Fault]:
    """A frozen group is one of the echo groups' faults; a rank that is frozen is replaced."""
    faults: list[Fault] = [RealProcessSignalled(name="real group killed", rank=None, sig=signal.SIGKILL, weight=0.2)]
    for rank in range(2):
        for word, sig in (("killed", signal.SIGKILL), ("frozen", signal.SIGSTOP)):
            faults.append(RealProcessSignalled(name=f"real rank-{rank} {word}", rank=rank, sig=sig, weight=0.3))
    return faults

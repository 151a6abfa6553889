"""Our own engine, as the group sees it: starts the ranks, watches them, and replaces them when one dies or hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from concurrent.futures import Future

import msgspec
import structlog

from workers.backends.crash_window import CrashWindow
from workers.backends.measures import Measures
from workers.backends.protocol import (
    EngineRequest,
    EngineStartError,
    EngineState,
    Health,
    Load,
    Outcome,
    OutcomeStatus,
    Progress,
)
from workers.backends.rank_processes import ForkServer, ForkServerLost
from workers.backends.ranks import Ranks
from workers.backends.taken_requests import TakenRequests
from workers.backends.validation import check_request, fits
from workers.engine.messages import Abort, Admitted, FromRank, Heartbeat, Outcomes, Progressed, Ready, Submit
from workers.engine.options import EngineOptions

__all__ = ["EngineOptions", "NativeEngine"]

log = structlog.get_logger(__name__)

#: How often the ranks are looked at while they say nothing, in seconds.
WATCH_SECONDS = 0.25
#: A look that comes later than this finds that this process was stopped, or its machine, in seconds.
PAUSE_SECONDS = 2.0
#: A step counts as a hang when it takes so many times as long as a full step should, if that is above the deadline.
SLOW_STEP = 10.0
#: The least deadline of a step on a GPU, whose kernels may be compiled when they are first used, in seconds.
GPU_STEP_SECONDS = 30.0


class NativeEngine:
    """Implements `protocol.Engine` over rank processes.

    A crash reports those requests as crashed that had begun to run, since one of them may be the cause. Those still
    waiting for admission stay, and run when the ranks are back; where those don't come back, they end as aborted.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._changed = threading.Condition()
        # Guarded by `_changed`, all of them:
        self._state = EngineState.STARTING
        self._reason: str | None = None
        self._ranks: Ranks | None = None
        self._ready: Ready | None = None
        self._num_steps = 0
        self._num_steps_before = 0  # of the generations of ranks that crashed
        self._num_restarts = 0
        self._num_kv_tokens_used = 0
        self._measures = Measures()
        self._requests = TakenRequests(self._measures)
        self._progressed_at = 0.0
        # The supervisor's own:
        self._is_stopping = threading.Event()
        self._crashes = CrashWindow(options.max_crashes, options.crash_window_seconds)
        self._supervisor: threading.Thread | None = None
        self._fork_server: ForkServer | None = None

    # --- what a group calls

    def start(self) -> None:
        """Load and warm up; returns when a real token was generated. Raises EngineStartError with what to do."""
        if self._supervisor is not None or self._is_stopping.is_set():
            raise EngineStartError("An engine starts once; make another one.")
        started: Future[None] = Future()
        self._supervisor = threading.Thread(
            target=self._supervise, args=(started,), name="engine-supervisor", daemon=True
        )
        self._supervisor.start()
        try:
            started.result()
        except BaseException:  # an interrupt of this thread among them
            self._is_stopping.set()
            self._supervisor.join()
            raise

    def submit(self, request: EngineRequest) -> None:
        """Queue a request; what can't run is reported as failed, and as crashed where there is no engine any more."""
        with self._changed:
            if request.id in self._requests:
                raise ValueError(f"Request {request.id} is in the engine already; its id must be another.")
            if self._state in (EngineState.DEGRADED, EngineState.STOPPED):
                self._report(
                    Outcome(
                        id=request.id,
                        status=OutcomeStatus.CRASHED,
                        partial=request.partial,
                        error_message=self._reason,
                    )
                )
                return
            if self._ready is None:
                raise EngineStartError("The engine was not started.")
            rejection = check_request(
                request, vocab_size=self._ready.vocab_size, context_length=self._ready.context_length
            )
            if rejection is not None:
                self._report(
                    Outcome(
                        id=request.id,
                        status=OutcomeStatus.FAILED,
                        num_prompt_tokens=len(request.prompt_token_ids),
                        error_code=rejection.error_code,
                        error_message=rejection.error_message,
                    )
                )
                return
            if request.partial is not None and not fits(request.partial, request, self._ready.vocab_size):
                log.warning("what was generated before can't be gone on from; the request begins anew", id=request.id)
                request = msgspec.structs.replace(request, partial=None)
            if not self._requests:
                self._progressed_at = time.monotonic()
            self._requests.add(request)
            if self._state is EngineState.READY and self._ranks is not None:
                self._ranks.send(Submit(request=request))

    def abort(self, ids: Collection[str]) -> None:
        with self._changed:
            known = self._requests.known(ids)
            if not known:
                return
            if self._state is EngineState.READY and self._ranks is not None:
                self._ranks.send(Abort(ids=known))
                self._requests.expect_abort(known)
                return
            self._requests.abort(known)
            self._tell()

    def take_outcomes(self, max_outcomes: int, timeout: float) -> list[Outcome]:
        with self._changed:
            self._changed.wait_for(lambda: self._requests.has_outcomes, timeout)
            return self._requests.take_outcomes(max_outcomes)

    def take_progress(self) -> list[Progress]:
        with self._changed:
            return self._requests.take_progress()

    def load(self) -> Load:
        with self._changed:
            return Load(
                num_waiting=len(self._requests) - self._requests.num_admitted,
                num_running=self._requests.num_admitted,
                num_kv_tokens=self._ready.num_kv_tokens if self._ready is not None else 0,
                num_kv_tokens_used=self._num_kv_tokens_used,
                kv_block_size=self._options.block_size,
            )

    def health(self) -> Health:
        with self._changed:
            return Health(
                state=self._state,
                rank_pids=self._ranks.pids if self._ranks is not None else [],
                num_steps=self._num_steps_before + self._num_steps,
                num_restarts=self._num_restarts,
                reason=self._reason,
                dtype=self._ready.dtype if self._ready is not None else None,
            )

    def measures(self) -> Measures:
        with self._changed:
            return self._measures.copy()

    def stop(self) -> None:
        """End at once; what is in the engine is reported as crashed. Returns when every rank is gone. Idempotent."""
        self._is_stopping.set()
        if self._supervisor is not None:
            self._supervisor.join()
        with self._changed:
            self._state = EngineState.STOPPED
            self._requests.crash_all("The engine was stopped.")
            self._tell()

    # --- what the supervisor does

    def _supervise(self, started: Future[None]) -> None:
        """Start ranks and watch one generation after the other, until the engine is stopped or degraded.

        The fork server is started by this thread, since it ends with the thread that started it.
        """
        ranks: Ranks | None
        try:
            ranks = self._start_ranks()
        except BaseException as error:  # noqa: BLE001 — it is raised where the engine is started
            self._stop_fork_server()
            with self._changed:
                self._state, self._reason = EngineState.STOPPED, str(error)
            started.set_exception(error)
            return
        started.set_result(None)
        while ranks is not None:
            reason = self._watch(ranks)
            if reason is None:
                ranks.shut_down()
                break
            ranks.kill()
            self._lose(reason)
            ranks = self._replace()
        self._stop_fork_server()
        with self._changed:
            self._ranks = None
            if self._is_stopping.is_set():
                self._state = EngineState.STOPPED

    def _watch(self, ranks: Ranks) -> str | None:
        """Serve the ranks until they crash, and return why; None when the engine is to stop."""
        seen_at = time.monotonic()
        while not self._is_stopping.is_set():
            self._take(ranks.receive(WATCH_SECONDS))
            if ranks.has_failed:
                reason = ranks.diagnose()
                self._take(ranks.receive(0))
                return reason
            now = time.monotonic()
            if now - seen_at > PAUSE_SECONDS:
                # It was we who stood still: whether the ranks did is to be seen from now on.
                with self._changed:
                    self._progressed_at = now
            seen_at = now
            if (rank := ranks.find_stopped()) is not None:
                return f"rank {rank} (process {ranks.pids[rank]}) was stopped by a signal"
            if self._seconds_without_progress(now) > (deadline := self._step_deadline()):
                ranks.dump_stacks()
                return f"no step ended within {deadline:g} seconds (setting step_seconds)"
        return None

    def _take(self, messages: list[FromRank]) -> None:
        with self._changed:
            for message in messages:
                match message:
                    case Outcomes(outcomes=outcomes):
                        for outcome in outcomes:
                            self._requests.end(outcome)
                    case Progressed(progress=progress):
                        for one in progress:
                            self._requests.advance(one)
                    case Admitted(ids=ids):
                        self._requests.admit(ids)
                    case Heartbeat():
                        if message.num_steps > self._num_steps:
                            self._progressed_at = time.monotonic()
                        self._num_steps = message.num_steps
                        self._num_kv_tokens_used = message.num_kv_tokens_used
                        self._measures.add(message.measures)
            self._tell()

    def _seconds_without_progress(self, now: float) -> float:
        with self._changed:
            return now - self._progressed_at if self._requests else 0.0

    def _step_deadline(self) -> float:
        """In seconds. On a slow device a full step of a large model may well take longer than the setting."""
        with self._changed:
            expected = self._ready.full_step_seconds if self._ready is not None else 0.0
        least = GPU_STEP_SECONDS if self._options.device == "cuda" else 0.0
        return max(self._options.step_seconds, least, round(SLOW_STEP * expected, 1))

    def _lose(self, reason: str) -> None:
        """The ranks are gone: report what ran in them, and count the crash."""
        self._crashes.add(time.monotonic())
        log.error("the engine crashed", reason=reason)
        with self._changed:
            self._state, self._reason = EngineState.RESTARTING, reason
            self._ranks = None
            self._num_steps_before += self._num_steps
            self._num_steps = self._num_kv_tokens_used = 0
            self._requests.lose_ranks(reason)
            self._tell()

    def _replace(self) -> Ranks | None:
        """Start the ranks again, as often as it takes; None when the engine is stopped, or degraded by then."""
        while not self._crashes.is_full:
            if self._is_stopping.wait(self._crashes.backoff_seconds):
                return None
            try:
                ranks = self._start_ranks()
            except Exception as error:  # without this thread nobody would end what is in flight
                if self._is_stopping.is_set():
                    return None
                if not isinstance(error, EngineStartError):
                    log.error("the ranks could not be started", exc_info=error)
                self._lose(str(error))
                continue
            log.info("the engine is ready again", ranks=ranks.pids)
            return ranks
        window = self._options.crash_window_seconds
        with self._changed:
            self._state = EngineState.DEGRADED
            self._reason = f"{len(self._crashes)} crashes within {window:g} seconds, the last: {self._reason}"
            log.error("the engine takes nothing more", reason=self._reason)
            self._requests.abort_all()  # none has run since the crash: they are no suspects
            self._tell()
        return None

    def _serving_fork_server(self, deadline: float) -> ForkServer:
        if self._fork_server is None or not self._fork_server.is_usable:
            self._stop_fork_server()
            self._fork_server = ForkServer(self._options)
        self._fork_server.wait_ready(deadline, self._is_stopping)
        return self._fork_server

    def _stop_fork_server(self) -> None:
        if self._fork_server is not None:
            self._fork_server.stop()

    def _start_ranks(self) -> Ranks:
        """Raises EngineStartError; then no rank is left."""
        deadline = time.monotonic() + self._options.start_seconds
        try:
            ranks = Ranks(self._options, self._serving_fork_server(deadline))
        except ForkServerLost as error:  # such as one that has stood still for hours, which nobody noticed
            log.warning("the fork server is replaced", reason=str(error))
            ranks = Ranks(self._options, self._serving_fork_server(deadline))
        with self._changed:
            self._ranks = ranks
        try:
            ready = ranks.wait_ready(deadline, self._is_stopping)
        except BaseException:
            with self._changed:
                self._ranks = None
            raise
        with self._changed:
            if self._state is EngineState.RESTARTING:
                self._num_restarts += 1
            self._state, self._reason, self._ready = EngineState.READY, None, ready
            self._progressed_at = time.monotonic()
            for request in self._requests:
                ranks.send(Submit(request=request))
        return ranks

    # --- `_changed` is held

    def _report(self, outcome: Outcome) -> None:
        self._requests.report(outcome)
        self._tell()

    def _tell(self) -> None:
        if self._requests.has_outcomes:
            self._changed.notify_all()

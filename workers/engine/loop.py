"""The loop of rank 0: messages of the parent between the steps of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.schemas.generation import GenerationParams
from workers.backends.protocol import EngineRequest, OutcomeStatus
from workers.engine.engine import EngineCore
from workers.engine.messages import (
    Abort,
    Admitted,
    Channel,
    Heartbeat,
    Outcomes,
    Progressed,
    Shutdown,
    Start,
    Submit,
    ToRank,
)

#: Least time between two heartbeats of a busy engine, in seconds.
HEARTBEAT_SECONDS = 0.1
#: Length of the prompt that is timed, in tokens: long enough to keep a device busy.
WARM_UP_TOKENS = 64


class WarmUpError(Exception):
    """The model can't generate."""


def warm_up(core: EngineCore, context_length: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Generate through all ranks; only then is an engine ready.

    Returns the seconds that a token of a prompt takes. Raises WarmUpError.
    """
    _generate(core, num_prompt_tokens=1)
    num_prompt_tokens = max(1, min(WARM_UP_TOKENS, context_length - 1, core.scheduler.block_manager.num_tokens - 1))
    began = clock()
    _generate(core, num_prompt_tokens)
    seconds = clock() - began
    core.take_measures()  # they were nobody's requests
    return seconds / num_prompt_tokens


def _generate(core: EngineCore, num_prompt_tokens: int) -> None:
    request = EngineRequest(
        id="warm-up",
        prompt_token_ids=[0] * num_prompt_tokens,
        params=GenerationParams(max_tokens=1, temperature=0.0, ignore_eos=True),
        seed=0,
        cache_salt="warm-up",
    )
    core.submit(request)
    while not (outcomes := core.run(core.plan())):
        pass
    if outcomes[0].status is not OutcomeStatus.FINISHED:
        raise WarmUpError(f"The first tokens could not be generated. {outcomes[0].error_message}")


def run_loop(core: EngineCore, parent: Channel[ToRank], clock: Callable[[], float] = time.monotonic) -> None:
    """Serve the parent until it says to shut down. Raises ChannelClosed if it is gone."""
    last_heartbeat = clock()
    while _receive(core, parent):
        plan = core.plan()
        if plan.admitted:
            parent.send(Admitted(ids=list(dict.fromkeys(sequence.request_id for sequence in plan.admitted))))
        outcomes = core.run(plan)
        if core.is_idle or clock() - last_heartbeat >= HEARTBEAT_SECONDS:
            last_heartbeat = clock()
            parent.send(_heartbeat(core))
        _report_progress(core, parent)
        if outcomes:
            parent.send(Outcomes(outcomes=outcomes))


def _heartbeat(core: EngineCore) -> Heartbeat:
    return Heartbeat(
        num_steps=core.num_steps, num_kv_tokens_used=core.scheduler.num_tokens_used, measures=core.take_measures()
    )


def _report_progress(core: EngineCore, parent: Channel[ToRank]) -> None:
    if progress := core.take_progress():
        parent.send(Progressed(progress=progress))


def _receive(core: EngineCore, parent: Channel[ToRank]) -> bool:
    """Take what the parent sent, waiting for something while there is nothing to do; False to shut down."""
    while core.is_idle or parent.poll():
        match parent.receive():
            case Submit(request=request):
                if outcomes := core.submit(request):
                    parent.send(Outcomes(outcomes=outcomes))
            case Abort(ids=ids):
                if outcomes := core.abort(ids):
                    _report_progress(core, parent)
                    parent.send(Outcomes(outcomes=outcomes))
            case Shutdown():
                return False
            case Start():
                raise AssertionError("a rank starts once")
    return True

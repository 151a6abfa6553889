"""Why a batch waits, as the API shows it."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, Literal, Self

from pydantic import BaseModel

from pipeline.jobs.explaining import MAX_OTHERS, RECENT_SECONDS, Explanation, WaitReason
from pipeline.tables import BatchStatus, ServiceClass


class ReasonObject(BaseModel):
    code: WaitReason
    message: str


class SliceCounts(BaseModel):
    """Slices of the batch; a slice is some of its requests, which one group works on."""

    pending: int
    at_work: int
    done: int


class WorkAhead(BaseModel):
    """What comes before the first pending slice of the batch. Work is in weighted tokens."""

    slices_by_class: int
    slices_by_share: int
    slices_of_own: int
    work_by_class: int
    work_by_share: int
    work_of_own: int
    #: Of all tenants and classes, that groups have begun.
    work_in_engines: int


class GroupCounts(BaseModel):
    """Groups of the batch's model. `away`: drained by a person, or stopped after crashes."""

    ready: int
    starting: int
    away: int


class TenantShare(BaseModel):
    """A tenant who waits in the same class. The lower its counter, the sooner it is its turn."""

    #: Weighted tokens that it was served over its weight, above the lowest of those who wait.
    counter: int
    weight: str
    slices_pending: int
    slices_at_work: int


class Shares(BaseModel):
    own: TenantShare
    #: Nobody is named; those with the lowest counters come first.
    others: list[TenantShare]
    num_others: int


class Rates(BaseModel):
    """How fast the batch's model is served. None where no group has done anything for a day."""

    #: Computed tokens per second, of what groups began in the last minutes.
    recent_tokens_per_second: float
    recent_seconds: int
    #: Weighted tokens, as they are planned, per second: of one group, and of all that are ready.
    work_per_second_of_a_group: float | None
    work_per_second: float | None


class BatchExplanation(BaseModel):
    """Why a batch waits. Moments are Unix seconds; an estimate is null where nothing can be said."""

    object: Literal["batch.explanation"] = "batch.explanation"
    batch_id: str
    status: BatchStatus
    service_class: ServiceClass
    model: str | None
    reasons: list[ReasonObject]
    slices: SliceCounts
    ahead: WorkAhead | None
    groups: GroupCounts | None
    shares: Shares | None
    rates: Rates | None
    #: In progress since, and the end of its window.
    waiting_since: int | None
    expires_at: int
    #: When its first slice was, or would be, begun.
    estimated_start: int | None
    estimated_finish: int | None
    #: What the finish would be if the batch were of another class.
    estimated_finish_in_class: dict[ServiceClass, int | None]

    @classmethod
    def of(cls, explanation: Explanation) -> Self:
        batch, slices = explanation.batch, explanation.slices
        start, finish = explanation.estimated_start, explanation.estimated_finish
        return cls(
            batch_id=batch.id,
            status=batch.status,
            service_class=batch.service_class,
            model=batch.model,
            reasons=[ReasonObject(code=code, message=_message(code, explanation)) for code in explanation.reasons],
            slices=SliceCounts(pending=slices.num_pending, at_work=slices.num_at_work, done=slices.num_done),
            ahead=_ahead(explanation),
            groups=_groups(explanation),
            shares=_shares(explanation),
            rates=_rates(explanation),
            waiting_since=None if batch.in_progress_at is None else int(batch.in_progress_at.timestamp()),
            expires_at=int(batch.expires_at.timestamp()),
            estimated_start=None if start is None else int(start.timestamp()),
            estimated_finish=None if finish is None else int(finish.timestamp()),
            estimated_finish_in_class={
                kind: None if moment is None else int(moment.timestamp())
                for kind, moment in explanation.finish_in_class.items()
            },
        )


_MESSAGES: Final = {
    WaitReason.PREPARING: "Its input file is being read and planned.",
    WaitReason.BUDGET: "It is paused by '{pause}': there is no room for its next request. It goes on when there is.",
    WaitReason.PAUSED: "Its client has paused it. It goes on when its client resumes it.",
    WaitReason.NO_GROUP: "No group works for the model '{model}'. Drained, or stopped after crashes: {away}.",
    WaitReason.COLD_START: "The groups of the model '{model}' are starting: {starting}.",
    WaitReason.CLASS_AHEAD: "Slices of a higher service class wait too: {by_class}.",
    WaitReason.SHARE_AHEAD: "Slices of tenants who were served less come first: {by_share}.",
    WaitReason.OWN_WORK: "Slices of other batches of yours come first: {own}.",
    WaitReason.ENGINES_FULL: "It is next; the groups are at work on what they have.",
    WaitReason.RUNNING: "Nothing of it waits: groups are at work on all that is left (slices: {at_work}).",
    WaitReason.ENDED: "It is {status}.",
}


def _message(code: WaitReason, explanation: Explanation) -> str:
    load, ahead = explanation.load, explanation.ahead
    return _MESSAGES[code].format(
        pause=explanation.batch.pause_reason,
        model=explanation.batch.model,
        status=explanation.batch.status.value,
        away=load.num_away if load else 0,
        starting=load.num_starting if load else 0,
        by_class=ahead.num_by_class if ahead else 0,
        by_share=ahead.num_by_share if ahead else 0,
        own=explanation.slices.num_own_ahead,
        at_work=explanation.slices.num_at_work,
    )


def _ahead(explanation: Explanation) -> WorkAhead | None:
    ahead = explanation.ahead
    if ahead is None or explanation.slices.num_pending == 0:
        return None
    return WorkAhead(
        slices_by_class=ahead.num_by_class,
        slices_by_share=ahead.num_by_share,
        slices_of_own=explanation.slices.num_own_ahead,
        work_by_class=round(ahead.by_class),
        work_by_share=round(ahead.by_share),
        work_of_own=round(ahead.own),
        work_in_engines=round(ahead.at_work),
    )


def _groups(explanation: Explanation) -> GroupCounts | None:
    load = explanation.load
    if load is None:
        return None
    return GroupCounts(ready=load.num_ready, starting=load.num_starting, away=load.num_away)


def _shares(explanation: Explanation) -> Shares | None:
    own, others = explanation.queue, explanation.others
    if own is None:
        return None
    lowest = min((queue.counter for queue in [own, *others]), default=Decimal(0))
    own_share, *other_shares = (
        TenantShare(
            counter=round(queue.counter - lowest),
            weight=f"{queue.weight.normalize():f}",
            slices_pending=queue.num_pending,
            slices_at_work=queue.num_at_work,
        )
        for queue in [own, *others[:MAX_OTHERS]]
    )
    return Shares(own=own_share, others=other_shares, num_others=len(others))


def _rates(explanation: Explanation) -> Rates | None:
    load = explanation.load
    if load is None:
        return None
    return Rates(
        recent_tokens_per_second=round(explanation.recent_tokens_per_second, 3),
        recent_seconds=RECENT_SECONDS,
        work_per_second_of_a_group=None if load.group_speed is None else round(float(load.group_speed), 3),
        work_per_second=None if load.speed is None else round(float(load.speed), 3),
    )

from __future__ import annotations

from workers.backends.measures import Measures
from workers.backends.protocol import (
    EngineRequest,
    GenerationParams,
    Outcome,
    OutcomeStatus,
    Partial,
    PartialChoice,
    Progress,
)
from workers.backends.taken_requests import TakenRequests


def make_requests(*ids: str) -> TakenRequests:
    requests = TakenRequests(Measures())
    for request_id in ids:
        requests.add(
            EngineRequest(id=request_id, prompt_token_ids=[1, 2, 3], params=GenerationParams(max_tokens=8), seed=0)
        )
    return requests


def progress(request_id: str, *token_ids: int) -> Progress:
    return Progress(id=request_id, partial=Partial(choices=[PartialChoice(list(token_ids))]))


def ends(requests: TakenRequests) -> dict[str, OutcomeStatus]:
    outcomes = requests.take_outcomes(100)
    assert len({outcome.id for outcome in outcomes}) == len(outcomes), "each is reported once"
    return {outcome.id: outcome.status for outcome in outcomes}


def test_lost_ranks_end_what_ran_and_what_was_given_up_and_nothing_else() -> None:
    requests = make_requests("waits", "runs", "runs-given-up", "waits-given-up", "gone-given-up")
    requests.admit(["runs", "runs-given-up", "of another engine"])
    requests.expect_abort(["runs-given-up", "waits-given-up", "gone-given-up"])
    requests.end(Outcome(id="gone-given-up", status=OutcomeStatus.FINISHED))

    requests.lose_ranks("rank 0 is gone")

    assert ends(requests) == {
        "gone-given-up": OutcomeStatus.FINISHED,
        "runs-given-up": OutcomeStatus.ABORTED,
        "waits-given-up": OutcomeStatus.ABORTED,
        "runs": OutcomeStatus.CRASHED,
    }
    assert [request.id for request in requests] == ["waits"]
    assert requests.num_admitted == 0


def test_what_was_generated_stays_with_a_request_and_its_end() -> None:
    requests = make_requests("a", "b")
    requests.advance(progress("a", 5, 6))
    requests.advance(progress("a", 7))
    requests.advance(progress("unknown", 8))

    assert [one.id for one in requests.take_progress()] == ["a", "a"]
    assert requests.take_progress() == []
    partial = next(iter(requests)).partial
    assert partial is not None
    assert partial.choices == [PartialChoice([5, 6, 7])]

    requests.crash_all("The engine was stopped.")

    crashed, other = requests.take_outcomes(2)
    assert (crashed.partial, other.partial) == (partial, None)
    assert crashed.num_prompt_tokens == 3
    assert crashed.error_message == "The engine was stopped."
    assert not requests.has_outcomes


def test_a_request_ends_once() -> None:
    requests = make_requests("a", "b")

    requests.abort(["a", "a"])
    requests.end(Outcome(id="a", status=OutcomeStatus.FINISHED))
    requests.abort_all()

    assert ends(requests) == {"a": OutcomeStatus.ABORTED, "b": OutcomeStatus.ABORTED}
    assert len(requests) == 0

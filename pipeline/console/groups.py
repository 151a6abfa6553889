"""Groups: for operators each with its ranks, memory, speed and a way to drain it; for others how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from pipeline.console.failures import not_found
from pipeline.console.operating import Operator
from pipeline.console.rendering import render, see_other
from pipeline.console.signing_in import SignedForm, SignedIn
from pipeline.fleet import UnknownGroupError, want_drain
from pipeline.fleet_views import SPEED_SECONDS, GroupView, view_groups
from pipeline.tables import GroupState
from pipeline.tables.session import transaction

router = APIRouter()

_STARTING = (GroupState.STARTING, GroupState.RESTARTING)


@dataclass(frozen=True)
class ModelGroups:
    """How many groups work for a model: what everybody may know."""

    model: str
    num_ready: int
    num_starting: int
    #: Degraded, draining, drained, stopped, or silent.
    num_away: int


@router.get("/groups")
def show_groups(request: Request, viewer: SignedIn) -> Response:
    with transaction() as session:
        groups = view_groups(session)
    return render(
        request,
        "groups.html",
        groups=groups if viewer.is_operator else [],
        models=_by_model(groups),
        speed_minutes=SPEED_SECONDS // 60,
    )


@router.post("/groups/{group_id}/drain")
def drain_group(viewer: Operator, form: SignedForm, group_id: str) -> Response:
    """Let a group hold nothing; the process stays, with its model loaded."""
    return _want_drain(viewer, group_id, is_wanted=True)


@router.post("/groups/{group_id}/resume")
def resume_group(viewer: Operator, form: SignedForm, group_id: str) -> Response:
    """Let a group that was drained take slices again."""
    return _want_drain(viewer, group_id, is_wanted=False)


def _want_drain(viewer: Operator, group_id: str, *, is_wanted: bool) -> Response:
    try:
        with transaction() as session:
            want_drain(session, group_id, is_wanted=is_wanted, actor=viewer.principal.api_key_id)
    except UnknownGroupError:
        raise not_found("group") from None
    return see_other("/console/groups")


def _by_model(groups: Sequence[GroupView]) -> list[ModelGroups]:
    found = []
    for model in sorted({group.model for group in groups}):
        states = [None if group.is_lost else group.state for group in groups if group.model == model]
        num_ready = states.count(GroupState.READY)
        num_starting = sum(state in _STARTING for state in states)
        found.append(ModelGroups(model, num_ready, num_starting, len(states) - num_ready - num_starting))
    return found

"""The object that `up --json` and `status --json` print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil

from pipeline.stack.data_dir import DataDir
from pipeline.stack.fleet import Fleet, GroupReport
from pipeline.stack.state import ProcessPhase, ProcessState, StackPhase, StackState
from pipeline.tables import GroupState
from pipeline.telemetry.metrics.targets import read_targets

#: What the state of a group that runs says about its process.
_PHASES = {
    GroupState.STARTING: ProcessPhase.STARTING,
    GroupState.READY: ProcessPhase.RUNNING,
    GroupState.RESTARTING: ProcessPhase.RESTARTING,
    GroupState.DEGRADED: ProcessPhase.RUNNING,
    GroupState.DRAINING: ProcessPhase.RUNNING,
    GroupState.DRAINED: ProcessPhase.RUNNING,
    GroupState.STOPPED: ProcessPhase.RUNNING,
}

#: States in which a process runs and its group claims nothing.
_SAID = (GroupState.DEGRADED, GroupState.DRAINING, GroupState.DRAINED)


def report(state: StackState, supervisor_pid: int, fleet: Fleet) -> dict[str, Any]:
    """Addresses, secrets, and every process with its pid and state, ranks included.

    `{"state", "data_dir", "model", "base_url", "api_key", "database_url", "redis_url", "flower_url", "flower_user",
    "flower_password", "metrics_urls": {name: url}, "pids": {name: pid}, "processes": {name: {"pid", "state",
    "restarts", "reason"}}}`; in `pids` is only what runs. Prometheus finds the URLs in the folder `metrics` of
    the data folder.
    """
    processes = {"supervisor": ProcessState(pid=supervisor_pid, state=ProcessPhase.RUNNING)}
    groups = fleet.groups()
    for name, process in state.processes.items():
        group = groups.get(process.pid) if process.pid is not None and name.startswith("group-") else None
        processes[name] = process if group is None else _with_engine(process, group)
        if group is not None:
            processes.update(_ranks(name, group))
    return _object(state, processes)


def stopped_report(data_dir: DataDir, state: StackState | None) -> dict[str, Any]:
    """The same object of a stack that does not run: where its addresses would be is nothing."""
    if state is None:
        return {"state": str(StackPhase.STOPPED), "data_dir": str(data_dir.root), "pids": {}, "processes": {}}
    stopped = {
        name: process.model_copy(update={"pid": None, "state": ProcessPhase.STOPPED, "reason": None})
        for name, process in state.processes.items()
    }
    return _object(state.model_copy(update={"phase": StackPhase.STOPPED}), stopped)


def _object(state: StackState, processes: dict[str, ProcessState]) -> dict[str, Any]:
    fields = state.model_dump(mode="json", exclude={"phase", "processes"})
    return {
        "state": str(state.phase),
        **fields,
        "metrics_urls": {} if state.phase is StackPhase.STOPPED else read_targets(Path(state.data_dir)),
        "pids": {name: process.pid for name, process in processes.items() if process.pid is not None},
        "processes": {name: process.model_dump(mode="json") for name, process in processes.items()},
    }


def _with_engine(process: ProcessState, group: GroupReport) -> ProcessState:
    """A process that runs may still have an engine that does not."""
    if process.state is not ProcessPhase.RUNNING:
        return process
    reason = group.reason or (f"group is {group.state}" if group.state in _SAID else None)
    return process.model_copy(update={"state": _PHASES[group.state], "reason": reason})


def _ranks(name: str, group: GroupReport) -> dict[str, ProcessState]:
    return {
        f"{name}.rank-{rank}": ProcessState(
            pid=pid if _is_alive(pid) else None,
            state=ProcessPhase.RUNNING if _is_alive(pid) else ProcessPhase.RESTARTING,
            restarts=group.num_restarts,
        )
        for rank, pid in enumerate(group.rank_pids)
    }


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def own_report(state: StackState, fleet: Fleet) -> dict[str, Any]:
    """The report, from the supervisor itself."""
    return report(state, os.getpid(), fleet)

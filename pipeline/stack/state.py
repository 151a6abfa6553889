"""What a stack says about itself: written by its supervisor, read by `status`, `down` and the client commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import UserError
from pipeline.stack.data_dir import DataDir, write_private


class StackPhase(StrEnum):
    STARTING = "starting"  #: Not all of it answers yet.
    READY = "ready"  #: All of it has answered; single processes may be restarting.
    STOPPING = "stopping"  #: Ends in order.
    STOPPED = "stopped"  #: Nothing of it runs.


class ProcessPhase(StrEnum):
    STARTING = "starting"  #: Started for the first time, not ready yet.
    RUNNING = "running"  #: Was ready since its last start.
    RESTARTING = "restarting"  #: Died; is being started again, or waits for that.
    STOPPED = "stopped"  #: Does not run, and will not be started.


class ProcessState(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    #: None while there is none.
    pid: int | None
    state: ProcessPhase
    #: How often it was started again after it died.
    restarts: int = 0
    #: What is wrong with it, in words.
    reason: str | None = None


class StackState(BaseModel):
    """Everything about a stack but the pids of its ranks, which its groups know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: StackPhase
    data_dir: str
    #: Name of the model that is served.
    model: str
    #: Ends in `/v1`.
    base_url: str
    #: None before the first start has made it.
    api_key: str | None
    database_url: str
    redis_url: str
    flower_url: str
    flower_user: str
    flower_password: str
    processes: dict[str, ProcessState]

    def write(self, data_dir: DataDir) -> None:
        write_private(data_dir.state_file, self.model_dump(mode="json"))


def find_state(data_dir: DataDir) -> StackState | None:
    """The last state that was written, whether or not the stack still runs; None if there is none.

    Raises UserError if it is another user's.
    """
    try:
        return StackState.model_validate_json(data_dir.state_file.read_text())
    except PermissionError:
        raise UserError(f"The stack in {data_dir.root} is another user's: run this as that user.") from None
    except (FileNotFoundError, ValidationError):
        return None


def read_state(folder: Path) -> StackState:
    """The state of the stack that runs in `folder`: where its gateway and its database are, and its first key.

    Raises UserError if none runs there.
    """
    data_dir = DataDir(folder.expanduser().absolute())
    state = find_state(data_dir)
    if state is None or data_dir.supervisor_pid() is None:
        raise UserError(f"No stack runs in {folder}. Start it with `ryzanstein up --data-dir {folder} --model …`.")
    return state

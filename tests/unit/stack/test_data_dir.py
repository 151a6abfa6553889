from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.stack.data_dir import AlreadyRunningError, DataDir, DataDirError

_HOLD = (
    "import sys, signal, pathlib; from pipeline.stack.data_dir import DataDir\n"
    "with DataDir(pathlib.Path(sys.argv[1])).locked():\n    print('held', flush=True); signal.pause()"
)


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    return DataDir(tmp_path / "stack")


def test_one_supervisor_at_a_time_and_its_death_lets_go(data_dir: DataDir) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(data_dir.root)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()

    assert data_dir.supervisor_pid() == holder.pid
    with pytest.raises(AlreadyRunningError, match=f"process {holder.pid}"), data_dir.locked():
        pass

    holder.send_signal(signal.SIGKILL)
    holder.wait(60)
    assert data_dir.supervisor_pid() is None
    with data_dir.locked():
        assert data_dir.supervisor_pid() == os.getpid()


def test_secrets_are_made_once_and_for_their_owner_alone(data_dir: DataDir) -> None:
    data_dir.create()

    secrets = data_dir.ensure_secrets()
    kept = data_dir.keep_api_key(secrets, "rz_key")

    assert data_dir.ensure_secrets() == kept
    assert kept.api_key == "rz_key"
    assert kept.postgres_password == secrets.postgres_password
    assert data_dir.secrets_file.stat().st_mode & 0o777 == 0o600


def test_damaged_secrets_are_never_replaced(data_dir: DataDir) -> None:
    data_dir.create()
    data_dir.secrets_file.write_text('{"stack_id": "x"}')

    with pytest.raises(DataDirError, match="damaged"):
        data_dir.ensure_secrets()


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(DataDirError, match="holds files that are not a stack's"):
        DataDir(tmp_path).create()


def test_a_folder_that_can_not_be_made_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(DataDirError, match="Not a directory"):
        DataDir(tmp_path / "file" / "stack").create()

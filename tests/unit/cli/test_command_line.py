from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import pipeline.cli as cli
from pipeline.errors import UserError
from pipeline.stack.options import Device, StackOptions, devices_of_group, visible_devices

CLI = [sys.executable, "-m", "pipeline.cli"]


def run(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *args], capture_output=True, text=True, timeout=60, env=env)


def test_the_version_is_printed() -> None:
    assert CliRunner().invoke(cli.app, ["--version"]).output == f"ryzanstein {version('ryzanstein')}\n"


def test_every_command_is_there_and_says_what_it_does() -> None:
    wanted = {"up", "down", "status", "gateway", "control", "worker", "flower", "migrate", "doctor"}
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]

    assert wanted <= set(commands)
    for name, command in commands.items():
        assert command.get_short_help_str(), name


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.cli import app; import typer; typer.main.get_command(app);"
        "print([name for name in ('torch', 'celery', 'sqlalchemy', 'fastapi', 'openai') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_mistake_of_the_users_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = run("up", "--data-dir", str(tmp_path / "data"), "--model", str(tmp_path / "nowhere"))

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert "nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_an_unknown_setting_is_an_error_of_every_command() -> None:
    done = run("status", env={**os.environ, "RYZANSTEIN_TYPO": "1"})

    assert done.returncode == 1
    assert done.stderr == "Error: Unknown setting RYZANSTEIN_TYPO. docs/settings.md lists the known ones.\n"


def test_up_without_a_model_says_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cli.stack.example_model", lambda: None)

    result = CliRunner().invoke(cli.app, ["up", "--data-dir", str(tmp_path / "data")])

    assert isinstance(result.exception, UserError)
    assert "--model FOLDER" in str(result.exception)
    assert not (tmp_path / "data").exists()


def test_a_wrong_setting_is_one_line_and_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RYZANSTEIN_GATEWAY_PROT", "1")

    done = run("gateway")

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Error: Unknown setting RYZANSTEIN_GATEWAY_PROT. docs/settings.md lists the known ones."
    ]


def test_wrong_usage_is_exit_code_2() -> None:
    assert run("up", "--prot", "1").returncode == 2
    assert run("upp").returncode == 2


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130


def test_each_group_gets_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5, 6,7,")
    options = StackOptions(data_dir=Path("d"), model=Path("m"), model_name="m", tp=2, groups=2, device=Device.CUDA)

    assert visible_devices() == ["4", "5", "6", "7"]
    assert [devices_of_group(options, index) for index in range(2)] == [["4", "5"], ["6", "7"]]


def test_too_few_gpus_are_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    options = StackOptions(data_dir=Path("d"), model=Path("m"), model_name="m", tp=2, device=Device.CUDA)

    with pytest.raises(UserError, match="--groups 1 --tp 2 needs 2 GPUs, and 1 can be seen"):
        devices_of_group(options, 0)


def test_a_group_that_can_not_start_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = run("worker", str(tmp_path), "--engine", "echo")

    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "has no config.json" in done.stderr


def test_the_group_takes_every_option_that_the_command_hands_on() -> None:
    done = subprocess.run([sys.executable, "-m", "workers", "--help"], capture_output=True, text=True, timeout=60)
    worker = typer.main.get_command(cli.app).commands["worker"]  # type: ignore[attr-defined]
    options = {option for parameter in worker.params for option in parameter.opts if option.startswith("--")}

    assert options >= {"--tp", "--device", "--dtype", "--engine", "--name", "--model-name"}
    for option in options - {"--help"}:
        assert option in done.stdout

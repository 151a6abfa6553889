"""compose.yaml against the command line and the settings that it relies on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipeline.cli import app
from pipeline.settings import PREFIX, Settings

ROOT = Path(__file__).parents[3]
#: `${NAME}`, `${NAME:-default}`, `${NAME:?error}`
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def expand(value: str) -> str:
    """A value as compose hands it on, with `1` for variables that must be set."""
    return _VARIABLE.sub(lambda found: found[3] if found[2] == "-" else "1", value).replace("$$", "$")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return parsed


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


def check_command(argv: list[str]) -> None:
    """Raise if the command line would refuse these arguments."""
    assert argv[0] == "ryzanstein"
    command: Any = typer.main.get_command(app)
    rest = list(argv[1:])
    context = command.make_context("ryzanstein", list(rest))
    while hasattr(command, "resolve_command"):  # `keys create` is a command of a command
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, list(rest), parent=context)


def our_commands() -> list[list[str]]:
    text = (ROOT / "compose.yaml").read_text()
    lists = re.findall(r"command: (\[\"ryzanstein\".*\])", text)
    told = re.findall(r"docker compose run --rm \w+ (ryzanstein .*)", text)
    return [[expand(word) for word in yaml.safe_load(found)] for found in lists] + [line.split() for line in told]


OBSERVABILITY = {"prometheus", "grafana"}


def test_every_process_of_the_service_is_there(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == {"postgres", "redis", "migrate", "gateway", "control", "worker", "flower", *OBSERVABILITY}


def test_prometheus_and_grafana_run_when_they_are_asked_for_and_on_loopback_alone(compose: dict[str, Any]) -> None:
    services = compose["services"]

    assert {name for name, service in services.items() if service.get("profiles")} == OBSERVABILITY
    for name in OBSERVABILITY:
        assert services[name]["profiles"] == ["observability"]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", services[name]["image"])
        mounted = [mount for mount in services[name]["volumes"] if mount.startswith("./")]
        assert mounted
        for mount in mounted:
            source, _, mode = mount.split(":")
            assert mode == "ro"
            assert (ROOT / source).exists(), source


def test_prometheus_asks_every_process_of_ours(compose: dict[str, Any]) -> None:
    services = compose["services"]
    prometheus = ROOT / "deploy" / "prometheus"
    config = yaml.safe_load((prometheus / "prometheus.yml").read_text())
    targets = yaml.safe_load((prometheus / "compose_targets.yml").read_text())
    asked = {target["labels"]["process"]: target["targets"] for target in targets}
    ports = {
        ("gateway", "gateway"): "GATEWAY_METRICS_PORT",
        ("control", "control"): "CONTROL_METRICS_PORT",
        ("group", "worker"): "WORKER_HEALTH_PORT",
        ("flower", "flower"): "FLOWER_PORT",
    }

    assert asked == {
        process: [f"{service}:{services[service]['environment'][PREFIX + setting]}"]
        for (process, service), setting in ports.items()
    }
    for setting in ("METRICS_HOST", "WORKER_HEALTH_HOST", "FLOWER_HOST"):
        assert any(one.get("environment", {}).get(PREFIX + setting) == "0.0.0.0" for one in services.values())
    password_file = config["scrape_configs"][1]["basic_auth"]["password_file"]
    [secret] = services["prometheus"]["secrets"]
    assert secret["target"] == f"/etc/prometheus/{password_file}"
    assert compose["secrets"][secret["source"]] == {"environment": "FLOWER_PASSWORD"}


@pytest.mark.parametrize("argv", our_commands(), ids=" ".join)
def test_the_command_line_takes_every_command(argv: list[str]) -> None:
    check_command(argv)


def test_what_the_comments_say_is_checked_too() -> None:
    assert [argv for argv in our_commands() if "cpu" in argv]
    assert [argv for argv in our_commands() if argv[1] == "keys"]


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        check_command(["ryzanstein", "gateway", "--prot", "8000"])
    with pytest.raises(Exception, match="No such command"):
        check_command(["ryzanstein", "gatway"])


def test_every_variable_is_a_setting(services: dict[str, dict[str, Any]]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    used = {name for service in services.values() for name in service.get("environment", {}) if name.startswith(PREFIX)}

    assert used <= known


def test_no_secret_is_in_the_file(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            if not name.endswith("_FILE") and ("PASSWORD" in name or "AUTH" in name or "KEY" in name):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name
            for password in re.findall(r"://\w*:([^@]*)@", value):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", password), name
    for line in (ROOT / ".env.example").read_text().splitlines():
        if "PASSWORD" in line and not line.startswith("#"):
            assert line.endswith("="), line


def test_every_variable_that_must_be_set_is_in_the_example(compose: dict[str, Any]) -> None:
    text = (ROOT / "compose.yaml").read_text()
    example = (ROOT / ".env.example").read_text()

    for name in {found[1] for found in _VARIABLE.finditer(text) if found[2] == "?"}:
        assert re.search(rf"^{name}=", example, re.MULTILINE), name


def test_whatever_runs_on_is_watched_and_restarted(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        if name == "migrate":
            continue
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name
        assert service["restart"] == "unless-stopped", name


def test_volumes_are_declared_and_shared_where_they_must_be(compose: dict[str, Any]) -> None:
    services = compose["services"]
    mounts = {name: service.get("volumes", []) for name, service in services.items()}
    named = {mount.split(":")[0] for list_ in mounts.values() for mount in list_ if mount[0] not in "$."}

    assert named == set(compose["volumes"])
    assert mounts["gateway"][0] == mounts["control"][0] == "blobs:/var/lib/ryzanstein/blobs"
    assert mounts["gateway"][1] == mounts["control"][1] == "keys:/var/lib/ryzanstein/keys"
    assert mounts["worker"][0] == mounts["control"][2]


def test_health_checks_ask_where_the_processes_answer(services: dict[str, dict[str, Any]]) -> None:
    control = services["control"]
    test = control["healthcheck"]["test"]
    assert test[test.index("--destination") + 1] == f"control@{control['hostname']}"

    worker = services["worker"]
    port = worker["environment"][f"{PREFIX}WORKER_HEALTH_PORT"]
    assert f"http://127.0.0.1:{port}/readyz" in worker["healthcheck"]["test"][-1]

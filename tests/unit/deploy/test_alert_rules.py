"""The rules of deploy/prometheus, by promtool: each alert is raised by what it is about, and by nothing near it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from alert_cases import CASES, Case
from observability_queries import RULES, all_alerts

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULE_FILES = sorted(RULES.glob("*.yml"))


#: promtool evaluates every rule of a file at every step of every case: with the rules' own second it takes a minute.
STEP = "5s"


@pytest.fixture(scope="module")
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    return program


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def test_prometheus_takes_the_configuration_and_the_rules(promtool: str) -> None:
    done = run(promtool, "check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", *map(str, RULE_FILES))
    assert done.returncode == 0, done.stdout + done.stderr


def promtool_case(case: Case) -> dict[str, Any]:
    """A case as promtool reads it: the number of firing alerts of this name, at that moment."""
    firing = f'count(ALERTS{{alertname="{case.alert}", alertstate="firing"}}) or vector(0)'
    return {
        "interval": "5s",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "promql_expr_test": [
            {
                "expr": firing,
                "eval_time": case.at,
                "exp_samples": [{"labels": "{}", "value": int(case.is_raised)}],
            }
        ],
    }


def run_cases(promtool: str, folder: Path, cases: Sequence[Case]) -> subprocess.CompletedProcess[str]:
    """Each case against the file that its alert is in."""
    files = []
    for rules in RULE_FILES:
        alerts = {rule["alert"] for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]}
        tests = [promtool_case(case) for case in cases if case.alert in alerts]
        files.append(folder / rules.name)
        files[-1].write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": STEP, "tests": tests}))
    return run(promtool, "test", "rules", *map(str, files))


def test_alerts_are_raised_by_what_they_are_about_alone(promtool: str, tmp_path: Path) -> None:
    done = run_cases(promtool, tmp_path, CASES)

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_case_that_is_not_so_would_be_noticed(promtool: str, tmp_path: Path) -> None:
    wrong = replace(CASES[0], is_raised=not CASES[0].is_raised)

    assert run_cases(promtool, tmp_path, [wrong]).returncode == 1


def test_every_alert_has_a_case_in_which_it_is_raised_and_one_in_which_it_is_not() -> None:
    assert {case.alert for case in CASES if case.is_raised} == set(all_alerts())
    assert {case.alert for case in CASES if not case.is_raised} == set(all_alerts())


@pytest.mark.parametrize("name", all_alerts())
def test_an_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    alert = all_alerts()[name]

    assert alert["labels"]["service"] == "ryzanstein"
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}

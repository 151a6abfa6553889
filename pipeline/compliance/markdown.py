"""A report, and the table of clauses, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.compliance.controls import CONTROLS, Control, Framework
from pipeline.compliance.evidence import State
from pipeline.compliance.report import Examined, Report

_MARKS = {State.MET: "met", State.GAP: "**gap**", State.UNKNOWN: "not checked"}


def report_page(report: Report) -> str:
    return "\n".join(_report_lines(report)) + "\n"


def clause_table() -> str:
    """Each clause and the controls that serve it; for docs/security.md."""
    lines = ["| framework | clause | controls |", "| --- | --- | --- |"]
    for framework in Framework:
        for clause, controls in _by_clause(framework):
            lines.append(f"| {framework} | {_shown(framework, clause)} | {', '.join(one.id for one in controls)} |")
    return "\n".join(lines) + "\n"


def _report_lines(report: Report) -> Iterator[str]:
    yield "# Security controls and evidence"
    yield ""
    yield f"Ryzanstein {report.version}, {report.made_at:%Y-%m-%d %H:%M:%S} UTC. {report.summary}"
    yield ""
    yield "Evidence is what was seen when this was made. A report is no certificate: much is up to people, and it is an"
    yield "auditor who judges."
    yield from _list("Gaps that a setting or a person closes", _gaps(report))
    yield from _list("Gaps that this version leaves", [text for one in report.examined for text in one.control.missing])
    yield from _list("What could not be looked at", _unseen(report))
    yield from ("", "## Controls")
    for one in report.examined:
        yield from _control(one)
    yield from ("", "## Clauses", "", "| framework | clause | controls |", "| --- | --- | --- |")
    states = {one.control.id: one.state for one in report.examined}
    for framework in Framework:
        for clause, controls in _by_clause(framework):
            named = ", ".join(f"{one.id} ({states[one.id]})" for one in controls)
            yield f"| {framework} | {_shown(framework, clause)} | {named} |"


def _list(title: str, items: list[str]) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    yield from (f"- {_sentence(item)}" for item in dict.fromkeys(items)) if items else ("None.",)


def _gaps(report: Report) -> list[str]:
    return [f"{_sentence(gap.found)} {gap.advice}".strip() for one in report.examined for gap in one.gaps()]


def _unseen(report: Report) -> list[str]:
    return [
        f"{_sentence(evidence.found)} {evidence.advice}".strip()
        for one in report.examined
        for evidence in one.evidence
        if evidence.state is State.UNKNOWN
    ]


def _control(one: Examined) -> Iterator[str]:
    control = one.control
    yield from ("", f"### {control.title}", "")
    clauses = [f"{framework} {_joined(framework, control)}" for framework in Framework if control.clauses(framework)]
    yield f"`{control.id}`: {one.state}. {'; '.join(clauses)}."
    yield from ("", control.statement, "")
    for evidence in one.evidence:
        yield f"- {_MARKS[evidence.state]}: {evidence.found}"
    yield from (f"- not in this version: {text}" for text in control.missing)
    yield from (f"- yours: {text}" for text in control.duties)


def _joined(framework: Framework, control: Control) -> str:
    return ", ".join(_shown(framework, clause) for clause in control.clauses(framework))


def _shown(framework: Framework, clause: str) -> str:
    return {Framework.SOC2: clause, Framework.GDPR: f"Art. {clause}", Framework.HIPAA: f"§ {clause}"}[framework]


def _by_clause(framework: Framework) -> list[tuple[str, list[Control]]]:
    clauses = sorted({clause for control in CONTROLS for clause in control.clauses(framework)}, key=_order)
    return [(clause, [one for one in CONTROLS if clause in one.clauses(framework)]) for clause in clauses]


def _order(clause: str) -> list[tuple[int, str]]:
    """Numbers by their size: Art. 5 is before Art. 17."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", clause)]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")

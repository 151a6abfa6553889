"""Runs seeded fault schedules on one real stack, for a time (`make soak`) or for a number, and reports what was found.

Schedule number `n` has the seed `--seed` + n, so `--seed THAT --schedules 1` runs one of them again. With `--results`,
each schedule is a line of JSON in that file, and a run that was interrupted goes on after the last one; with `--folder`
the data of the stack stay there. Exit code 1 on any violation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from faults import Fault, stack_faults
from harness import Chaos, Report, Violation, running
from memory import MemoryWatch
from model_folders import random_llama
from real_group import real_faults
from reporting import summarize
from schedules import Schedule

#: Without faults the stack is to work as hard as it can.
FULL_SPEED = {"RYZANSTEIN_ECHO_TOKENS_PER_SECOND": "0", "RYZANSTEIN_SLICE_REQUESTS": "200"}


def main() -> int:
    options = _parse()
    # In the background of a shell, SIGINT is ignored; whichever comes, the stack must not outlive this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="ryzanstein-soak-", ignore_cleanup_errors=True) as folder:
        try:
            reports, memory = _soak(options, options.folder or Path(folder))
        except KeyboardInterrupt:
            return 130
        except Violation as error:  # of the audit, when the stack ends
            print(f"VIOLATION {error}")
            return 1
    print(summarize(reports))
    if memory is not None:
        print(memory.summary())
    return int(any(report.violations for report in reports) or (memory is not None and bool(memory.grown())))


def _soak(options: argparse.Namespace, folder: Path) -> tuple[list[Report], MemoryWatch | None]:
    faults = _chosen(options.faults)
    print(f"seed {options.seed}, faults: {len(faults)} kinds", flush=True)
    model = folder / "models" / "tiny"
    if not model.exists():
        random_llama(model)
    reports: list[Report] = []
    memory = MemoryWatch() if not faults else None
    env = FULL_SPEED if not faults else {}
    with ExitStack() as stacks:
        for number, seed in enumerate(_seeds(options)):
            if number % options.restart_every == 0:
                stacks.close()  # its data stay, and the next one goes on with them
                arguments = ("--engine", options.engine, "--groups", str(options.groups))
                chaos = stacks.enter_context(
                    running(folder / "stack", model, *arguments, has_real_group=bool(faults), **env)
                )
                if memory is not None:
                    memory.watch(chaos.stack)
            if chaos.real_group is not None:
                chaos.real_group.refresh()
            reports.append(_run(chaos, seed, faults, options))
            if memory is not None:
                memory.look()
            if reports[-1].violations and not options.keep_going:
                print(chaos.stack.logs(), file=sys.stderr)
                break
    return reports, memory


def _seeds(options: argparse.Namespace) -> Iterator[int]:
    """The seeds of the schedules still to run, until the time is over or the number reached."""
    first = options.seed + _num_done(options.results)
    end = time.monotonic() + options.seconds if options.schedules is None else None
    last = None if options.schedules is None else options.seed + options.schedules
    seed = first
    while (end is None or time.monotonic() < end) and (last is None or seed < last):
        yield seed
        seed += 1


def _num_done(results: Path | None) -> int:
    return len(results.read_text().splitlines()) if results is not None and results.exists() else 0


def _run(chaos: Chaos, seed: int, faults: list[Fault], options: argparse.Namespace) -> Report:
    schedule = Schedule.random(seed, faults, num_requests=options.requests, max_faults=options.max_faults)
    report = chaos.run(schedule)
    faults_hit = ", ".join(f"{hit.fault} at {hit.at}" for hit in report.hits) or "no fault"
    print(f"{seed}: {report.seconds:5.1f} s  {faults_hit}", flush=True)
    for violation in report.violations:
        print(f"{seed}: VIOLATION {violation}", flush=True)
    if options.results is not None:
        with options.results.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(report)) + "\n")
    return report


def _chosen(names: str) -> list[Fault]:
    faults = [*stack_faults(), *real_faults()]
    if names == "all":
        return faults
    wanted = [] if names == "none" else names.split(",")
    known = {fault.name: fault for fault in faults}
    if unknown := [name for name in wanted if name not in known]:
        raise SystemExit(f"There is no fault {unknown[0]!r}. The faults are: {', '.join(known)}.")
    return [known[name] for name in wanted]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=time.time_ns() // 10**9, help="of the first schedule; the time")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to go on")
    parser.add_argument("--schedules", type=int, help="how many to run, in place of a time")
    parser.add_argument("--requests", type=int, default=100, help="of a schedule, over both tenants")
    parser.add_argument("--max-faults", type=int, default=3, help="of a schedule")
    parser.add_argument("--faults", default="all", help="all, none (memory is watched then), or names with commas")
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--engine", default="echo", choices=("echo", "native"), help="of the groups")
    parser.add_argument("--restart-every", type=int, default=250, help="schedules after which the stack is a new one")
    parser.add_argument("--results", type=Path, help="file of JSON lines to append to, and to go on from")
    parser.add_argument("--folder", type=Path, help="where the stack's data stay; else a temporary folder")
    parser.add_argument("--keep-going", action="store_true", help="after a violation")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers import PEERS, preload
from benchmarks.runs import Job, RunError, make_runs, run_job


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def job() -> Job:
    runs = make_runs("W1", num_runs=2)
    return Job(
        model="there",
        dtype="bfloat16",
        num_threads=2,
        tp=1,
        max_length=runs[0].max_length,
        shares_prefixes=False,
        runs=runs,
    )


def test_a_run_answers_with_its_last_line_of_json() -> None:
    code = 'import sys; print("loading"); print(\'{"seconds": [1.0]}\'); print("bye")'
    assert run_job(python(code), "{}", {}) == {"seconds": [1.0]}


def test_a_run_reads_its_job_and_sees_its_variables() -> None:
    code = (
        "import json, os, sys; job = json.load(open(sys.argv[1])); print(json.dumps([job, os.environ['WANTED']]));"
        "print(json.dumps({'number': job['number'], 'wanted': os.environ['WANTED']}))"
    )
    assert run_job(python(code), '{"number": 7}', {"WANTED": "yes"}) == {"number": 7, "wanted": "yes"}


def test_a_run_that_fails_says_what_it_wrote_last() -> None:
    with pytest.raises(RunError, match=r"status 3(.|\n)*no such model"):
        run_job(python("import sys; print('no such model', file=sys.stderr); sys.exit(3)"), "{}", {})


def test_a_run_without_an_answer_has_failed() -> None:
    with pytest.raises(RunError, match="status 0"):
        run_job(python("pass"), "{}", {})


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_benchmark_that_is_interrupted_leaves_nothing_running(ending: signal.Signals, tmp_path: Path) -> None:
    pipe = tmp_path / "alive"
    os.mkfifo(pipe)
    # Both hold the pipe open, as they hold a peer's memory.
    sleeper = "import time; print(1, flush=True); time.sleep(600)"
    runner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}])"
    code = (
        "import signal, sys; from benchmarks.runs import run_job;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"run_job(['sh', '-c', 'exec \"$0\" -c \"$1\" > {pipe}', sys.executable, {runner!r}], '{{}}', {{}})"
    )
    benchmark = subprocess.Popen(python(code), stderr=subprocess.DEVNULL)
    with pipe.open("rb") as alive:
        assert alive.readline() == b"1\n"
        benchmark.send_signal(ending)
        assert benchmark.wait(timeout=60)
        assert alive.read() == b""  # its end comes when nobody is left to write


def test_a_job_holds_a_warm_up_and_every_run_with_tokens_of_its_own() -> None:
    encoded = json.loads(job().encoded())
    prompts = [tuple(map(tuple, (request["prompt_token_ids"] for request in run))) for run in encoded["runs"]]
    assert len(prompts) == len(set(prompts)) == 3
    assert {len(run) for run in prompts} == {32}
    assert encoded["runs"][0][0]["max_tokens"] == 64


def test_the_peer_gets_the_cores_and_libraries_that_make_it_fastest() -> None:
    variables = PEERS["vllm-cpu"].variables(job())
    assert variables["OMP_NUM_THREADS"] == "2"
    assert len(variables["VLLM_CPU_OMP_THREADS_BIND"].split(",")) <= 2
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_libraries_are_preloaded_before_those_that_are_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "theirs.so")
    assert preload("first.so", None, "second.so") == {"LD_PRELOAD": "first.so:second.so:theirs.so"}
    monkeypatch.delenv("LD_PRELOAD")
    assert preload(None) == {}

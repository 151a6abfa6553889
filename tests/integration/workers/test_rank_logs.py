"""What a rank says of itself, in the log that it shares with its group."""

from __future__ import annotations

import json
import subprocess
import sys
from multiprocessing import Pipe

CANARY = "canary-of-a-prompt"


def test_a_rank_that_fails_logs_as_its_group_does_and_repeats_nothing_that_it_was_sent() -> None:
    ours, its = Pipe()
    lifeline_reader, lifeline_writer = Pipe(duplex=False)
    argv = [sys.executable, "-P", "-m", "workers.rank", "--rank", "1", "--log-format", "json"]
    argv += ["--parent", str(its.fileno()), "--lifeline", str(lifeline_reader.fileno())]
    ours.send_bytes(json.dumps([CANARY, {"prompt": CANARY}]).encode())
    done = subprocess.run(
        argv, pass_fds=[its.fileno(), lifeline_reader.fileno()], capture_output=True, text=True, timeout=60
    )
    told = ours.recv_bytes()
    lifeline_writer.close()

    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["process"], line["rank"], line["level"]) == ("rank", 1, "error")
    assert line["event"] == "the rank failed"
    assert "Traceback" not in done.stdout
    assert "Error" in line["exception"]
    assert CANARY not in done.stderr
    assert CANARY.encode() not in told

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from seeds import seed_batch, seed_model, seed_tenant
from sqlalchemy import Engine, text
from tokenizer_folders import byte_level

MAX_BYTES = 300 * 1024**2


@pytest.mark.parametrize(
    ("kind", "num_requests", "num_errors"),
    [("one_line", 0, 1), ("many_lines", 50_000, 0), ("long_lines", 1, 49)],
)
def test_memory_is_bounded_for_200_megabytes(
    database: Engine, tmp_path: Path, kind: str, num_requests: int, num_errors: int
) -> None:
    seed_model(database, path=str(byte_level(tmp_path)))
    with database.begin() as conn:  # so long that no prompt is refused for its bytes alone
        conn.execute(text("UPDATE served_models SET context_length = 131072"))
    batch_id = seed_batch(database, seed_tenant(database), [])
    url = database.url.render_as_string(hide_password=False)
    script = Path(__file__).with_name("intake_memory.py")
    done = subprocess.run(
        [sys.executable, script, url, batch_id, kind], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    peak_bytes = found.pop("peak_bytes")
    assert found == {"requests": num_requests, "errors": num_errors}
    assert peak_bytes < MAX_BYTES

"""What a person reads who starts an engine with a model that can't be run; nothing may be left running."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_folders import edit_config, random_llama
from running_engines import answer, engine_children, make_request, wait_until
from safetensors.torch import load_file, save_file

from workers.backends.native import EngineOptions, NativeEngine
from workers.backends.protocol import EngineStartError, EngineState, OutcomeStatus


def start_error(folder: Path, **options: object) -> str:
    engine = NativeEngine(EngineOptions(model_path=str(folder), **options))  # type: ignore[arg-type]
    with pytest.raises(EngineStartError) as caught:
        engine.start()
    assert engine_children() == []
    assert engine.health().state is EngineState.STOPPED
    assert engine.health().rank_pids == []
    engine.stop()
    return str(caught.value)


def drop_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors")


def reshape_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(63)
    save_file(weights, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def poison(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][5] = float("nan")
    save_file(weights, folder / "model.safetensors")


def break_the_library(folder: Path) -> None:
    path = folder / "tokenizer.json"
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": normalizer}))


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: edit_config(folder, num_local_experts=8), ["num_local_experts", "8"]),
        (drop_tensor, ["model.layers.1.mlp.down_proj.weight"]),
        (reshape_tensor, ["model.norm.weight", "63", "64"]),
        (truncate, ["model.safetensors"]),
        (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json"]),
        (poison, ["not finite"]),
        (break_the_library, ["tokenizer.json", "broke down"]),
        (pickle_weights, ["pytorch_model.bin, a pickle", "Convert it to safetensors"]),
    ],
    ids=["experts", "missing-tensor", "wrong-shape", "truncated", "no-tokenizer", "not-finite", "panic", "pickle"],
)
def test_a_folder_that_can_not_be_run_is_refused_with_its_reason(
    tmp_path: Path, damage: Callable[[Path], None], said: list[str]
) -> None:
    damage(random_llama(tmp_path))
    message = start_error(tmp_path)
    assert all(part in message for part in said), message


def test_the_rank_that_knows_why_is_the_one_that_is_quoted(tmp_path: Path) -> None:
    drop_tensor(random_llama(tmp_path))
    assert "model.layers.1.mlp.down_proj.weight" in start_error(tmp_path, tp=2)


def test_a_model_that_can_not_be_split_so_is_refused(tmp_path: Path) -> None:
    message = start_error(random_llama(tmp_path), tp=3)
    assert "num_attention_heads" in message
    assert "3 ranks" in message


def test_a_cache_larger_than_memory_is_refused(tmp_path: Path) -> None:
    assert "kv_cache_tokens" in start_error(random_llama(tmp_path), kv_cache_tokens=10**12)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named(tmp_path: Path) -> None:
    assert "needs 1 GPUs, but 0 are visible" in start_error(random_llama(tmp_path), device="cuda")


def test_a_start_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    assert "was not ready after 0.05 seconds" in start_error(random_llama(tmp_path), start_seconds=0.05)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tp", 0), ("device", "tpu"), ("kv_cache_tokens", -1), ("step_seconds", 0.0), ("step_seconds", float("nan"))],
)
def test_a_wrong_option_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        EngineOptions(model_path="model", **{name: value})  # type: ignore[arg-type]


def test_the_cache_is_sized_by_itself_and_never_beyond_use(tmp_path: Path) -> None:
    engine = NativeEngine(EngineOptions(model_path=str(random_llama(tmp_path)), max_num_sequences=3, dtype="bfloat16"))
    engine.start()
    try:
        assert engine.load().num_kv_tokens == 3 * 128
        assert answer(engine, make_request("r", [3, 4]))["r"].status is OutcomeStatus.FINISHED
        with pytest.raises(EngineStartError, match="once"):
            engine.start()
    finally:
        engine.stop()
    wait_until(lambda: engine_children() == [], "its processes to be gone")
    engine.stop()
    assert engine.health().state is EngineState.STOPPED
    engine.submit(make_request("late", [3]))
    assert engine.take_outcomes(1, timeout=1.0)[0].status is OutcomeStatus.CRASHED


def test_a_rank_is_told_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RYZANSTEIN_DATABASE_URL", "postgresql://user:hunter2@host/db")
    engine = NativeEngine(EngineOptions(model_path=str(random_llama(tmp_path))))
    engine.start()
    try:
        pids = [child.pid for child in engine_children()]
        assert len(pids) == 2
        for pid in pids:
            assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
            assert b"hunter2" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    finally:
        engine.stop()


def test_a_folder_of_the_same_name_where_the_command_is_given_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_llama(tmp_path / "model")
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    engine = NativeEngine(EngineOptions(model_path=str(folder)))
    engine.start()
    engine.stop()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def test_the_parent_of_the_ranks_needs_no_torch() -> None:
    code = "import sys, workers.backends.native; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

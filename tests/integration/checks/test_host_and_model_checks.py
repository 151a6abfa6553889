"""Each finding about packages, models and the machine, with the real thing broken."""

from __future__ import annotations

import json
import os
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from seeds import MODEL, seed_model, sql
from sqlalchemy import Engine
from tokenizer_folders import byte_level

from pipeline.checks.findings import Finding, Verdict
from pipeline.checks.host import (
    check_large_pages,
    check_open_files,
    check_port,
    check_shared_memory,
    check_signing_key,
    check_webhooks,
)
from pipeline.checks.model_files import check_model
from pipeline.checks.packages import check_packages
from pipeline.doctor import _flower, _gateway, _postgresql, _storage
from pipeline.settings import PREFIX, Settings, get_settings
from pipeline.signing import signing_key
from pipeline.telemetry.watch_server import WatchHandler, WatchServer


def the_only(findings: Iterator[Finding]) -> tuple[Verdict, str]:
    [finding] = findings
    assert (finding.verdict is Verdict.OK) == (finding.advice == ""), "whoever is told of a fault is told what to do"
    return finding.verdict, finding.detail


# --- packages


def test_packages_that_do_not_fit_are_named_with_what_is_wanted() -> None:
    assert the_only(check_packages())[0] is Verdict.OK
    wrong = list(check_packages(["redis>=99", "no-such-package>=1", 'torch<1; extra == "old"', "celery[redis]>=5"]))
    assert [one.subject for one in wrong] == ["package redis", "package no-such-package"]
    assert all(one.verdict is Verdict.FAILED for one in wrong)
    assert "is installed, and >=99 is wanted" in wrong[0].detail
    assert wrong[1].detail == "is not installed, and >=1 is wanted"


def test_a_release_that_is_known_to_be_bad_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.checks.packages._KNOWN_BAD", (("kombu>=5", "it loses things"),))
    verdict, detail = the_only(check_packages())
    assert verdict is Verdict.FAILED
    assert detail.endswith("is installed: it loses things")


# --- models


def safetensors(path: Path, num_bytes: int = 64) -> Path:
    header = json.dumps({"w": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(num_bytes))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two files of weights and their index."""
    folder = byte_level(tmp_path / "tiny")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        safetensors(folder / name)
    index = {"weight_map": {f"layer.{number}.w": name for number, name in enumerate([*names, *names])}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_whole_model_is_fine(model: Path) -> None:
    verdict, detail = the_only(check_model("model tiny", str(model)))
    assert verdict is Verdict.OK
    assert "2 files of weights" in detail


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "00002.safetensors is missing"),
        (lambda folder: os.truncate(folder / "model-00001-of-00002.safetensors", 100), "lacks"),
        (lambda folder: os.truncate(folder / "model-00001-of-00002.safetensors", 5), "is no file of safetensors"),
        (lambda folder: (folder / "model-00001-of-00002.safetensors").write_bytes(b"<html>" * 99), "is no file of"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "can't be read"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "can't be read"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "Expecting"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer"),
    ],
)
def test_a_model_that_is_not_whole_is_told_of(model: Path, damage: Callable[[Path], object], told: str) -> None:
    damage(model)
    verdict, detail = the_only(check_model("model tiny", str(model)))
    assert verdict is Verdict.FAILED
    assert told in detail


def test_a_model_without_weights_is_for_the_echo_engine(tmp_path: Path) -> None:
    verdict, detail = the_only(check_model("model tiny", str(byte_level(tmp_path / "tiny"))))
    assert verdict is Verdict.WARNING
    assert "no .safetensors" in detail


# --- groups


def test_groups_that_are_silent_or_degraded_are_told_of(database: Engine, model: Path) -> None:
    seed_model(database, path=str(model))
    for name, state, age in (("a", "ready", 0), ("b", "ready", 3600), ("c", "degraded", 0), ("d", "stopped", 3600)):
        sql(
            database,
            "INSERT INTO groups (id, model, state, reason, pid, rank_pids, info, heartbeat_at) VALUES"
            " (:id, :model, :state, 'it crashed', 1, '[]', '{}', now() - make_interval(secs => :age))",
            id=name,
            model=MODEL,
            state=state,
            age=age,
        )
    found = {one.subject: one for one in _postgresql(get_settings()) if one.subject.startswith(("model", "group"))}
    assert found.keys() == {f"model {MODEL}", "group b", "group c", "groups"}
    assert "has said nothing for 3600 s" in found["group b"].detail
    assert found["group c"].detail == "is degraded: it crashed"
    assert found["groups"].detail == "1 ready"


# --- the machine


@contextmanager
def limited(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_few_open_files_are_told_of() -> None:
    with limited(1_024):
        verdict, detail = the_only(check_open_files())
    assert verdict is Verdict.WARNING
    assert "may open 1024" in detail
    with limited(min(8_192, resource.getrlimit(resource.RLIMIT_NOFILE)[1])):
        assert the_only(check_open_files())[0] is Verdict.OK


def test_no_room_for_shared_memory_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert the_only(check_shared_memory(tmp_path / "none"))[0] is Verdict.WARNING
    monkeypatch.setattr("pipeline.checks.host._SHARED_BYTES", 2**60)
    verdict, detail = the_only(check_shared_memory(tmp_path))
    assert verdict is Verdict.WARNING
    assert "MiB are free" in detail


def test_a_system_without_large_pages_is_told_of(tmp_path: Path) -> None:
    setting = tmp_path / "enabled"
    assert list(check_large_pages(setting)) == []
    for chosen, verdict in (("always madvise [never]", Verdict.WARNING), ("always [madvise] never", Verdict.OK)):
        setting.write_text(f"{chosen}\n")
        assert the_only(check_large_pages(setting))[0] is verdict


def test_a_port_that_something_else_has_is_told_of() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            verdict, detail = the_only(check_port("gateway port", host, port, "GATEWAY_PORT"))
            assert verdict is Verdict.WARNING
            assert str(port) in detail
    assert not list(check_port("gateway port", "127.0.0.1", port, "GATEWAY_PORT"))
    assert not list(check_port("gateway port", "127.0.0.1", 0, "GATEWAY_PORT"))


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server whose every answer has this status, by its port."""

    class Handler(WatchHandler):
        def do_GET(self) -> None:
            self.send(status, "text/plain", b"")

    with WatchServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_gateway_that_is_not_ready_is_not_taken_for_another_program() -> None:
    def told(status: int) -> list[tuple[str, Verdict, str]]:
        with answering(status) as port:
            settings = Settings(base_url=f"http://127.0.0.1:{port}/v1", gateway_port=port)
            return [(one.subject, one.verdict, one.detail.rpartition("/")[2]) for one in _gateway(settings)]

    assert told(200) == [("gateway", Verdict.OK, "v1 is ready")]
    assert told(503) == [("gateway", Verdict.WARNING, "v1 is not ready")]
    assert [subject for subject, _, _ in told(404)] == ["gateway", "gateway port"]


def test_a_flower_that_asks_for_its_password_is_there() -> None:
    for status, subjects in ((200, ["flower"]), (401, ["flower"]), (404, ["flower", "flower port"])):
        with answering(status) as port:
            found = list(_flower(Settings(flower_port=port)))
        assert [one.subject for one in found] == subjects
        assert (found[0].verdict is Verdict.OK) == (len(subjects) == 1)


def test_a_signing_key_that_others_can_read_or_nobody_can_use_is_told_of(tmp_path: Path) -> None:
    settings = Settings(signing_key_file=tmp_path / "key.pem")
    assert "is made when" in the_only(check_signing_key(settings))[1]
    key = signing_key(settings)
    assert the_only(check_signing_key(settings)) == (Verdict.OK, f"{tmp_path}/key.pem, key {key.key_id}")
    (tmp_path / "key.pem").chmod(0o644)
    verdict, detail = the_only(check_signing_key(settings))
    assert verdict is Verdict.FAILED
    assert "mode 644" in detail
    (tmp_path / "bad.pem").write_text("nonsense")
    bad = Settings(signing_key_file=tmp_path / "bad.pem")
    assert "holds no Ed25519 key" in the_only(check_signing_key(bad))[1]
    assert "There is no signing key" in the_only(check_signing_key(Settings()))[1]


def test_webhooks_that_reach_this_machine_or_go_unprotected_are_told_of() -> None:
    assert the_only(check_webhooks(Settings()))[0] is Verdict.OK
    assert list(check_webhooks(Settings(webhook_private_networks="10.0.0.0/8"))) == []
    for networks in ("127.0.0.0/8", "0.0.0.0/0", "169.254.0.0/16", "::/0"):
        verdict, detail = the_only(check_webhooks(Settings(webhook_private_networks=networks)))
        assert verdict is Verdict.WARNING
        assert networks in detail
    assert "http://" in the_only(check_webhooks(Settings(webhook_http=True)))[1]


def test_storage_that_gives_back_other_bytes_is_told_of(
    settings_env: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings_env.setenv(f"{PREFIX}STORAGE_URL", f"file://{tmp_path}/blobs")
    get_settings.cache_clear()
    assert next(_storage(get_settings())).verdict is Verdict.OK
    assert not list((tmp_path / "blobs").glob("probe-*"))
    monkeypatch.setattr("pipeline.storage.stream_blob", lambda key: iter([b"other"]))
    verdict, detail = the_only(_storage(get_settings()))
    assert verdict is Verdict.FAILED
    assert "other bytes" in detail
    assert not list((tmp_path / "blobs").glob("probe-*"))

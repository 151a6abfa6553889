from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.model_folder import ModelNotFound, resolve_model


def test_a_local_folder_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert resolve_model(str(folder)) == folder.resolve()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("owner/name") == folder.resolve()  # before the hub is asked


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "has no config.json"),
        ("no-such-model", "neither a folder nor a name of the form owner/name"),
        ("a/b/c", "neither a folder nor a name of the form owner/name"),
        ("../up", "neither a folder nor a name of the form owner/name"),
        ("owner/na me", "neither a folder nor a name of the form owner/name"),
    ],
)
def test_what_can_be_no_model_is_refused_without_a_network(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound) as refusal:
        resolve_model(name)
    assert message in str(refusal.value)
    assert isinstance(refusal.value, UserError)


def test_a_folder_or_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "weights").write_text("")
    with pytest.raises(ModelNotFound, match="weights is a file"):
        resolve_model(str(tmp_path / "weights"))


def test_a_hub_that_can_not_be_reached_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="could not be fetched from the Hugging Face hub"):
        resolve_model("owner/name")

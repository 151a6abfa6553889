from __future__ import annotations

import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from pipeline.settings import Settings
from pipeline.signing import SigningKeyError, key_id_of, signing_key, verify


def settings(path: Path) -> Settings:
    return Settings(signing_key_file=path)


def test_a_signature_is_checked_by_the_public_key_alone(tmp_path: Path) -> None:
    key = signing_key(settings(tmp_path / "key.pem"))
    signature = key.sign(b"what was said")

    assert verify(key.public_key_text, b"what was said", signature)
    assert not verify(key.public_key_text, b"what was not", signature)
    assert not verify(key.public_key_text, b"what was said", signature[:-1])
    other = signing_key(settings(tmp_path / "other.pem"))
    assert not verify(other.public_key_text, b"what was said", signature)
    assert key.key_id == key_id_of(key.public_key_text) != other.key_id


def test_the_key_is_kept_in_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    made = signing_key(settings(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["key.pem"]
    copy = tmp_path / "copy.pem"
    shutil.copy(path, copy)
    assert signing_key(settings(copy)).public_key_text == made.public_key_text
    assert "PRIVATE" not in repr(made)


def test_of_many_who_make_the_key_at_once_all_get_the_same(tmp_path: Path) -> None:
    from pipeline.signing import _load

    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: _load.__wrapped__(tmp_path / "key.pem").key_id, range(8)))
    assert len(set(keys)) == 1


def test_the_data_folder_has_the_key_where_no_file_is_named(tmp_path: Path) -> None:
    assert signing_key(Settings(data_dir=tmp_path)).sign(b"")
    assert (tmp_path / "signing_key.pem").exists()
    with pytest.raises(ConfigurationError, match="RYZANSTEIN_SIGNING_KEY_FILE"):
        signing_key(Settings())


@pytest.mark.parametrize("content", ["", "nothing", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_holds_no_key_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key.pem"
    path.write_text(content)
    with pytest.raises(SigningKeyError, match=r"holds no Ed25519 key"):
        signing_key(settings(path))
    assert path.read_text() == content
    with pytest.raises(SigningKeyError, match="no public Ed25519 key"):
        verify(content, b"", b"")


def test_a_place_where_nothing_can_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(SigningKeyError, match=r"none/key.pem can't be read or made: No such file"):
        signing_key(settings(tmp_path / "none" / "key.pem"))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_openssl_accepts_a_signature(tmp_path: Path) -> None:
    key = signing_key(settings(tmp_path / "key.pem"))
    (tmp_path / "public.pem").write_text(key.public_key_text)
    (tmp_path / "data").write_bytes(b"what was said")
    (tmp_path / "signature").write_bytes(key.sign(b"what was said"))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin", "-in", "data"]
    done = subprocess.run(
        [*command, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Verified Successfully" in done.stdout + done.stderr

"""Signatures that others can check: Ed25519, by a key that this installation keeps in one file.

What is signed leaves the service: receipts, records of erasure. The file holds the private key in PEM (PKCS 8),
readable by its owner alone; it is made where it is not there yet. The public key is shown as PEM too, as `openssl`
reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pipeline.errors import ConfigurationError, UserError
from pipeline.settings import PREFIX, Settings, get_settings

#: In the data folder, where the setting names no other file.
KEY_FILE: Final = "signing_key.pem"
#: Bytes of a signature.
SIGNATURE_BYTES: Final = 64


class SigningKeyError(UserError):
    """The signing key can't be used."""


@dataclass(frozen=True)
class SigningKey:
    """A private key; its text never leaves it."""

    private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"

    @cached_property
    def public_key_text(self) -> str:
        """The public key in PEM, for whoever checks signatures."""
        encoded = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return encoded.decode()

    @cached_property
    def key_id(self) -> str:
        """Names the key: 16 hex digits of the SHA-256 of the public one."""
        return key_id_of(self.public_key_text)

    def sign(self, data: bytes) -> bytes:
        """64 bytes, the same for the same data."""
        return self.private.sign(data)

    def derive(self, purpose: str, num_bytes: int) -> bytes:
        """A secret for this purpose alone, the same whenever it is asked for (HKDF with SHA-256)."""
        derived = HKDF(algorithm=hashes.SHA256(), length=num_bytes, salt=None, info=purpose.encode())
        return derived.derive(self.private.private_bytes_raw())


def signing_key(settings: Settings | None = None) -> SigningKey:
    """The key of this installation, made on first use. Raises SigningKeyError, ConfigurationError."""
    return _load(key_path(settings or get_settings()))


def sign(data: bytes) -> bytes:
    """Sign with the key of this installation; see `signing_key`."""
    return signing_key().sign(data)


def public_key_text(settings: Settings | None = None) -> str:
    """The public key of this installation in PEM; see `signing_key`."""
    return signing_key(settings).public_key_text


def verify(public_key: str, data: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `data` by the key whose public half is `public_key`, a text in PEM.

    Raises SigningKeyError for a text that is no such key.
    """
    try:
        _public_key(public_key).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def key_id_of(public_key: str) -> str:
    """The name of a key by its public half in PEM. Raises SigningKeyError."""
    raw = _public_key(public_key).public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def _public_key(text: str) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(text.encode())
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise SigningKeyError("This is no public Ed25519 key in PEM (-----BEGIN PUBLIC KEY-----).")
    return key


def key_path(settings: Settings) -> Path:
    """Where the key of this installation is kept. Raises ConfigurationError where no place is set."""
    if settings.signing_key_file is not None:
        return settings.signing_key_file
    if settings.data_dir is not None:
        return settings.data_dir / KEY_FILE
    raise ConfigurationError(
        f"There is no signing key. Set {PREFIX}SIGNING_KEY_FILE to a file that all processes share; it is made where "
        "it is not there."
    )


@lru_cache(maxsize=4)
def _load(path: Path) -> SigningKey:
    try:
        if not path.exists():
            _create(path)
        text = path.read_bytes()
    except OSError as error:
        raise SigningKeyError(f"The signing key {path} can't be read or made: {error.strerror}.") from None
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(
            f"{path} holds no Ed25519 key in PEM without a password. Restore it: what it has signed can be checked by "
            "its public key alone, but nothing else can sign in its name."
        )
    return SigningKey(key)


def _create(path: Path) -> None:
    """Of processes that do this at once one makes the key, and all of them then read that one."""
    encoded = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # never over a key that is there
    finally:
        draft.unlink(missing_ok=True)

"""An authority for one run of the tests, and certificates that it has signed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CONFIG = """
[req]
distinguished_name = name
prompt = no
x509_extensions = authority
[name]
CN = tests
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical,CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:{host}
"""


@dataclass(frozen=True)
class Certificate:
    """Both files in PEM."""

    path: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """Signs certificates for hosts; `path` is what its clients trust."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        folder.mkdir(parents=True)
        authority = cls(folder)
        authority._configure("nobody")
        authority._run("req", "-x509", *authority._new_key("ca.key"), "-out", "ca.pem", "-days", "2")
        return authority

    @property
    def path(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, host: str) -> Certificate:
        """A certificate for this DNS name."""
        self._configure(host)
        self._run("req", "-new", *self._new_key(f"{host}.key"), "-out", "request.csr")
        self._run(
            *("x509", "-req", "-in", "request.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", "openssl.cnf", "-extensions", "leaf", "-out", f"{host}.pem"),
        )
        return Certificate(self.folder / f"{host}.pem", self.folder / f"{host}.key")

    def _configure(self, host: str) -> None:
        (self.folder / "openssl.cnf").write_text(_CONFIG.format(host=host))

    @staticmethod
    def _new_key(name: str) -> list[str]:
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        return [*curve, "-nodes", "-keyout", name, "-config", "openssl.cnf"]

    def _run(self, *args: str) -> None:
        program = shutil.which("openssl")
        assert program is not None, "these tests make certificates with the program openssl: install it"
        done = subprocess.run([program, *args], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

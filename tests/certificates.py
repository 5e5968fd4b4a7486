"""A certificate authority for tests, made by openssl: keys and certificates of nodes, good and bad."""

import hashlib
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(
    OPENSSL is None, reason="openssl is not installed (apt-get install openssl)"
)


@dataclass(frozen=True)
class Identity:
    """A key and a certificate."""

    certificate: Path
    key: Path

    @property
    def sha256(self) -> str:
        """Of the certificate's DER."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate.read_text())).hexdigest()


class Authority:
    """Signs certificates; `certificate` is its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self.certificate = directory / "ca.pem"
        self._key = directory / "ca.key"
        _openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test authority",
            "-keyout", self._key, "-out", self.certificate,
        )  # fmt: skip

    def issue(self, name: str, days: int = 60, address: str = "127.0.0.1") -> Identity:
        """A node's certificate for `address`, valid from now for `days`."""
        key, request, certificate, extension = (
            self._directory / f"{name}.{ending}" for ending in ("key", "csr", "pem", "ext")
        )
        extension.write_text(f"subjectAltName=IP:{address}\n")
        _openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request
        )
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
            "-days", str(days), "-extfile", extension, "-out", certificate,
        )  # fmt: skip
        return Identity(certificate, key)


def _openssl(*arguments: str | Path) -> None:
    assert OPENSSL is not None
    subprocess.run([OPENSSL, *map(str, arguments)], check=True, capture_output=True, timeout=60)

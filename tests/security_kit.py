"""Certificates and tokens for tests: an authority, what it signs, and what is wrong with some of it."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tolserve.transport.security import Security

TOKEN = "a-token-for-tests"


@dataclass(frozen=True)
class Authority:
    """Signs certificates, which it writes into a folder as NAME.crt and NAME.key."""

    folder: Path
    name: str = "authority"

    def __post_init__(self) -> None:
        self._write(self.name, days=30, host="127.0.0.1", is_authority=True)

    @property
    def path(self) -> str:
        """Its own certificate."""
        return str(self.folder / f"{self.name}.crt")

    def issue(self, name: str, *, days: int = 30, host: str = "127.0.0.1") -> tuple[str, str]:
        """Paths of a certificate that holds for `days` from now (negative: it has expired) and `host`, and its key."""
        self._write(name, days=days, host=host, is_authority=False)
        return str(self.folder / f"{name}.crt"), str(self.folder / f"{name}.key")

    def security(self, name: str = "node", *, token_file: str | None = None, tls_name: str = "") -> Security:
        """Settings with a certificate of this authority."""
        cert, key = self.issue(name, host=tls_name or "127.0.0.1")
        return Security(tls_cert=cert, tls_key=key, tls_ca=self.path, token_file=token_file, tls_name=tls_name)

    def _write(self, name: str, *, days: int, host: str, is_authority: bool) -> None:
        x509 = pytest.importorskip("cryptography.x509")
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer, signer = subject, key
        if not is_authority:
            issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.name)])
            pem = (self.folder / f"{self.name}.key").read_bytes()
            signer = serialization.load_pem_private_key(pem, None)
        now = datetime.datetime.now(datetime.UTC)
        until = now + datetime.timedelta(days=days)
        alternative = x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, until) - datetime.timedelta(days=1))
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .sign(signer, hashes.SHA256())
        )
        (self.folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (self.folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


@contextlib.contextmanager
def security() -> Iterator[Security]:
    """Certificates and a token that fit."""
    with tempfile.TemporaryDirectory(prefix="tol-certificates-") as name:
        folder = Path(name)
        (folder / "token").write_text(TOKEN + "\n")
        yield Authority(folder).security(token_file=str(folder / "token"))

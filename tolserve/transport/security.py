"""How the two ends of the row path prove who they are: certificates and a token, each from a file."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from tolserve.transport.errors import SecurityError

MAX_TOKEN_BYTES = 512
_NO_PASSWORD = "no password is ever asked for"  # noqa: S105 - what an encrypted key is tried with


@dataclass(frozen=True, kw_only=True)
class Pems:
    """Certificate chain, private key and authorities, as PEM."""

    cert: bytes
    key: bytes
    authorities: bytes


@dataclass(frozen=True, kw_only=True)
class Security:
    """Files that a memory node and its clients read when they start. Both ends have the same settings.

    Attributes:
        tls_cert: PEM chain that this end shows, a node to its clients and a client to its nodes.
        tls_key: its private key, not encrypted.
        tls_ca: PEM of the authorities one of which must have signed what the other end shows.
        tls_name: the name that nodes' certificates carry; empty: each carries the address that it is reached by.
        token_file: its first line is the token that a client says and a node asks for.

    Raises:
        ValueError: some of the three TLS files are given and some are not, or a name without them.
    """

    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    tls_name: str = ""
    token_file: str | None = None

    def __post_init__(self) -> None:
        files = {"--tls-cert": self.tls_cert, "--tls-key": self.tls_key, "--tls-ca": self.tls_ca}
        missing = [name for name, path in files.items() if not path]
        if missing and len(missing) < len(files):
            raise ValueError(f"{' and '.join(missing)} missing: TLS is mutual and needs {', '.join(files)}")
        if self.tls_name and missing:
            raise ValueError(f"--tls-name is {self.tls_name!r} without {', '.join(files)}")

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted and both ends show certificates."""
        return self.tls_cert is not None

    @property
    def is_open(self) -> bool:
        """Whether anybody may connect."""
        return not self.uses_tls and self.token_file is None

    def token(self) -> bytes | None:
        """The token; None where none is asked for.

        Raises:
            SecurityError: the file cannot be read, or its first line is no token.
        """
        if self.token_file is None:
            return None
        token = _read("--token-file", self.token_file).partition(b"\n")[0].strip()
        if not 0 < len(token) <= MAX_TOKEN_BYTES or not all(0x21 <= byte < 0x7F for byte in token):
            raise SecurityError(
                f"--token-file {self.token_file}: its first line is not 1 to {MAX_TOKEN_BYTES} visible ASCII characters"
            )
        return token

    def pems(self) -> Pems:
        """What the three files hold, which fits together; only where TLS is used.

        Raises:
            SecurityError: see `contexts`.
        """
        self.contexts()
        assert self.tls_cert is not None
        assert self.tls_key is not None
        assert self.tls_ca is not None
        return Pems(
            cert=_read("--tls-cert", self.tls_cert),
            key=_read("--tls-key", self.tls_key),
            authorities=_read("--tls-ca", self.tls_ca),
        )

    def contexts(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """For a node and for a client, TLS 1.3; only where TLS is used.

        Raises:
            SecurityError: a file cannot be read or used, they do not belong together, or a certificate has expired.
        """
        node = self._context(ssl.PROTOCOL_TLS_SERVER)
        node.verify_mode = ssl.CERT_REQUIRED
        client = self._context(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        try:
            _shake_hands(node, client)
        except ssl.SSLError as error:
            raise SecurityError(
                f"--tls-cert {self.tls_cert} does not hold against --tls-ca {self.tls_ca}: {told(error)}"
            ) from error
        client.check_hostname = True
        return node, client

    def check(self) -> None:
        """Read everything once.

        Raises:
            SecurityError: a file cannot be used; the message names it.
        """
        self.token()
        if self.uses_tls:
            self.contexts()

    def _context(self, protocol: int) -> ssl.SSLContext:
        assert self.tls_cert is not None
        assert self.tls_key is not None
        assert self.tls_ca is not None
        for name, path in (("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key), ("--tls-ca", self.tls_ca)):
            _read(name, path)
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(self.tls_ca)
        except ssl.SSLError as error:
            raise SecurityError(f"--tls-ca {self.tls_ca} holds no PEM certificates: {told(error)}") from error
        ends = [ssl.cert_time_to_seconds(str(one["notAfter"])) for one in context.get_ca_certs()]
        if ends and max(ends) < time.time():
            raise SecurityError(f"--tls-ca {self.tls_ca} expired at {time.ctime(max(ends))}")
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key, password=_NO_PASSWORD)
        except ssl.SSLError as error:
            raise SecurityError(
                f"--tls-cert {self.tls_cert} and --tls-key {self.tls_key} are no PEM certificate and its unencrypted "
                f"key: {told(error)}"
            ) from error
        return context


class TokenCheck:
    """Compares what clients say with the token, in a time that does not depend on either."""

    def __init__(self, token: bytes) -> None:
        self._digest = hashlib.sha256(token).digest()

    def accepts(self, said: bytes) -> bool:
        """Whether it is the token."""
        return hmac.compare_digest(hashlib.sha256(said).digest(), self._digest)


def told(error: Exception) -> str:
    """What an error of TLS says, without the numbers around it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(error)


def _shake_hands(node: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """The two ends in memory: does each take what the other shows?"""
    to_node, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_node),
        node.wrap_bio(to_node, to_client, server_side=True),
    ]
    for end in ends * 2:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise SecurityError(f"{option} {path} cannot be read: {reason}") from error

"""Who is let in: certificates and tokens of the row path, right and wrong, by TCP and by Flight."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from row_kit import (
    TIMEOUT_S,
    ask,
    partition_store,
    random_rows,
    receive_some,
    row_spec,
    rows_frame,
    rows_payload,
    wait_until,
)
from security_kit import TOKEN, Authority

from tolbuild.table.errors import ToLError
from tolserve.memory.channel import open_channel
from tolserve.memory.client import ClientConfig, PartitionedClient
from tolserve.memory.errors import NodesUnavailableError
from tolserve.memory.node import main
from tolserve.memory.service import RowService
from tolserve.transport.admission import GuardedSession, token_frame
from tolserve.transport.choose import SERVED, make_server, make_transport
from tolserve.transport.errors import LinkError, ProtocolError, SecurityError
from tolserve.transport.frames import RESPONSE, Status, unpack_response
from tolserve.transport.link import Address
from tolserve.transport.security import Security, TokenCheck
from tolserve.transport.server import ServerConfig
from tolserve.transport.tls import SecureTcpTransport

SPEC = row_spec()
ROWS = random_rows(SPEC)
IDS = np.arange(7)
REFUSALS = (LinkError, ProtocolError)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\nwhat follows is not read\n")
    return str(path)


@contextlib.contextmanager
def served(name: str, security: Security) -> Iterator[tuple[Address, RowService]]:
    service = RowService(partition_store(SPEC, ROWS))
    server = make_server(name, service, ServerConfig(), security)
    server.start()
    try:
        yield server.address, service
    finally:
        server.stop()


def fetch(name: str, security: Security, address: Address) -> None:
    """One request and its answer, checked."""
    link = make_transport(name, security).connect(address, TIMEOUT_S)
    try:
        assert ask(link, rows_frame(1, IDS, (0,)))[1] == rows_payload(ROWS, IDS, (0,))
    finally:
        link.close()


@pytest.mark.parametrize("name", SERVED)
def test_a_token_alone_lets_in_who_has_it(name: str, token_file: str, tmp_path: Path) -> None:
    right = Security(token_file=token_file)
    (tmp_path / "wrong").write_text("b-token-for-tests")
    wrong = Security(token_file=str(tmp_path / "wrong"))
    with served(name, right) as (address, service):
        fetch(name, right, address)
        with pytest.raises(REFUSALS, match="the token is not this node's"):
            fetch(name, wrong, address)
        with pytest.raises(ToLError, match="asks for a token and none was said"):
            open_channel(make_transport(name, Security()), address, SPEC.identity, TIMEOUT_S)
        wait_until(lambda: service.served.refused == {"unauthorised": 2})
        assert service.served.num_requests == 1


@pytest.mark.parametrize("name", SERVED)
def test_who_shows_no_certificate_or_anothers_is_not_served(name: str, authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other")
    with served(name, authority.security()) as (address, service):
        fetch(name, authority.security("client"), address)
        foreign = stranger.security()
        believing = Security(tls_cert=foreign.tls_cert, tls_key=foreign.tls_key, tls_ca=foreign.tls_ca)
        for security in (Security(), believing):
            with pytest.raises(REFUSALS):
                fetch(name, security, address)
        assert service.served.num_requests == 1


@pytest.mark.parametrize("name", SERVED)
def test_a_client_does_not_trust_a_node_with_another_name(name: str, authority: Authority) -> None:
    named = authority.security("named", tls_name="rows.example")
    with served(name, named) as (address, _):
        fetch(name, named, address)
        with pytest.raises(REFUSALS):
            fetch(name, authority.security("plain"), address)


def test_a_certificate_alone_does_not_serve_a_client_without_one(authority: Authority) -> None:
    context = ssl.create_default_context(cafile=authority.path)
    with served("tcp", authority.security()) as (address, service), socket.create_connection(address) as raw:
        sock = context.wrap_socket(raw, server_hostname="127.0.0.1")
        sock.settimeout(TIMEOUT_S)
        sock.sendall(rows_frame(1, IDS, (0,)))
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            sock.recv(1)
        sock.close()
        assert service.served.num_requests == 0


def test_a_client_with_security_does_not_talk_to_an_open_node(authority: Authority, token_file: str) -> None:
    for name in SERVED:
        with served(name, Security()) as (address, _), pytest.raises(REFUSALS):
            fetch(name, authority.security("client"), address)
    with served("tcp", Security()) as (address, _):
        with pytest.raises(LinkError, match="asks for no token: leave --token-file out"):
            fetch("tcp", Security(token_file=token_file), address)
        with pytest.raises(LinkError, match="does not speak TLS here"):
            fetch("tcp", authority.security("client"), address)


def test_what_is_wrong_with_a_node_reaches_whoever_waits_for_its_rows(token_file: str, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("other")
    for name in SERVED:
        with served(name, Security(token_file=token_file)) as (address, _):
            transport = make_transport(name, Security(token_file=str(tmp_path / "wrong")))
            client = PartitionedClient(SPEC, [[address]], ClientConfig(deadline_s=1.0), transport)
            with pytest.raises(NodesUnavailableError, match="the token is not this node's"):
                client.wait_connected(1.0)
            client.close()


@pytest.mark.parametrize(
    "frame", [b"ToLq" + bytes(44), b"GET / HTTP/1.1\r\n\r\n", b"ToLt\x01\x00\x00\x00" + bytes(512)]
)
def test_bytes_that_are_no_token_are_refused_and_not_read_on(frame: bytes) -> None:
    service = RowService(partition_store(SPEC, ROWS))
    session = GuardedSession(service, TokenCheck(b"secret"))
    while frame and not session.closing:
        count = min(len(frame), len(session.inbox()))
        session.inbox()[:count] = frame[:count]
        session.received(count)
        frame = frame[count:]
    answer = b"".join(session.piece())
    header = unpack_response(answer[: RESPONSE.size])
    assert header.status == Status.UNAUTHORISED and b"--token-file" in answer
    assert session.closing and not session.admitted and session.piece() == []


@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_token_may_come_in_parts_and_the_request_right_behind_it(step: int) -> None:
    session = GuardedSession(RowService(partition_store(SPEC, ROWS)), TokenCheck(b"secret"))
    left = token_frame(b"secret") + rows_frame(5, IDS, (1,))
    answer = b""
    while left:
        inbox = session.inbox()
        count = min(step, len(inbox), len(left))
        inbox[:count] = left[:count]
        session.received(count)
        left = left[count:]
        while piece := session.piece():
            answer += b"".join(piece)
    assert session.admitted
    assert answer[2 * RESPONSE.size :] == rows_payload(ROWS, IDS, (1,))


def test_a_client_that_never_says_who_it_is_is_dropped(authority: Authority) -> None:
    service = RowService(partition_store(SPEC, ROWS))
    server = make_server("tcp", service, ServerConfig(stuck_s=0.2), authority.security())
    server.start()
    with socket.create_connection(server.address) as silent:
        silent.settimeout(TIMEOUT_S)
        assert silent.recv(1) == b""
    server.stop()


def test_a_link_over_tls_ends_as_one_without_does(authority: Authority) -> None:
    security = authority.security()
    with served("tcp", security) as (address, _):
        link = SecureTcpTransport(security).connect(address, TIMEOUT_S)
        assert ask(link, rows_frame(1, IDS, (0,)))[0].status == Status.OK
    with pytest.raises(LinkError):
        receive_some(link)
    link.close()


def test_files_that_do_not_fit_are_refused_by_name(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("node")
    other_cert, _ = authority.issue("other")
    expired, expired_key = authority.issue("expired", days=-2)
    (tmp_path / "second").mkdir()
    stranger = Authority(tmp_path / "second").path
    junk = tmp_path / "junk"
    junk.write_text("no certificate")
    gone = str(tmp_path / "gone")
    for files, message in [
        ((gone, key, authority.path), rf"--tls-cert {gone} cannot be read: No such file"),
        ((cert, gone, authority.path), rf"--tls-key {gone} cannot be read"),
        ((cert, key, gone), rf"--tls-ca {gone} cannot be read"),
        ((cert, key, str(tmp_path)), rf"--tls-ca {tmp_path} cannot be read: Is a directory"),
        ((str(junk), key, authority.path), rf"--tls-cert {junk} and --tls-key {key} are no PEM"),
        ((other_cert, key, authority.path), rf"--tls-cert {other_cert} and --tls-key {key} .*mismatch"),
        ((cert, key, str(junk)), rf"--tls-ca {junk} holds no PEM certificates"),
        ((expired, expired_key, authority.path), rf"--tls-cert {expired} does not hold .* certificate has expired"),
        ((cert, key, stranger), rf"--tls-cert {cert} does not hold against --tls-ca {stranger}"),
    ]:
        security = Security(tls_cert=files[0], tls_key=files[1], tls_ca=files[2])
        for use in (security.check, lambda s=security: make_transport("flight", s)):
            with pytest.raises(SecurityError, match=message):
                use()


@pytest.mark.parametrize("text", ["", "\nsecond line", "with a space", "umlaut ä", "x" * 513])
def test_a_first_line_that_is_no_token_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(SecurityError, match=f"--token-file {path}: its first line is not 1 to 512"):
        Security(token_file=str(path)).token()


def test_half_of_what_tls_needs_is_refused() -> None:
    with pytest.raises(ValueError, match="--tls-key and --tls-ca missing"):
        Security(tls_cert="cert")
    with pytest.raises(ValueError, match="--tls-name is 'rows' without"):
        Security(tls_name="rows")


@pytest.mark.parametrize("transport", SERVED)
def test_a_node_that_cannot_ask_for_a_token_does_not_start(
    transport: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    arguments = ["--table", str(tmp_path / "no-table"), "--transport", transport, "--token-file", str(gone)]
    assert main(arguments) == 1
    assert f"--token-file {gone} cannot be read: No such file" in capsys.readouterr().err

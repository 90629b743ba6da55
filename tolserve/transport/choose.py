"""Transports by name: what a command line or a configuration says becomes a server or the means to connect to one."""

from __future__ import annotations

from typing import Literal, Protocol

from tolserve.transport.link import Address, Transport
from tolserve.transport.security import Security
from tolserve.transport.server import RowServer, ServerConfig
from tolserve.transport.session import Responder
from tolserve.transport.tcp import TcpTransport
from tolserve.transport.tls import SecureDoor, SecureTcpTransport

TransportName = Literal["tcp", "flight", "ray"]
SERVED = ("tcp", "flight")
"""Transports that listen on a port; Ray's calls go to an actor (`tolserve.on_ray.rows`)."""


class Server(Protocol):
    """What `RowServer` is, by whichever transport."""

    @property
    def address(self) -> Address:
        """Where clients connect to."""

    @property
    def num_clients(self) -> int:
        """Clients connected now."""

    @property
    def alive(self) -> bool:
        """Whether the thread that `start` made serves."""

    def start(self) -> None:
        """Serve in a thread."""

    def run(self) -> None:
        """Serve in the caller's thread until `stop`."""

    def stop(self) -> None:
        """End every connection; stopping twice changes nothing."""

    def request_stop(self) -> None:
        """Let `run` return soon; may be called by a signal handler."""


def make_server(name: str, responder: Responder, config: ServerConfig, security: Security) -> Server:
    """A server of one of SERVED; it lets in only whom `security` lets in.

    Raises:
        OSError: the port is taken.
        SecurityError: a file of `security` cannot be used.
    """
    if name == "flight":
        from tolserve.transport.flight import FlightRowServer

        return FlightRowServer(responder, config, security)
    assert name == "tcp", name
    return RowServer(responder, config) if security.is_open else RowServer(responder, config, SecureDoor(security))


def make_transport(name: str, security: Security) -> Transport:
    """The client's side of it.

    Raises:
        SecurityError: a file of `security` cannot be used.
    """
    if name == "flight":
        from tolserve.transport.flight_link import FlightTransport

        return FlightTransport(security)
    assert name == "tcp", name
    return TcpTransport() if security.is_open else SecureTcpTransport(security)

"""A small HTTP proxy in front of an S3 server that does to chosen requests what networks and stores do."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ALWAYS = 1 << 30


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Deed = Callable[["Exchange", Request], None]


@dataclass
class Rule:
    """What happens to the next `times` requests that match."""

    deed: Deed
    method: str
    path: str
    header: tuple[str, str] | None
    times: int

    def matches(self, request: Request) -> bool:
        return (
            self.times > 0
            and request.method in self.method.split()
            and self.path in request.path
            and (self.header is None or request.headers.get(self.header[0]) == self.header[1])
        )


@dataclass
class Proxy:
    """Answers come from `upstream` unless a rule says otherwise."""

    upstream: str
    url: str = ""
    rules: list[Rule] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def on(
        self,
        deed: Deed,
        *,
        method: str = "GET HEAD PUT POST DELETE",
        path: str = "",
        header: tuple[str, str] | None = None,
        times: int = 1,
    ) -> Rule:
        self.rules.append(Rule(deed, method, path, header, times))
        return self.rules[-1]

    def take(self, request: Request) -> Deed | None:
        with self.lock:
            self.requests.append(request)
            for rule in self.rules:
                if rule.matches(request):
                    rule.times -= 1
                    return rule.deed
        return None


class Exchange(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        deed = self.proxy.take(request)
        if deed is None:
            self.answer(*self.ask(request))
        else:
            deed(self, request)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def ask(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=60)
        try:
            upstream.request(request.method, request.path, request.body, request.headers)
            response = upstream.getresponse()
            return response.status, dict(response.headers), response.read()
        finally:
            upstream.close()

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        dropped = ("transfer-encoding", "connection", "content-length")
        for name, value in headers.items():
            if name.lower() not in dropped:
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def refuse(status: int, code: str, message: str = "Please try again.", **headers: str) -> Deed:
    """An S3 error, without asking the server."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda exchange, request: exchange.answer(status, {"Content-Type": "application/xml", **named}, body)


def hang_up(exchange: Exchange, request: Request) -> None:
    """The connection ends and the server never hears of the request."""
    exchange.close_connection = True
    exchange.connection.close()


def lose_answer(exchange: Exchange, request: Request) -> None:
    """The server does what it was asked to, and nobody learns of it."""
    exchange.ask(request)
    hang_up(exchange, request)


def carried_out_but(status: int, code: str) -> Deed:
    """The server does what it was asked to, and the answer is an error."""

    def deed(exchange: Exchange, request: Request) -> None:
        exchange.ask(request)
        refuse(status, code)(exchange, request)

    return deed


def be_silent(exchange: Exchange, request: Request) -> None:
    """Nothing ever comes back."""
    exchange.proxy.ended.wait(60)
    exchange.close_connection = True


def without(header: str) -> Deed:
    """The request goes on without one of its headers."""

    def deed(exchange: Exchange, request: Request) -> None:
        headers = {name: value for name, value in request.headers.items() if name != header}
        exchange.answer(*exchange.ask(Request(request.method, request.path, headers, request.body)))

    return deed


@contextmanager
def s3_proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy on a free port; ends with the block."""
    proxy = Proxy(upstream)
    handler = type("Exchange", (Exchange,), {"proxy": proxy})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()

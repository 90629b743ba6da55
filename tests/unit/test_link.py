"""The gateway's link: messages survive the wire, nonsense ends a connection and nothing else."""

from __future__ import annotations

import dataclasses
import socket

import pytest
from scripted_engine import ScriptedEngine

from tolserve.engine.request import (
    DeadlineError,
    MemoryCharge,
    RequestOutput,
    RowsUnavailableError,
    SamplingParams,
    TokenOutput,
)
from tolserve.link import protocol
from tolserve.link.server import LinkServer


@pytest.mark.parametrize(
    "output",
    [
        RequestOutput(request_id="", tokens=(TokenOutput(5), TokenOutput(6)), text='a"\n\u00e9'),
        RequestOutput(request_id="", tokens=(TokenOutput(5, -1.5, ((5, -1.5), (7, -2.0))),), text="x"),
        RequestOutput(
            request_id="",
            tokens=(),
            finished=True,
            finish_reason="stop",
            prompt_logprobs=(None, TokenOutput(3, -0.5, ((1, -0.25),))),
            bill=MemoryCharge(rows_needed=2, rows_unique=1, hits_by_tier={"cache": 1.5}, bytes_moved=3.0),
            num_reused=32,
            since_first_s=0.25,
        ),
    ],
)
def test_an_output_survives_the_wire(output: RequestOutput) -> None:
    message = protocol.decode(protocol.encode({"out": [protocol.output_to_wire(9, output)]})[4:])
    assert protocol.output_from_wire(message["out"][0]) == (9, output)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("a"), "invalid"),
        (RowsUnavailableError("b"), "unavailable"),
        (KeyError("c"), "internal"),
        (DeadlineError("d"), "deadline"),
    ],
)
def test_an_error_keeps_its_kind(error: Exception, kind: str) -> None:
    output = RequestOutput(request_id="", tokens=(), finished=True, finish_reason="error", error=error)
    _, back = protocol.output_from_wire(protocol.output_to_wire(1, output))
    assert back.error is not None
    assert (protocol.error_kind(back.error), str(back.error)) == (kind, str(error))


def test_parameters_survive_the_wire() -> None:
    params = SamplingParams(
        max_tokens=3, stop=("a", "b"), stop_token_ids=(4,), logprobs=2, seed=2**63, priority=-3, deadline_s=1.5
    )
    message = protocol.decode(protocol.encode({"params": protocol.params_to_wire(params)})[4:])
    assert protocol.params_from_wire(message["params"]) == params


def test_outputs_are_merged_into_one() -> None:
    parts = [
        RequestOutput(request_id="r", tokens=(TokenOutput(1),), text="a", prompt_logprobs=(None,)),
        RequestOutput(request_id="r", tokens=(TokenOutput(2),), text="b", finished=True, finish_reason="length"),
    ]
    expected = dataclasses.replace(
        parts[1],
        tokens=(TokenOutput(1), TokenOutput(2)),
        text="ab",
        prompt_logprobs=(None,),
        since_first_s=0.5,
    )
    assert protocol.merged(parts, 0.5) == expected


@pytest.mark.parametrize(
    "frame",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        protocol.LENGTH.pack(2**31) + b"x",
        protocol.LENGTH.pack(4) + b"\xff\xff\xff\xff",
        protocol.encode({"submit": "1"}),
        protocol.encode({"submit": 1, "prompt": ["a"], "params": {}}),
        protocol.encode({"submit": 1, "prompt": [1], "params": {"colour": 3}}),
        protocol.encode({"submit": 1, "prompt": [1], "params": {"top_p": 7}}),
        protocol.encode({"submit": 1, "prompt": [1], "params": []}),
        protocol.encode({}),
        protocol.LENGTH.pack(10) + b"{}",
    ],
)
def test_nonsense_ends_the_connection_and_nothing_else(frame: bytes) -> None:
    server = LinkServer(ScriptedEngine(), host="127.0.0.1", hello={})
    try:
        with socket.create_connection(server.address, timeout=10) as peer:
            peer.sendall(frame)
            peer.shutdown(socket.SHUT_WR)
            received = b""
            while data := peer.recv(4096):
                received += data
        assert b"hello" in received
        with socket.create_connection(server.address, timeout=10) as peer:
            assert peer.recv(1)
        assert server.failure is None
    finally:
        server.stop()

"""Waiting for an endpoint ends, one way or the other."""

from __future__ import annotations

import pytest

from tolserve.membership import Member, View
from tolserve.on_ray import launch
from tolserve.on_ray.launch import DeployError, Endpoint
from tolserve.serve_config import ServeConfig


class Seen(Endpoint):
    """An endpoint whose directory knows `members`."""

    members: tuple[Member, ...] = ()

    def view(self) -> View:
        return View(members=self.members, complete=True)


def test_a_gateway_that_tells_no_address_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_ADDRESS_TIMEOUT_S", 0.05)
    monkeypatch.setattr(launch, "_POLL_S", 0.01)
    endpoint = Seen(ServeConfig(checkpoint="c", gateway_node="here"))
    with pytest.raises(DeployError, match=r"told no address in 0\.05 s"):
        endpoint._address()
    endpoint.members = (Member(name="g", kind="gateway", address=("here", 8000)),)
    assert endpoint._address() == ("here", 8000)

"""Putting the application up on a running cluster and taking it down again."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, DeploymentStatusOverview

from tolbuild.on_ray.connect import own_sigterm, probe
from tolbuild.table.errors import ToLError
from tolserve.membership import View
from tolserve.on_ray.builder import build_app
from tolserve.on_ray.directory import node_ip
from tolserve.serve_config import ServeConfig

_POLL_S = 0.25
_VIEW_TIMEOUT_S = 30.0
_ADDRESS_TIMEOUT_S = 60.0
"""From Serve's word that everything runs to the gateway's word where it listens."""

Report = Callable[[str], None]
"""Takes a line of progress."""


class NoClusterError(ToLError):
    """There is no Ray cluster to serve on."""


class DeployError(ToLError):
    """Serve gave up on the application, or it did not come up in time."""


def connect() -> None:
    """Connect to the cluster that RAY_ADDRESS names, or the one on this machine.

    Raises:
        NoClusterError: there is none; the message says how to get one.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        probe(address)
        with own_sigterm():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except OSError as error:
        raise NoClusterError(
            f"no Ray cluster to connect to at {address!r}. Start one on this machine with `ray start --head`, or name "
            f"one with RAY_ADDRESS. ({str(error).splitlines()[0]})"
        ) from error


class Endpoint:
    """One application on a cluster that `connect` found. Serve is started with it where it does not run yet.

    Args:
        name: of the Serve application; another of this name is replaced.
    """

    def __init__(self, config: ServeConfig, *, name: str = "tolserve") -> None:
        self._name = name
        named = config.gateway_node or config.gateway_resource
        self._config = config if named else replace(config, gateway_node=node_ip())
        self._deployed = False
        self._started_serve = False

    def deploy(self) -> None:
        """Hand the application to Serve, which starts its nodes; returns at once.

        Raises:
            ValueError, ToLError: it cannot be; see `builder.check`.
        """
        application = build_app(self._config)
        self._started_serve = not serve.status().applications
        self._deployed = True
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # starting sets it to INFO
        target = serve.RunTarget(target=application, name=self._name, route_prefix=None)
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)

    def wait(self, report: Report, *, timeout_s: float) -> tuple[str, int]:
        """Return the endpoint's host and port once every node is loaded; tell `report` what is.

        Raises:
            DeployError: it failed, with Serve's reason, or took too long.
        """
        deadline = time.monotonic() + timeout_s
        told = ""
        while True:
            status = serve.status().applications[self._name]
            line = progress_line({name: _num_running(one) for name, one in status.deployments.items()}, self._config)
            if line != told:
                report(line)
                told = line
            if status.status == ApplicationStatus.RUNNING:
                return self._address()
            if status.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                messages = [one.message for one in status.deployments.values()] + [status.message]
                raise DeployError(f"the endpoint did not come up: {reason(messages)}")
            if time.monotonic() > deadline:
                raise DeployError(f"the endpoint did not come up within {timeout_s:g} s; so far: {line}")
            time.sleep(_POLL_S)

    def view(self) -> View:
        """Who is there now."""
        handle = serve.get_deployment_handle("DirectoryDeployment", self._name)
        view: View = handle.view.remote().result(timeout_s=_VIEW_TIMEOUT_S)
        return view

    def stop(self) -> None:
        """Take the application down, and Serve with it where it came with it and nothing else uses it."""
        if not self._deployed:
            return
        for name in serve.status().applications:
            if name == self._name or name.startswith(layout_prefix(self._name)):
                serve.delete(name)
        if self._started_serve and not serve.status().applications:
            # Ray prints about Serve's own calls that end with it.
            with contextlib.redirect_stdout(io.StringIO()):
                serve.shutdown()

    def _address(self) -> tuple[str, int]:
        deadline = time.monotonic() + _ADDRESS_TIMEOUT_S
        while True:
            gateways = [member for member in self.view().members if member.kind == "gateway"]
            if gateways:
                return gateways[-1].address
            if time.monotonic() > deadline:
                raise DeployError(f"the endpoint runs, but its gateway told no address in {_ADDRESS_TIMEOUT_S:g} s")
            time.sleep(_POLL_S)


def layout_prefix(name: str) -> str:
    """What the names of applications begin with that hold further layouts of an endpoint's memory nodes."""
    return f"{name}-memory-"


def progress_line(running: Mapping[str, int], config: ServeConfig) -> str:
    """What is loaded, of how much; `running` has the replicas that are, by deployment."""
    memory = sum(count for name, count in running.items() if name.startswith("MemoryNodes-"))
    parts = [f"{running.get('AttentionDeployment', 0)} of {config.attention_replicas} attention nodes"]
    if config.num_partitions:
        parts.insert(0, f"{memory} of {config.num_partitions * config.replication} memory nodes")
    return "loaded: " + ", ".join(parts)


def reason(messages: Sequence[str]) -> str:
    """What Serve's messages say went wrong: the last exception named in them, else the first."""
    told = [message.strip() for message in messages if message.strip()]
    lines = [line for message in told for line in message.splitlines() if re.match(r"[\w.]+(Error|Exception): ", line)]
    return (lines or told or ["Serve gave no reason"])[-1 if lines else 0]


def _num_running(deployment: DeploymentStatusOverview) -> int:
    return sum(count for state, count in deployment.replica_states.items() if state == "RUNNING")


@contextlib.contextmanager
def own_cluster(folder: Path, *, num_cpus: int = 4) -> Iterator[None]:
    """A cluster of this process's own, for benches and tests; its files lie under `folder`.

    Its workers have this process's priority. Ray's own choice, 15 nicer, would put a server that is measured behind
    everything else on the machine.
    """
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
        _system_config={"worker_niceness": 0},
        _node_ip_address="127.0.0.1",
    )
    try:
        yield
    finally:
        ray.shutdown()


def disconnect() -> None:
    """Leave the cluster, which goes on running."""
    ray.shutdown()

"""Going over to another number of memory nodes: a new set is started beside the old one, which is then given up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.schema import ApplicationStatus

from tolbuild.table.errors import ToLError
from tolserve.on_ray.builder import layout_app
from tolserve.on_ray.launch import DeployError, layout_prefix, reason
from tolserve.on_ray.running import APPLICATION, RunningEndpoint
from tolserve.rollout import ChangeRefusedError

_POLL_S = 0.25

Report = Callable[[str], None]


def repartition(num_partitions: int, report: Report, *, timeout_s: float) -> None:
    """Lead the endpoint on this cluster to so many partitions, each on as many nodes as `--replication` says.

    The nodes of an earlier repartitioning are ended; those that the endpoint was deployed with stay, without rows.

    Raises:
        ChangeRefusedError: it has no memory nodes, or is on its way elsewhere.
        DeployError: the new nodes did not come up, or what was to be loaded could not be.
    """
    running = RunningEndpoint()
    if not running.config.num_partitions:
        raise ChangeRefusedError("the endpoint has no memory nodes (--memory-nodes 0 or no --table)")
    state = running.ask("state")
    if state["stage"] != "steady":
        raise ChangeRefusedError("the endpoint is on its way to another version or layout; wait until it is there")
    if state["serving"]["memory_nodes"] == num_partitions:
        report(f"the table lies on {num_partitions} partitions already")
        return
    deadline = time.monotonic() + timeout_s
    _start(running, num_partitions, report, deadline)
    try:
        running.ask("use_layout", num_partitions)
        _wait(running, report, deadline)
        report(f"the table lies on {num_partitions} partitions")
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, ToLError) else error from error
    finally:
        _end_others(running.ask("state"))


def _start(running: RunningEndpoint, num_partitions: int, report: Report, deadline: float) -> None:
    if num_partitions == running.config.num_partitions:
        return
    name = f"{layout_prefix(APPLICATION)}{num_partitions}"
    report(f"starting memory nodes for {num_partitions} partitions")
    application = layout_app(replace(running.config, memory_nodes=num_partitions), running.directory)
    target = serve.RunTarget(target=application, name=name, route_prefix=None)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    while (status := serve.status().applications[name]).status != ApplicationStatus.RUNNING:
        if status.status == ApplicationStatus.DEPLOY_FAILED or time.monotonic() > deadline:
            messages = [one.message for one in status.deployments.values()] + [status.message]
            serve.delete(name)
            raise DeployError(f"the memory nodes did not come up: {reason(messages)}")
        time.sleep(_POLL_S)


def _wait(running: RunningEndpoint, report: Report, deadline: float) -> None:
    told = ""
    while (state := running.ask("state"))["stage"] != "steady":
        if state["stage"] != told:
            told = state["stage"]
            report(f"{told}: {_sentence(state)}")
        if time.monotonic() > deadline:
            raise DeployError(f"the endpoint did not go over in time; it is {told}")
        time.sleep(_POLL_S)
    if state["fault"]:
        raise DeployError(state["fault"])


def _sentence(state: dict[str, Any]) -> str:
    serving, other = state["serving"]["memory_nodes"], state["other"]["memory_nodes"]
    return f"new requests go to {serving} partitions, beside them there are {other}"


def _end_others(state: dict[str, Any]) -> None:
    """End the nodes of layouts that are neither served nor on their way."""
    kept = {edition["memory_nodes"] for edition in (state["serving"], state["other"]) if edition}
    prefix = layout_prefix(APPLICATION)
    for name in serve.status().applications:
        if name.startswith(prefix) and int(name.removeprefix(prefix)) not in kept:
            serve.delete(name)

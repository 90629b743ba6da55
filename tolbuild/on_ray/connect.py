"""The cluster that RAY_ADDRESS, the job or this machine offers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from tolbuild.table.errors import ToLError

CONNECT_S = 5.0
"""Time that the head of RAY_ADDRESS gets to answer."""


class NoClusterError(ToLError):
    """There is no Ray cluster to connect to, or it has nothing to work with."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a worker claims of the cluster, and how many the cluster can hold."""

    device: str
    num_workers: int
    num_gpus: float
    num_cpus: float


@contextmanager
def cluster() -> Iterator[None]:
    """Connected to the cluster of RAY_ADDRESS, of the job or of this machine; a connection that was there stays.

    Raises:
        NoClusterError: there is none; the message says how to get one.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        probe(address)
        with own_sigterm():
            ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (OSError, RuntimeError) as error:
        raise NoClusterError(
            "no Ray cluster to connect to. Start one on this machine with `ray start --head` (or `python -m "
            "cluster.local up`), name one with RAY_ADDRESS, submit this command with `ray job submit`, or add --no-ray "
            f"to build in this process. ({address or 'no RAY_ADDRESS'}: {str(error).splitlines()[0]})"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Put back this process's answer to SIGTERM, which ray.init replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def probe(address: str) -> None:
    """Try the TCP port of a `host:port` first: Ray itself waits minutes for a head that is not there.

    Raises:
        OSError: nobody listens.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        with socket.create_connection((host, int(port)), timeout=CONNECT_S):
            pass


def claim(device: str, workers: int) -> Resources:
    """What each worker should claim: a GPU where the cluster has any and `device` allows it, else a CPU.

    Args:
        device: auto, cpu or cuda.
        workers: how many at a time; 0 takes one for each GPU or CPU.

    Raises:
        NoClusterError: cuda is asked for and the cluster has no GPU, or it has no CPU either.
    """
    total = ray.cluster_resources()
    num_gpus, num_cpus = int(total.get("GPU", 0)), int(total.get("CPU", 0))
    if device == "cuda" and not num_gpus:
        raise NoClusterError("--device cuda, but no node of the Ray cluster has a GPU; use --device auto or cpu")
    if device != "cpu" and num_gpus:
        return Resources(device=device, num_workers=workers or num_gpus, num_gpus=1, num_cpus=0)
    if not num_cpus:
        raise NoClusterError("the Ray cluster offers no CPU and no GPU; start it with one at least (--num-cpus 2)")
    return Resources(device="cpu", num_workers=workers or num_cpus, num_gpus=0, num_cpus=1)

"""Every core once: dask's threads at pieces, with one kernel thread in each, as our build does it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from tolbuild.bench.rivals.modes import load


@contextmanager
def thread_a_core() -> Iterator[None]:
    """Within the block dask computes by a thread a core; kernels that have threads of their own use one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with load("dask").config.set(scheduler="threads", num_workers=_num_cores()), _kernel_threads(1):
            yield
    finally:
        torch.set_num_threads(threads)


def all_to_one_kernel() -> AbstractContextManager[Any]:
    """Within the block one numpy kernel has every core."""
    return _kernel_threads(_num_cores())


def _kernel_threads(count: int) -> AbstractContextManager[Any]:
    limits: AbstractContextManager[Any] = load("threadpoolctl").threadpool_limits(count)
    return limits


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))

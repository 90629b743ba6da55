"""What the bench needs of Ray: a cluster of this machine alone, and a pool that knows how long it took to start."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from tolbuild.build import WorkOrder
from tolbuild.build_config import BuildConfig
from tolbuild.drive.pool import closing
from tolbuild.on_ray.connect import claim
from tolbuild.on_ray.pool import RayPool

OBJECT_STORE_BYTES = 128 << 20
"""Only small reports travel through it."""


@contextmanager
def local_cluster() -> Iterator[None]:
    """A Ray cluster of this process's own, with every core and GPU of this machine, gone at the end."""
    ray.init(
        address="local",
        num_cpus=len(os.sched_getaffinity(0)),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
    )
    try:
        yield
    finally:
        ray.shutdown()


class Timed:
    """Opens pools whose workers are all ready. `start_s`: how long those of the last one took to get there."""

    def __init__(self) -> None:
        self.start_s = 0.0

    @contextmanager
    def pool(self, config: BuildConfig, order: WorkOrder) -> Iterator[RayPool]:
        """A pool on the connected cluster, for `build_table`."""
        began = time.perf_counter()
        with closing(RayPool(order, claim(config.device, config.workers))) as pool:
            assert isinstance(pool, RayPool)
            while pool.num_ready < pool.num_workers:
                pool.wait(0.1)
            self.start_s = time.perf_counter() - began
            yield pool

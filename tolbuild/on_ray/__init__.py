"""The build on a Ray cluster: connecting to it, and a pool of actors that each run one worker.

The only folder of this package that imports Ray.
"""

from tolbuild.on_ray.connect import NoClusterError, cluster
from tolbuild.on_ray.pool import RayPool, ray_pool

__all__ = ["NoClusterError", "RayPool", "cluster", "ray_pool"]

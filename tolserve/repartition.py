"""`python -m tolserve.repartition --memory-nodes P`: the running endpoint's table on another number of memory nodes.

It goes to the cluster of RAY_ADDRESS or of this machine. A new set of memory nodes is started, loads its partitions and
takes over; requests go on meanwhile, each on the nodes that it began with. Nodes that hold nothing any more are ended,
but for the processes of those that the endpoint was deployed with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tolbuild.table.errors import ToLError

TIMEOUT_S = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Go over; 1 with the reason on standard error where it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m tolserve.repartition",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--memory-nodes", type=int, required=True, help="partitions, at least 1")
    given = parser.parse_args(arguments)
    if given.memory_nodes < 1:
        parser.error(f"--memory-nodes is {given.memory_nodes}; it must be at least 1")
    from tolserve.on_ray import launch
    from tolserve.on_ray.layouts import repartition

    try:
        launch.connect()
        repartition(given.memory_nodes, lambda line: print(line, flush=True), timeout_s=TIMEOUT_S)
        return 0
    except (ToLError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        launch.disconnect()


if __name__ == "__main__":
    sys.exit(main())

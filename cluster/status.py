"""`python -m cluster.status`: an endpoint at a glance: nodes, partitions, versions, hit rates, bytes/s, stalls, queue.

Examples:

    python -m cluster.status                                      # the endpoint on the cluster of RAY_ADDRESS
    python -m cluster.status --url http://127.0.0.1:8000 --watch
    python -m cluster.status --url http://127.0.0.1:8000 --json

Rates are of the second between two looks (`--interval`); hit rates and stalls are of all time where nothing was
computed in it. `--json` prints one object a look.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

from cluster.glance import Look, glance
from cluster.tables import render
from tolbuild.table.errors import ToLError
from tolserve.endpoint import Endpoint, read_key


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what there is; 1 with the reason on standard error where nothing runs."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="of the endpoint; without, the one on the Ray cluster is looked for")
    parser.add_argument("--api-key-file", help="a file whose first line is the endpoint's key (with --url)")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two looks (default 1)")
    parser.add_argument("--watch", action="store_true", help="go on until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="one JSON object a look")
    given = parser.parse_args(arguments)
    try:
        if not given.interval > 0:
            raise ValueError(f"--interval is {given.interval}; it must be positive")
        endpoint = Endpoint(given.url, read_key(given.api_key_file)) if given.url else found()
        return _show(endpoint, given.interval, watch=given.watch, as_json=given.json)
    except (ToLError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def found() -> Endpoint:
    """The endpoint on the cluster that RAY_ADDRESS names, or on that of this machine.

    Raises:
        ToLError: there is no cluster, or no endpoint on it.
    """
    from tolserve.on_ray import launch
    from tolserve.on_ray.running import RunningEndpoint

    launch.connect()
    try:
        running = RunningEndpoint()
        return Endpoint(running.url(), running.config.api_key)
    finally:
        launch.disconnect()


def _show(endpoint: Endpoint, interval_s: float, *, watch: bool, as_json: bool) -> int:
    before = Look.at(endpoint)
    while True:
        time.sleep(interval_s)
        now = Look.at(endpoint)
        seen = glance(endpoint.url, before, now)
        if watch and not as_json and sys.stdout.isatty():
            print("\033[H\033[J", end="")
        print(json.dumps(seen) if as_json else render(seen), flush=True)
        if not watch:
            return 0
        before = now


if __name__ == "__main__":
    sys.exit(main())

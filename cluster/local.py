"""`python -m cluster.local up|down|status`: Ray and an S3 stand-in on this machine, for one user.

`up` starts a Ray head and an S3 server on free ports of the loopback and prints what to export, so that

    eval "$(python -m cluster.local up)"

makes `python -m tolbuild.run`, `ray job submit` and `s3://` URLs of this shell use them. `down` ends exactly what `up`
started and removes its files, also where `up` was killed half-way. `status` says what there is.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from cluster import head, state
from cluster.head import ClusterOptions, StartError
from cluster.interrupts import Interrupted, Interrupts
from cluster.processes import SurvivorsError
from cluster.state import DEFAULT_NAME, ClusterExistsError, ClusterState

NOT_UP = 3
"""Exit code of `status` where no cluster is up, as service managers use it."""


def up(options: Annotated[ClusterOptions, tyro.conf.arg(name="")] = ClusterOptions()) -> int:  # noqa: B008 - frozen
    """Start the cluster and print what to export; where it is up, only print."""
    with Interrupts() as interrupts:
        found = state.load(DEFAULT_NAME)
        if found and found.is_stale:
            _say(f"ending what an earlier cluster left: {_plural(head.stop(found), 'process')}")
            found = None
        if found is None:
            _say("starting Ray and an S3 stand-in ...")
            found = head.start(DEFAULT_NAME, options, interrupts)
        _say(_describe(found))
        print("\n".join(f"export {key}={shlex.quote(value)}" for key, value in found.environment.items()))
    return 0


def down() -> int:
    """End the cluster, and whatever an interrupted demo has left."""
    with Interrupts():  # noted and not acted on: it ends in seconds, and half an end would be no end
        clusters = [one for one in state.load_all() if one.name == DEFAULT_NAME or one.is_stale]
        for one in clusters:
            _say(f"{one.name}: {_plural(head.stop(one), 'process')} ended, {one.folder} removed")
        if not clusters:
            _say("no cluster is up")
    return 0


def status() -> int:
    """Say what is up; exits 0 when the cluster is, 3 when it is not."""
    clusters = list(state.load_all())
    for one in clusters:
        print(_describe(one))
    if not clusters:
        print("no cluster is up")
    return 0 if any(one.name == DEFAULT_NAME and one.ready and not one.is_stale for one in clusters) else NOT_UP


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the three commands; 1 with the reason on standard error where it fails, 130 after Ctrl-C."""
    commands = {"up": up, "down": down, "status": status}
    try:
        return tyro.extras.subcommand_cli_from_dict(
            commands, prog="python -m cluster.local", description=__doc__, args=arguments
        )
    except Interrupted as interrupt:
        _say("stopped; nothing is left running")
        return interrupt.exit_code
    except (ValueError, ClusterExistsError, StartError, SurvivorsError) as error:
        _say(f"error: {error}")
        return 1


def _describe(cluster: ClusterState) -> str:
    count = _plural(cluster.num_processes(), "process")
    if cluster.is_stale:
        return f"{cluster.name}: stale, {count} left, in {cluster.folder}; `python -m cluster.local down` clears it"
    if not cluster.ready:
        return f"{cluster.name}: starting, {count}, in {cluster.folder}"
    return (
        f"{cluster.name}: up, {count}, in {cluster.folder}\n"
        f"  Ray {cluster.address}, dashboard and jobs {cluster.dashboard_url}, S3 {cluster.s3_url}"
    )


def _plural(count: int, what: str) -> str:
    return f"{count} {what if count == 1 else what + 'es'}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

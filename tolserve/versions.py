"""`python -m tolserve.versions`: which table version an endpoint serves, and going to another while it serves.

Examples:

    python -m tolserve.versions --url http://127.0.0.1:8000 list
    python -m tolserve.versions --url http://127.0.0.1:8000 use latest
    python -m tolserve.versions --url http://127.0.0.1:8000 --api-key-file key.txt use 3

`use` returns when the nodes have given the version before up. Requests go on meanwhile: what had begun ends on the
version that it began with.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tolbuild.table.errors import ToLError
from tolserve.endpoint import Endpoint, EndpointError, read_key
from tolserve.rollout import Edition

POLL_S = 0.2

Report = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """List or use; 1 with the reason on standard error where it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m tolserve.versions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True, help="of the endpoint")
    parser.add_argument("--api-key-file", help="a file whose first line is the endpoint's key")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list | use")
    commands.add_parser("list", help="versions that are published, and which serves")
    use = commands.add_parser("use", help="go to a version")
    use.add_argument("version", type=_version, help="its number, or latest")
    use.add_argument("--no-wait", action="store_true", help="return when it has begun")
    given = parser.parse_args(arguments)
    try:
        endpoint = Endpoint(given.url, read_key(given.api_key_file))
        if given.command == "list":
            print(listing(endpoint.table()))
            return 0
        state = endpoint.use_version(given.version)
        if given.no_wait:
            print(describe(state))
            return 0
        print(describe(wait_steady(endpoint, state, report=lambda line: print(line, flush=True))))
        return 0
    except (ToLError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def wait_steady(endpoint: Endpoint, state: dict[str, Any], *, report: Report) -> dict[str, Any]:
    """The state once the change is over; `report` is told how it goes.

    Raises:
        EndpointError: the endpoint gave the change up, or cannot be reached.
    """
    told = ""
    while state["stage"] != "steady":
        if (line := describe(state)) != told:
            report(line)
            told = line
        time.sleep(POLL_S)
        state = endpoint.table()
    if state["fault"]:
        raise EndpointError(state["fault"])
    return state


def describe(state: dict[str, Any]) -> str:
    """What serves and what is under way, in a line."""
    line = f"{name(state['serving'])} serves"
    if state["other"]:
        line += f", {name(state['other'])} is {_WORDS[state['stage']]}"
    return line


_WORDS = {
    "loading": "loaded beside it",
    "leaving": "left: what began on it ends",
    "closing": "given up by attention nodes",
    "freeing": "given up by memory nodes",
}


def name(edition: dict[str, Any]) -> str:
    """An edition of the state."""
    if not edition["version"]:
        return "the checkpoint, without a table,"
    return str(Edition(version=edition["version"], num_partitions=edition["memory_nodes"]))


def listing(state: dict[str, Any]) -> str:
    """The published versions, a line each."""
    marks = {state["serving"]["version"]: "serves"}
    if state["other"]:
        marks.setdefault(state["other"]["version"], state["stage"])
    lines = [f"{version:>8}  {marks.get(version, '')}".rstrip() for version in state["published"]]
    return "\n".join([str(state["table"] or "no table"), *lines])


def _version(text: str) -> int | str:
    if text == "latest":
        return text
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a version's number nor latest")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m cluster.netlab bench cost ...`: the bench in one network namespace, its memory nodes in another.

The two are joined by cables of 1, 2.5 and 5 Gbit/s and one that is not shaped; every node is reached by each of them.
What follows `cost` goes to `python -m tolserve.bench cost`. Namespaces, cables and nodes are gone at the end, also
after a signal; what a killed run left is removed by the next one. Linux, iproute2 and the rights of root are needed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from cluster.interrupts import Interrupted, Interrupts
from cluster.links import lay_cables
from cluster.namespaces import Namespace, NamespacesError, NotPermittedError, two_namespaces
from tolserve.bench.cost.material import NODE_BYTES, paced_shape
from tolserve.bench.cost.nodes import NodeError, start
from tolserve.bench.cost.streams import PAPER_VOCAB
from tolserve.bench.paced_rows import NODE_SPIN_US
from tolserve.bench.peers import own_cores

CODES = ("512-int8", "full-float16", "1024-float16", "256-int4")
"""Rows that the nodes hold, a node each, at the paper's vocabulary."""
_GRACE_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Two hosts with nodes on the second.

    Attributes:
        links: by name the second host's address on that cable.
        nodes: HOST:PORT of each.
        socket_port: of a bare socket on the second host.
    """

    client: Namespace
    links: dict[str, str]
    nodes: list[str]
    socket_port: int

    def command(self, bench: str, options: Sequence[str]) -> list[str]:
        """The bench, in the first host, told where the nodes are."""
        links = ",".join(f"{name}={host}" for name, host in self.links.items())
        told = ["--memory-nodes", ",".join(self.nodes), "--links", links, "--bare-socket-port", str(self.socket_port)]
        return self.client.command(sys.executable, "-m", "tolserve.bench", bench, *told, *options)


def open_lab(stack: ExitStack, codes: Sequence[str] = CODES) -> Lab:
    """Namespaces, cables and nodes, which go with `stack`.

    Raises:
        NotPermittedError: this process may not make them, with what is missing.
        NamespacesError, NodeError: something did not come up.
    """
    client, server = stack.enter_context(two_namespaces())
    links = lay_cables(client, server)
    _, core = own_cores()

    def inside(words: Sequence[str]) -> list[str]:
        return server.command(*words)

    _, socket_port = stack.enter_context(start({"kind": "socket", "core": core}, host="0.0.0.0", wrap=inside))  # noqa: S104
    nodes = []
    for name in codes:
        description = {
            "kind": "cyclic",
            "shape": paced_shape(name, PAPER_VOCAB),
            "max_bytes": NODE_BYTES,
            "core": core,
            "spin_us": NODE_SPIN_US,
        }
        _, port = stack.enter_context(start(description, host="0.0.0.0", wrap=inside))  # noqa: S104
        nodes.append(f"{server.address}:{port}")
    return Lab(client=client, links=links, nodes=nodes, socket_port=socket_port)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a bench in a lab; its own exit status, 2 where there can be no lab, 128 + n after signal n."""
    parser = argparse.ArgumentParser(prog="python -m cluster.netlab", description=__doc__)
    parser.add_argument("what", choices=["bench"])
    parser.add_argument("bench", choices=["cost"], help="which bench of tolserve.bench")
    given, options = parser.parse_known_args(arguments)
    try:
        with Interrupts() as interrupts, ExitStack() as stack:
            lab = open_lab(stack)
            interrupts.check()
            command = lab.command(given.bench, options)
            child = subprocess.Popen(command, start_new_session=True)
            stack.callback(_end, child)
            interrupts.wait(lambda: child.poll() is not None, timeout_s=float("inf"))
            return child.returncode
    except NotPermittedError as error:
        print(f"no network namespaces here: {error}", file=sys.stderr)
        return 2
    except (NamespacesError, NodeError) as error:
        print(f"the lab did not come up: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        return interrupted.exit_code


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL where that does not help; the namespace's end takes what the child left."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    sys.exit(main())

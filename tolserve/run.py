"""`python -m tolserve.run`: an OpenAI-compatible endpoint for a MemoryLLM checkpoint and its table.

Examples:

  on a cluster of this machine:
    ray start --head
    python -m tolserve.run --checkpoint builtin:tiny --table /tmp/tiny --memory-nodes 2

  every partition on two memory nodes, three attention nodes with a GPU each, reachable from other machines:
    RAY_ADDRESS=10.0.0.1:6379 python -m tolserve.run --checkpoint s3://models/mine --table s3://tables/mine \\
      --memory-nodes 4 --replication 2 --attention-replicas 3 --num-gpus 1 --host 0.0.0.0 --api-key-file key.txt

It serves until Ctrl-C and then takes its nodes down. `serve deploy` with a config file like infra/serve.yaml leaves
them to Ray Serve instead.
"""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Sequence

from tolbuild.cli import parse
from tolbuild.interrupts import sigterm_as_interrupt
from tolbuild.table.errors import ToLError
from tolserve.serve_config import ServeConfig, settled

START_TIMEOUT_S = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; 0 then, 1 with the reason on standard error where it cannot be."""
    try:
        with sigterm_as_interrupt():
            config = parse(ServeConfig, module="tolserve.run", doc=__doc__, arguments=arguments)
            return serve_until_interrupted(settled(config))
    except (ValueError, ToLError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def serve_until_interrupted(config: ServeConfig) -> int:
    """Put the endpoint up, say where it is, take it down at an interrupt."""
    from tolserve.on_ray import launch

    launch.connect()
    endpoint = launch.Endpoint(config)
    try:
        endpoint.deploy()
        host, port = endpoint.wait(_say, timeout_s=START_TIMEOUT_S)
        _say(welcome(config, host, port))
        threading.Event().wait()
    except KeyboardInterrupt:
        _say("taking the endpoint down")
    finally:
        endpoint.stop()
        launch.disconnect()
    return 0


def welcome(config: ServeConfig, host: str, port: int) -> str:
    """The endpoint's address and a first request to it."""
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104 - compared, not bound
    body = {"model": config.name, "prompt": "Once upon a time", "max_tokens": 32, "memory_bill": True}
    key = ' -H "Authorization: Bearer $API_KEY"' if config.api_key else ""
    return (
        f"ready: {url}/v1 serves {config.name}\n"
        f"  curl {url}/v1/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(json.dumps(body))}\n"
        "Ctrl-C takes it down"
    )


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

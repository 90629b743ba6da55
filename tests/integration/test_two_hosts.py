"""Serving over two network namespaces with a link of limited rate between them: the tokens are those of one host."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from version_kit import PROMPTS, Versions

from cluster.namespaces import Namespace, NotPermittedError, two_namespaces

REPOSITORY = Path(__file__).parents[2]

ATTENTION = """
import json, sys
from pathlib import Path
from tolbuild.checkpoint import open_checkpoint
from tolserve.engine.load import build_engine
from tolserve.engine.request import SamplingParams
from tolserve.replica import engine_config, open_rows
from tolserve.serve_config import ServeConfig

asked = json.loads(sys.argv[1])
addresses = [[tuple(one) for one in nodes] for nodes in asked["addresses"]]
config = ServeConfig(**asked["config"], memory_nodes=len(addresses))
shape = open_checkpoint(config.checkpoint).config
rows = open_rows(config, shape, 2, addresses)
engine = build_engine(config.checkpoint, rows.source, engine_config(config, shape), table=rows.table)
for index, prompt in enumerate(asked["prompts"]):
    engine.add_request(str(index), prompt, SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True))
tokens = {}
while engine.has_work():
    for output in engine.step():
        assert output.error is None, output.error
        tokens.setdefault(output.request_id, []).extend(token.token_id for token in output.tokens)
print(json.dumps({"tokens": tokens, "bytes": engine.stats()["rows"]["bytes_moved"]}))
"""


@pytest.fixture
def pair() -> Iterator[tuple[Namespace, Namespace]]:
    try:
        with two_namespaces() as found:
            found[0].limit(400_000)
            yield found
    except NotPermittedError as error:
        pytest.skip(f"no network namespaces with limited links here: {error}")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def start_node(place: Namespace, table: str, partition: str) -> tuple[str, int]:
    """A memory node of version 2 in a namespace; where it listens, once it is ready. It ends with the namespace."""
    command = [sys.executable, "-m", "tolserve.memory.node", "--table", table, "--version", "2"]
    words = place.command(*command, "--partition", partition, "--host", place.address)
    node = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment())
    assert node.stdout is not None
    with node.stdout:
        found = re.match(r"memory node ready at (\S+):(\d+) ", node.stdout.readline())
    assert found
    return found[1], int(found[2])


def generate(place: Namespace | None, made: Versions, addresses: list[list[tuple[str, int]]]) -> dict[str, Any]:
    """Tokens of PROMPTS from an attention node in a namespace (None: here)."""
    config = {"checkpoint": made.checkpoint, "table": made.table, **({"cache_share": 0.0} if addresses else {})}
    asked = {"config": config, "addresses": addresses, "prompts": PROMPTS}
    words = [sys.executable, "-c", ATTENTION, json.dumps(asked)]
    line = words if place is None else place.command(*words)
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.slow
def test_rows_over_a_limited_link_give_the_same_tokens(pair: tuple[Namespace, Namespace], tmp_path: Path) -> None:
    made = Versions.make(tmp_path)
    memory, attention = pair
    addresses = [[start_node(memory, made.table, f"{index}/2")] for index in range(2)]
    there, here = generate(attention, made, addresses), generate(None, made, [])
    assert there["tokens"] == here["tokens"]
    assert all(len(tokens) == 20 for tokens in there["tokens"].values())
    assert there["bytes"] > 0 and not here["bytes"]

"""`python -m tolserve.bench load`: load on a completions endpoint, ours or another, and what it took.

Examples:

  20 requests a second of real text, whatever the answers take:
    python -m tolserve.bench load --url http://127.0.0.1:8000 --request-rate 20 --num-prompts 400 --dataset corpus \\
      --tokenizer builtin:tiny --input-len 128 --output-len 64 --goodput ttft:200 tpot:50

  16 clients, each with one request at a time:
    python -m tolserve.bench load --url http://127.0.0.1:8000 --max-concurrency 16 --result-file load.json

  a recorded trace at its own times:
    python -m tolserve.bench load --url http://127.0.0.1:8000 --dataset trace --dataset-path trace.jsonl

It ends with a table and one line of JSON, whose fields have the names and meanings of `vllm bench serve`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from tolbuild.cli import parse
from tolbuild.table.errors import ToLError
from tolserve.bench.load.config import LoadConfig
from tolserve.bench.load.run import measure
from tolserve.bench.load.summary import summarise, table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 1 where it could not begin or every request failed."""
    try:
        config = parse(LoadConfig, module="tolserve.bench load", doc=__doc__, arguments=arguments)
        run = measure(config)
    except (ValueError, ToLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    result = summarise(run, config)
    print(table(result))
    if config.result_file is not None:
        config.result_file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)
    return 0 if result["completed"] else 1

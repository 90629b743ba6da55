"""`python -m cluster.ask --url URL PROMPT`: one streamed completion from an endpoint, and what its rows cost."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

TIMEOUT_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the answer as it comes, then its memory bill."""
    parser = argparse.ArgumentParser(prog="python -m cluster.ask", description=__doc__)
    parser.add_argument("--url", required=True, help="of the endpoint, with /v1")
    parser.add_argument("--max-tokens", type=int, default=48, help="tokens of the answer (default 48)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same answer (default 1)")
    parser.add_argument("prompt")
    given = parser.parse_args(arguments)
    print(f"\n  {given.prompt}", end="", flush=True)
    usage: dict[str, Any] = {}
    for event in stream(given.url, given.prompt, max_tokens=given.max_tokens, seed=given.seed):
        for choice in event["choices"]:
            print(choice["text"].replace("\n", "\n  "), end="", flush=True)
        usage = event.get("usage") or usage
    print("\n\n" + describe(usage))
    return 0


def stream(url: str, prompt: str, *, max_tokens: int, seed: int) -> Iterator[dict[str, Any]]:
    """The events of a streamed completion with usage and memory bill.

    Raises:
        urllib.error.URLError: the endpoint cannot be reached or refuses.
        RuntimeError: it failed on the way, with its reason.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{url}/models", timeout=TIMEOUT_S) as answer:
        model = json.load(answer)["data"][0]["id"]
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        "memory_bill": True,
    }
    request = urllib.request.Request(  # noqa: S310 - the user's own URL
        f"{url}/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with direct.open(request, timeout=TIMEOUT_S) as answer:
        for line in answer:
            text = line.decode().removeprefix("data: ").strip()
            if text and text != "[DONE]":
                event: dict[str, Any] = json.loads(text)
                if "error" in event:
                    raise RuntimeError(f"the endpoint failed: {event['error']['message']}")
                yield event


def describe(usage: dict[str, Any]) -> str:
    """Usage and memory bill in one paragraph."""
    bill = usage.get("memory_bill") or {}
    hits = ", ".join(f"{value:g} from {tier}" for tier, value in bill.get("hits_by_tier", {}).items())
    lines = [f"  {usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out"]
    if bill:
        lines += [
            f"  its memory bill: {bill['rows_needed']} rows needed, {bill['rows_unique']} of them distinct in a step"
            f" ({hits})",
            f"  {bill['bytes_moved'] / 1024:,.1f} KiB over the network; from request to the last band taken "
            f"{bill['fetch_ms']:.1f} ms, layers waited {bill['stall_ms']:.1f} ms",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

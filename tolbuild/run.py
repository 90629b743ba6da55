"""`python -m tolbuild.run`: turn a MemoryLLM checkpoint into a table of token-wise lookups.

Examples:

  a table at full rank, in this process:
    python -m tolbuild.run --checkpoint builtin:tiny --table /tmp/tiny --no-ray

  rank 96 in int8 on a Ray cluster, to S3 (credentials from AWS_*, carried to the workers):
    ray start --head
    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"AWS_ENDPOINT_URL": "..."}}' -- \\
      python -m tolbuild.run --checkpoint s3://models/mine --table s3://tables/mine --rank 96 --codes int8

  what it would take, without doing it:
    python -m tolbuild.run --checkpoint s3://models/mine --table s3://tables/mine --dry-run

  how long and how dear on 8 GPUs:
    python -m tolbuild.run --checkpoint s3://models/mine --table s3://tables/mine --dry-run --workers 8 \\
      --device-description h100

The same command again resumes what was interrupted and repeats no finished cell; on a complete table it does nothing.
Check the result with `python -m tolbuild.verify URL`, look at it with `python -m tolbuild.inspect URL`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from tolbuild.build_config import BuildConfig
from tolbuild.cli import parse
from tolbuild.drive.driver import BuildResult, build_table
from tolbuild.drive.voice import Voice
from tolbuild.interrupts import sigterm_as_interrupt
from tolbuild.table.errors import ToLError


def main(arguments: Sequence[str] | None = None) -> int:
    """Build a table; 0 when it is there, 1 with the reason on standard error, 130 (143) when stopped (by SIGTERM)."""
    voice = Voice()
    with sigterm_as_interrupt() as interruption:
        try:
            config = parse(BuildConfig, module="tolbuild.run", doc=__doc__, arguments=arguments)
            voice = Voice(as_json=config.log_json)
            result = build(config)
            if config.log_json:
                voice.event("done", **result.record())
            else:
                print(result.text)
        except (ValueError, ToLError, RuntimeError) as error:
            _fail(voice, "error", f"error: {error}")
            return 1
        except KeyboardInterrupt:
            _fail(voice, "stopped", "stopped; the same command goes on from here and repeats no finished cell")
            return interruption.exit_code
    return 0


def build(config: BuildConfig) -> BuildResult:
    """The build of a config, on the cluster unless it says otherwise; see tolbuild.drive.driver.build_table."""
    if config.no_ray or config.dry_run:
        return build_table(config)
    from tolbuild.on_ray import cluster, ray_pool

    if urlsplit(config.table).scheme == "memory":
        raise ValueError("--table memory:// lives in one process, where a cluster's workers cannot write; add --no-ray")
    with cluster():
        return build_table(config, ray_pool)


def _fail(voice: Voice, event: str, text: str) -> None:
    """Say why there is no result."""
    if voice.as_json:
        voice.event(event, text=text)
    else:
        voice.say(text)


if __name__ == "__main__":
    sys.exit(main())

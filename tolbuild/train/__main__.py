"""`python -m tolbuild.train`: train a model of the family on text and leave a checkpoint.

A run under the same --out and settings resumes where it stopped. With torchrun, every process takes its share of
each batch: `torchrun --nproc-per-node 8 -m tolbuild.train ...`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tolbuild.cli import parse
from tolbuild.table.errors import ToLError
from tolbuild.train.config import TrainConfig
from tolbuild.train.run import train


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; 0 when the checkpoint is written, 1 with the reason on standard error, 130 when interrupted."""
    config = parse(TrainConfig, module="tolbuild.train", doc=__doc__, arguments=arguments)
    try:
        train(config)
    except (ValueError, FloatingPointError, ToLError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; the same command resumes from the last state under {config.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tolbuild.evaluate`: perplexity on validation text, and samples, with dense networks and with a table.

    python -m tolbuild.evaluate --checkpoint builtin:tiny
    python -m tolbuild.evaluate --checkpoint builtin:tiny --table /tmp/tiny --alpha 0.9 --drop-layers 3
    python -m tolbuild.evaluate --checkpoint builtin:tiny --limit 0 --prompt "The whale" --temperature 0.8

The dense model is always measured; --table, --alpha or --drop-layers measure a second one beside it, on the same
windows. The last line of the output is one JSON object.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tolbuild.cli import parse
from tolbuild.evaluate.config import EvaluateConfig
from tolbuild.evaluate.run import evaluate
from tolbuild.table.errors import ToLError


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate; 0 when done, 1 with the reason on standard error, 130 when interrupted."""
    try:
        config = parse(EvaluateConfig, module="tolbuild.evaluate", doc=__doc__, arguments=arguments)
        evaluate(config)
    except (ValueError, ToLError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""s3rver, a second S3 implementation: a process on a free port of the loopback, its objects in a folder.

`make venv` installs it where npm is; see infra/s3rver. It ignores the condition of conditional puts.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tolbuild.table.store import Credentials

SCRIPT = Path(__file__).parents[2] / "infra" / "s3rver" / "node_modules" / "s3rver" / "bin" / "s3rver.js"

_KEY = "S3RVER"
"""The one name and secret that it knows."""


def missing() -> str:
    """Why it cannot be started here; empty where it can."""
    if shutil.which("node") is None:
        return "node is not on the path"
    return "" if SCRIPT.exists() else "s3rver is not installed; `make venv` does that where npm is"


@contextmanager
def s3rver(folder: Path, bucket: str) -> Iterator[Credentials]:
    """A server with one bucket, ended with the block.

    Raises:
        RuntimeError: it did not start.
    """
    command = ["node", str(SCRIPT), "--directory", str(folder), "--address", "127.0.0.1", "--port", "0", "--silent"]
    command += ["--no-vhost-buckets", "--configure-bucket", bucket]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield Credentials(endpoint_url=_address(process), access_key=_KEY, secret_key=_KEY, region="us-east-1")
        finally:
            process.kill()


def _address(process: subprocess.Popen[str]) -> str:
    said = []
    for line in process.stdout or ():
        said.append(line)
        found = re.search(r"listening on (127\.0\.0\.1:\d+)", line)
        if found:
            return f"http://{found[1]}"
    raise RuntimeError(f"s3rver ended at its start: {''.join(said)[-500:]}")

"""`python -m cluster.s3 --port-file PATH`: an S3 stand-in on a free port, in memory, until it is ended.

It has the buckets `models` and `tables`. It is moto's server: enough of S3 for builds, tables and tests on one machine,
too slow to time anything against.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from cluster.head import S3_KEYS

BUCKETS = ("models", "tables")
"""That there are from the start."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until ended; the port is in the file once requests are answered."""
    parser = argparse.ArgumentParser(prog="python -m cluster.s3", description=__doc__)
    parser.add_argument("--port-file", type=Path, required=True, help="file to write the port to")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: the loopback)")
    given = parser.parse_args(arguments)
    path: Path = given.port_file
    from moto.server import ThreadedMotoServer  # a second of imports, after the arguments are known to be right

    server = ThreadedMotoServer(ip_address=given.host, port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    for bucket in BUCKETS:
        _create(bucket, f"http://{given.host}:{port}")
    part = path.with_suffix(".part")
    part.write_text(str(port))
    os.replace(part, path)
    threading.Event().wait()
    return 0


def _create(bucket: str, url: str) -> None:
    import boto3

    keys = (S3_KEYS["AWS_ACCESS_KEY_ID"], S3_KEYS["AWS_SECRET_ACCESS_KEY"])
    client = boto3.client(
        "s3", S3_KEYS["AWS_REGION"], endpoint_url=url, aws_access_key_id=keys[0], aws_secret_access_key=keys[1]
    )
    client.create_bucket(Bucket=bucket)


if __name__ == "__main__":
    sys.exit(main())

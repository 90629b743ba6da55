"""`python -m cluster.s3 --port-file PATH`: an S3 stand-in on a free port, in memory, until it is ended.

It is moto's server: enough of S3 for builds, tables and tests on one machine, too slow to time anything against.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path


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
    part = path.with_suffix(".part")
    part.write_text(str(port))
    os.replace(part, path)
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())

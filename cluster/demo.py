"""`make demo`, or `python -m cluster.demo`: from the shipped checkpoint to a served table, on this machine alone.

It starts a Ray head and an S3 stand-in, builds the table as a Ray job, checks it, serves it from two memory nodes, asks
for a completion and shows what the network cost. Everything that it starts ends with it, after Ctrl-C too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tolbuild
from cluster.head import ClusterOptions, StartError
from cluster.interrupts import Interrupted
from cluster.processes import SurvivorsError
from cluster.session import Session, StepError, session

CHECKPOINT = "s3://models/tiny"
TABLE = "s3://tables/tiny"
PROMPT = "In the beginning of the year"
MEMORY_NODES = 2
NUM_CPUS = 4
"""What Ray hands out, so that the nodes of the endpoint find their place on two cores as well."""

RAY_LOG_LINE = r"^[-0-9]{10} [0-9:,]{12}\t[A-Z]+ \w+\.py:\d+ -- "
"""What Ray says about a job beside the job's own output."""

_SERVE_TIMEOUT_S = 90.0


def main(arguments: Sequence[str] = ()) -> int:
    """Run the demo; 0 when all of it worked, 1 with the reason, 130 after Ctrl-C."""
    if arguments:
        print(f"unknown: {' '.join(arguments)}; the demo takes no options", file=sys.stderr)
        return 2
    began = time.monotonic()
    print("The demo takes at most 3 minutes and downloads nothing. Ctrl-C ends it and everything that it started.")
    try:
        _title(1, "Ray and an S3 stand-in")
        with session("demo", ClusterOptions(num_cpus=NUM_CPUS)) as running:
            cluster = running.cluster
            print(f"Ray {cluster.address}, jobs {cluster.dashboard_url}, S3 {cluster.s3_url}, files {cluster.folder}")
            build(running)
            serve(running)
            _title(7, "the end")
    except (Interrupted, KeyboardInterrupt) as interrupt:  # the second before and after the session
        print("stopped; nothing is left running")
        return interrupt.exit_code if isinstance(interrupt, Interrupted) else 130
    except (StartError, StepError, SurvivorsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{time.monotonic() - began:.0f} s in all; its processes and files are gone, the S3 stand-in's tables too.")
    print("A table on disk: .venv/bin/python -m tolbuild.run --checkpoint builtin:tiny --table my-table --no-ray")
    return 0


def build(running: Session) -> None:
    """The checkpoint onto S3, the build as a Ray job, the check of its result."""
    _title(2, f"the shipped checkpoint goes to {CHECKPOINT}")
    num_bytes = upload(running)
    print(f"{num_bytes / 1e6:.1f} MB")

    _title(3, "the build, as a Ray job")
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    environment = {"env_vars": {name: running.cluster.environment[name] for name in names}}
    job = ("ray", "job", "submit", "--address", running.cluster.dashboard_url, "--working-dir", ".")
    options = ("--rank", "96", "--codes", "int8", "--layers-per-band", "2", "--workers", str(max(2, _num_cores())))
    command = ("python", "-m", "tolbuild.run", "--checkpoint", CHECKPOINT, "--table", TABLE, *options)
    running.run(*job, "--runtime-env-json", json.dumps(environment), "--", *command, hide=RAY_LOG_LINE)

    _title(4, "the check: every object, and rows computed again from the checkpoint")
    running.run("python", "-m", "tolbuild.verify", TABLE, "--checkpoint", CHECKPOINT, "--sample", "256")


def serve(running: Session) -> None:
    """An endpoint with memory nodes, one completion, and the price of the network."""
    _title(5, f"an endpoint whose rows are on {MEMORY_NODES} memory nodes")
    nodes = ("--memory-nodes", str(MEMORY_NODES))
    command = ("python", "-m", "tolserve.run", "--checkpoint", CHECKPOINT, "--table", TABLE, *nodes, "--port", "0")
    ready = running.serve(*command, ready="ready: ", timeout_s=_SERVE_TIMEOUT_S)
    print(ready)
    running.run("python", "-m", "cluster.ask", "--url", ready.split()[1], PROMPT)

    _title(6, "what the network costs: rows here, on the memory nodes, by other transports, in the store")
    running.run("python", "-m", "cluster.prices", "--checkpoint", CHECKPOINT, "--table", TABLE, *nodes)


def upload(running: Session) -> int:
    """The shipped checkpoint's files into new buckets; returns their bytes.

    Raises:
        StepError: this package has come without the checkpoint.
    """
    folder = Path(tolbuild.__file__).parent / "assets" / "tiny"
    files = sorted(path for path in folder.glob("*") if path.is_file())
    if not files:
        raise StepError(f"the shipped checkpoint is missing: {folder} is empty; get the repository again")
    import boto3  # comes with the S3 stand-in

    keys = running.cluster.environment
    s3 = boto3.client(
        "s3",
        endpoint_url=running.cluster.s3_url,
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        region_name=keys["AWS_REGION"],
    )
    for path in files:
        running.interrupts.check()
        s3.put_object(Bucket="models", Key=f"tiny/{path.name}", Body=path.read_bytes())
    return sum(path.stat().st_size for path in files)


def _num_cores() -> int:
    return os.cpu_count() or 1


def _title(step: int, text: str) -> None:
    print(f"\n[{step}/7] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

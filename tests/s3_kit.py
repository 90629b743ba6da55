"""An S3 stand-in in this process, on a free port."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import boto3
from moto.server import ThreadedMotoServer

from tolbuild.table.store import Credentials


@contextlib.contextmanager
def s3_server(*buckets: str) -> Iterator[Credentials]:
    """A moto server with some buckets; ends with the block."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        credentials = Credentials(
            endpoint_url=f"http://{host}:{port}", access_key="testing", secret_key="testing", region="us-east-1"
        )
        client = boto3.client(
            "s3",
            endpoint_url=credentials.endpoint_url,
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            region_name=credentials.region,
        )
        for bucket in buckets:
            client.create_bucket(Bucket=bucket)
        client.close()
        yield credentials
    finally:
        server.stop()

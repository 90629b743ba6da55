"""Checkpoints behind S3 and HTTP: the same content, read by range, and clear faults."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from moto.server import ThreadedMotoServer

from tolbuild.checkpoint import import_weights, load_model, open_checkpoint, save_checkpoint
from tolbuild.config import ModelConfig
from tolbuild.model import MemoryLLM
from tolbuild.table.errors import StoreError, ToLError
from tolbuild.table.store import Credentials

CONFIG = ModelConfig(
    kind="memory", vocab_size=9000, hidden_size=256, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
)
"""The embedding has 9.2 MB: more than one piece of a large read."""


@pytest.fixture(scope="module")
def model() -> MemoryLLM:
    model = MemoryLLM(CONFIG)
    model.reset_parameters(1)
    return model


@pytest.fixture(scope="module")
def local(model: MemoryLLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "c"
    save_checkpoint(folder, CONFIG, model.state_dict())
    return folder


@pytest.fixture(scope="module")
def s3() -> Iterator[Credentials]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    credentials = Credentials(
        endpoint_url=f"http://{host}:{port}", access_key="testing", secret_key="testing", region="us-east-1"
    )
    import boto3

    boto3.client(
        "s3",
        endpoint_url=credentials.endpoint_url,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    ).create_bucket(Bucket="models")
    yield credentials
    server.stop()


class RangeHandler(SimpleHTTPRequestHandler):
    """Files of a folder, by range where that is asked for; counts the bytes that it sent."""

    sent_bytes = 0

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        start, stop = 0, len(data)
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, len(data))
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[start:stop])
        type(self).sent_bytes += stop - start

    def log_message(self, *args: object) -> None:
        """Tests are quiet."""


@pytest.fixture(scope="module")
def http(local: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(local.parent)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/c"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 200_000])
def test_a_checkpoint_on_s3_is_the_local_one(
    s3: Credentials, model: MemoryLLM, local: Path, max_shard_bytes: int
) -> None:
    url = "s3://models/deep/c"
    save_checkpoint(url, CONFIG, model.state_dict(), max_shard_bytes=max_shard_bytes, credentials=s3)
    checkpoint = open_checkpoint(url, credentials=s3)
    assert checkpoint.fingerprint == open_checkpoint(local).fingerprint
    assert torch.equal(checkpoint.embedding_rows(8000, 8100), model.model.embed_tokens.weight[8000:8100])
    ids_BS = torch.arange(24).view(2, 12)
    assert torch.equal(load_model(checkpoint)(ids_BS), model(ids_BS))
    checkpoint.close()


def test_faults_on_s3_name_the_place(s3: Credentials) -> None:
    with pytest.raises(ToLError, match=r"no checkpoint at s3://models/none: it has no config.json"):
        open_checkpoint("s3://models/none", credentials=s3)
    with pytest.raises(StoreError, match="no-such-bucket"):
        open_checkpoint("s3://no-such-bucket/c", credentials=s3)


def test_pieces_come_by_range_over_http(http: str, local: Path, model: MemoryLLM) -> None:
    RangeHandler.sent_bytes = 0
    checkpoint = open_checkpoint(http)
    assert torch.equal(checkpoint.embedding_rows(5, 70), model.model.embed_tokens.weight[5:70])
    assert RangeHandler.sent_bytes < 200_000
    assert checkpoint.fingerprint == open_checkpoint(local).fingerprint
    with pytest.raises(ToLError, match="no checkpoint at"):
        open_checkpoint(f"{http}/none")
    with pytest.raises(StoreError, match="read-only"):
        save_checkpoint(f"{http}/copy", CONFIG, model.state_dict())


def test_own_weights_come_from_s3(s3: Credentials, model: MemoryLLM) -> None:
    save_checkpoint("s3://models/own", CONFIG, model.state_dict(), credentials=s3)
    for url in ("s3://models/own", "s3://models/own/model.safetensors"):
        state = import_weights(url, CONFIG, {}, credentials=s3)
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())

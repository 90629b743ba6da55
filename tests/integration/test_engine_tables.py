"""An engine fed from tables of every type of code gives the logits of the rows that `open_table(...).rows` gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serve_kit import make_served_checkpoint

from tolbuild.build_config import BuildConfig
from tolbuild.checkpoint import load_model, open_checkpoint
from tolbuild.drive.driver import build_table
from tolbuild.table import Manifest, Table, open_table
from tolserve.engine.config import EngineConfig
from tolserve.engine.load import build_engine
from tolserve.engine.request import SamplingParams
from tolserve.memory.cached import CachedSource
from tolserve.memory.client import PartitionedClient
from tolserve.memory.device_table import DeviceTable
from tolserve.memory.loading import TableStore, load_partition
from tolserve.memory.local import StoreFetcher
from tolserve.memory.partition import Partition
from tolserve.memory.service import RowService
from tolserve.memory.spec import RowSpec
from tolserve.transport.server import RowServer

DEVICES = [("cpu", "float32"), *([("cuda", "float32")] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_served_checkpoint(tmp_path_factory.mktemp("checkpoint") / "letters")


def build(checkpoint: str, folder: Path, **options: object) -> Manifest:
    shape = {"layers_per_band": 2, "shard_rows": 64, "no_ray": True, "workers": 1, "device": "cpu"}
    manifest = build_table(BuildConfig(checkpoint=checkpoint, table=str(folder), **shape | options)).manifest  # type: ignore[arg-type]
    assert manifest is not None
    return manifest


def reference_logprobs(checkpoint: str, folder: Path, ids: list[int]) -> torch.Tensor:
    """log-probabilities [S, V] of the plain forward with the table's rows."""
    opened = open_checkpoint(checkpoint)
    with open_table(folder) as table:
        rows_VLD = torch.from_numpy(table.rows(np.arange(opened.config.vocab_size)))
    with torch.no_grad():
        return load_model(opened).eval()(torch.tensor([ids]), rows_VLD, torch.tensor([ids]))[0].log_softmax(-1)


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("pinned_bands", [0, 1])
@pytest.mark.parametrize(
    ("options", "scaled"),
    [
        ({"codes": "bf16", "rank": "full"}, False),
        ({"codes": "bf16", "rank": 17}, False),
        ({"codes": "int8", "rank": "full"}, True),
        ({"codes": "int8", "rank": 31, "layout": "parquet"}, True),
        ({"codes": "int4", "rank": 47, "layout": "parquet"}, True),
        ({"codes": "int4", "rank": "full", "drop_layers": (2,)}, True),
        ({"codes": "int4", "rank": 17, "row_scales": "never"}, False),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_the_engine_agrees_with_the_tables_rows(
    checkpoint: str,
    tmp_path: Path,
    options: dict[str, object],
    scaled: bool,
    pinned_bands: int,
    device: str,
    dtype: str,
) -> None:
    manifest = build(checkpoint, tmp_path, **options)
    assert any(band.token_scaled for band in manifest.bands) == scaled
    prompt = np.random.default_rng(0).integers(0, 256, 30).tolist()
    with open_table(tmp_path) as table:
        source = CachedSource(StoreFetcher(TableStore(table)))
        config = EngineConfig(
            max_model_len=128,
            num_blocks=64,
            verify_every=1,
            pinned_bands=pinned_bands,
            device=device,
            dtype=dtype,  # type: ignore[arg-type]
        )
        engine = build_engine(checkpoint, source, config, table=table)
        params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, logprobs=3, prompt_logprobs=0)
        engine.add_request("r", prompt, params)
        outputs = [output for _ in iter(engine.has_work, False) for output in engine.step()]
        stats = engine.stats()
    tokens = [token for output in outputs for token in output.tokens]
    scores = outputs[0].prompt_logprobs
    assert scores is not None
    reference = reference_logprobs(checkpoint, tmp_path, prompt + [token.token_id for token in tokens])
    for position, token in enumerate([*scores[1:], *tokens]):
        assert token is not None
        for token_id, logprob in ((token.token_id, token.logprob), *token.top_logprobs):
            assert logprob == pytest.approx(float(reference[position, token_id]), abs=2e-4)
    assert stats["rows_verified"] > 0 and stats["row_mismatches"] == 0


def fetched(table: Table, ids: np.ndarray[Any, np.dtype[np.int64]], band: int) -> Any:
    """The rows of ids as two memory nodes send them."""
    stores = [load_partition(table, Partition(index=index, count=2)) for index in range(2)]
    servers = [RowServer(RowService(store)) for store in stores]
    for server in servers:
        server.start()
    source = CachedSource(PartitionedClient(stores[0].spec, [[server.address] for server in servers]))
    try:
        return np.array(source.wait(source.start(ids), band))
    finally:
        source.close()
        for server in servers:
            server.stop()


@pytest.mark.parametrize("options", [{"codes": "int4", "layout": "parquet"}, {"codes": "bf16"}], ids=str)
def test_rows_in_memory_and_over_tcp_are_those_of_the_files(
    checkpoint: str, tmp_path: Path, options: dict[str, object]
) -> None:
    manifest = build(checkpoint, tmp_path, **options)
    spec = RowSpec.from_manifest(manifest)
    ids = np.array([5, 255, 64, 0])
    with open_table(tmp_path) as table:
        loaded = load_partition(table, Partition(index=1, count=2))
        device = DeviceTable.load(CachedSource(StoreFetcher(TableStore(table))))
        for band in spec.bands:
            expected = np.empty((len(ids), band.row_bytes), np.uint8)
            table.codes_into(ids, band.index, expected)
            assert np.array_equal(device.wait(device.start(ids), band.index), expected)
            assert np.array_equal(fetched(table, ids, band.index), expected)
            own = np.empty((1, band.row_bytes), np.uint8)
            loaded.gather(loaded.locate(ids[2:3]), band.index, own)
            assert np.array_equal(own, expected[2:3])

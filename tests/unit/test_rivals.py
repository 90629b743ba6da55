"""The rivals' bench: every way returns the right rows and components where its library is here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tolbuild.bench.measure import Contestant
from tolbuild.bench.models import write_checkpoint
from tolbuild.bench.rivals import arrays, columns, reads, svd
from tolbuild.bench.rivals.best import Way, compete
from tolbuild.bench.rivals.modes import MissingError, Mode, Rows, as_bytes, drop_cache, files, load
from tolbuild.bench.svd import falling_rows
from tolbuild.table.reader import open_table

ROWS = Rows(num_shards=1, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@pytest.mark.parametrize("mode", [*arrays.modes(), *columns.modes()], ids=lambda mode: f"{mode.rival}, {mode.text}")
def test_every_way_reads_what_was_stored(mode: Mode, folder: Path) -> None:
    if mode.module:
        pytest.importorskip(mode.module)
    reader = reads._open(mode, folder, ROWS)
    ids = np.array([5, 4095, 5, 0] * 32)
    for _ in range(2):
        assert as_bytes(reader.read(ids)) == ROWS.of(ids)
        drop_cache(folder / mode.dataset)
    reader.close()


def test_the_table_is_the_one_that_our_bench_of_reads_uses(folder: Path) -> None:
    path = folder / "own"
    arrays.modes()[0].write(path, ROWS)
    with open_table(path) as table:
        assert table.codes(np.array([77]), 0).tobytes() == ROWS.of(np.array([77]))
    assert len(files(path)) > 3


def test_the_fastest_way_of_a_rival_competes_and_a_missing_one_is_null() -> None:
    seen: list[str] = []

    def way(rival: str, text: str, uncounted_s: float = 0.0) -> Way:
        name = f"{rival} {text}"
        run = Contestant(name=name, run=lambda: seen.append(name), uncounted=lambda: uncounted_s)
        return Way(rival=rival, text=text, contestant=run)

    ways = [way("a", "only"), way("b", "slow"), way("b", "fast", uncounted_s=100.0)]
    result = compete(ways, rivals=("a", "b", "gone"), trial_rounds=2, rounds=3, warm_up=False)
    assert list(result.medians_s) == ["a", "b", "gone"] and result.medians_s["gone"] is None
    assert result.ways == {"a": "only", "b": "fast"}
    assert [seen.count(name) for name in ("a only", "b slow", "b fast")] == [3, 2, 5]


def test_a_library_that_is_not_here_has_a_reason() -> None:
    with pytest.raises(MissingError, match="no_such_library is not installed; the extra `rivals` brings it"):
        load("no_such_library")


@pytest.mark.parametrize("method", svd.METHODS, ids=lambda method: method[0])
def test_every_svd_finds_the_leading_components(method: tuple[str, str, tuple[str, ...], svd.Method]) -> None:
    _, _, libraries, run = method
    for library in libraries:
        pytest.importorskip(library)
    rows_VD = falling_rows(9000, 64, seed=1)
    sizes_R, codes_VR = run(rows_VD, 8)
    centred_VD = rows_VD.double().numpy() - rows_VD.double().numpy().mean(axis=0)
    expected = np.linalg.svd(centred_VD, compute_uv=False)[:8]
    np.testing.assert_allclose(sizes_R[:4], expected[:4], rtol=0.02)  # the last ones are what a random start costs
    np.testing.assert_allclose(np.linalg.norm(codes_VR, axis=0), sizes_R, rtol=0.01)


def test_the_pipeline_of_dask_and_zarr_does_the_same_work(tmp_path: Path) -> None:
    for library in ("dask.array", "threadpoolctl", "zarr"):
        pytest.importorskip(library)
    from tolbuild.bench.rivals import dask_build
    from tolbuild.build_config import BuildConfig
    from tolbuild.drive.driver import build_table

    checkpoint = write_checkpoint(tmp_path / "model", vocab_size=5000, width=64, hidden=96, num_layers=2, seed=0)
    theirs = dask_build.build(Path(checkpoint), tmp_path / "dask", rank=16)
    options = {"rank": 16, "codes": "int8", "row_scales": "never", "no_ray": True}
    config = BuildConfig(checkpoint=checkpoint, table=str(tmp_path / "ours"), **options)  # type: ignore[arg-type]
    manifest = build_table(config).manifest
    assert manifest is not None
    np.testing.assert_allclose(theirs, [stat.relative_error for stat in manifest.layer_stats], rtol=0.01)
    group = load("zarr").open_group(tmp_path / "dask", mode="r")
    codes_NR = group["codes_1"][:100].astype(np.float32) * group["scale_1"][:]
    rebuilt_ND = torch.from_numpy(codes_NR @ group["basis_1"][:] + group["mean_1"][:])
    with open_table(tmp_path / "ours") as table:
        ours_ND = torch.from_numpy(table.rows(range(100), [1])[:, 0])
    assert float((rebuilt_ND - ours_ND).norm() / ours_ND.norm()) < 0.02

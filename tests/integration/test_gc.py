"""`python -m tolbuild.gc`: what goes, and what never does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from build_kit import contents, make_checkpoint
from s3_kit import s3_server
from s3_proxy import ALWAYS, s3_proxy, without

from tolbuild.build import WorkOrder
from tolbuild.build_config import BuildConfig
from tolbuild.drive.driver import build_table, thread_pool
from tolbuild.drive.garbage import find_garbage, remove
from tolbuild.drive.mark import mark_key, process_mark
from tolbuild.drive.owner import claimed
from tolbuild.drive.pool import Event, Pool
from tolbuild.gc import GcConfig, main
from tolbuild.table import Credentials, list_versions, open_store
from tolbuild.table.check import check_table
from tolbuild.table.local_store import SCRATCH, scratch_owner
from tolbuild.table.publish import PROBES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def s3() -> Iterator[Credentials]:
    with s3_server("tables") as credentials:
        yield credentials


@pytest.fixture(params=["file", "s3"])
def config(
    request: pytest.FixtureRequest, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BuildConfig:
    table = str(tmp_path / "table")
    if request.param == "s3":
        credentials = request.getfixturevalue("s3")
        monkeypatch.setenv("AWS_ENDPOINT_URL", credentials.endpoint_url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credentials.secret_key)
        table = f"s3://tables/{tmp_path.name}"
    options = {"rank": 24, "codes": "int8", "layers_per_band": 1, "shard_rows": 128, "no_ray": True, "device": "cpu"}
    return BuildConfig(checkpoint=checkpoint, table=table, workers=2, **options)  # type: ignore[arg-type]


class Stopping:
    """A real pool that calls `clear` after the first event, and is interrupted after the last if `stops`."""

    def __init__(self, pool: Pool, num_events: int, *, stops: bool, url: str) -> None:
        self._pool, self._left, self._stops, self._url = pool, num_events, stops, url
        self.num_workers = pool.num_workers
        self.free, self.submit, self.close = pool.free, pool.submit, pool.close

    def wait(self, timeout_s: float) -> list[Event]:
        events = self._pool.wait(timeout_s)
        before, self._left = self._left, self._left - len(events)
        if before > 0 >= self._left:
            if self._stops:
                raise KeyboardInterrupt
            assert main([self._url, "--delete", "--older-than", "0s"]) == 0
        return events


def build(config: BuildConfig, num_events: int, *, stops: bool) -> None:
    @contextmanager
    def open_pool(config: BuildConfig, order: WorkOrder) -> Iterator[Pool]:
        with thread_pool(config, order) as pool:
            yield Stopping(pool, num_events, stops=stops, url=config.table)

    build_table(config, open_pool)


def begin(config: BuildConfig) -> str:
    """A build of other options that is interrupted; its plan."""
    other = replace(config, codes="fp16", new_version=True)
    with pytest.raises(KeyboardInterrupt):
        build(other, 25, stops=True)
    return build_table(replace(other, dry_run=True)).plan.plan_hash


def test_what_an_interrupted_build_left_is_listed_and_goes_when_it_is_old(
    config: BuildConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    build_table(config)
    plan_hash, store = begin(config), open_store(config.table)
    everything = store.list()
    assert main([config.table, "--delete"]) == 0
    assert "s ago, less than 86,400 s" in capsys.readouterr().out
    assert main([config.table, "--older-than", "0s"]) == 0
    listed = capsys.readouterr().out
    assert f"plan {plan_hash}: " in listed and "removable" in listed and "--delete removes them" in listed
    assert store.list() == everything
    assert main([config.table, "--delete", "--older-than", "0s"]) == 0
    assert "removed" in capsys.readouterr().out
    assert not [info for info in store.list() if plan_hash in info.key]
    assert check_table(store).sound and list_versions(store) == [1]
    build_table(replace(config, codes="fp16", new_version=True))
    assert check_table(store).sound and list_versions(store) == [1, 2]


def test_partial_results_of_an_allocated_build_are_kept_while_it_runs_and_go_with_it(
    config: BuildConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "counts.json").write_text(str([1, 2] * 500))
    config = replace(config, rank="bytes:120kB", weights=f"counts:{tmp_path / 'counts.json'}")
    with pytest.raises(KeyboardInterrupt):
        build(config, 22, stops=True)
    store = open_store(config.table)
    left = {info.key.rpartition("/")[2] for info in store.list("_build")}
    assert {"weights", "ranks", "fit-000", "scale-000", "sum-000-0"} <= left
    assert main([config.table, "--delete", "--older-than", "0s"]) == 0
    assert not store.list()
    build(config, 22, stops=False)
    assert "kept: in work by python -m tolbuild.run on" in capsys.readouterr().out
    assert check_table(store).sound and not store.list("_build")


def test_a_running_build_keeps_all_that_it_has(config: BuildConfig, capsys: pytest.CaptureFixture[str]) -> None:
    build(config, 20, stops=False)
    assert "kept: in work by python -m tolbuild.run on" in capsys.readouterr().out
    store = open_store(config.table)
    assert check_table(store).sound and not store.list("_build")


@pytest.mark.parametrize("config", ["file"], indirect=True)
def test_a_build_that_begins_between_the_look_and_the_removal_keeps_all_too(config: BuildConfig) -> None:
    plan_hash, store = begin(config), open_store(config.table)
    (heap,) = find_garbage(store, older_than_s=0)
    with claimed(store, plan_hash, task="a build", say=None):
        assert remove(store, heap, task="gc", older_than_s=0).kept == "a build of it has just begun"
    assert "less than" in remove(store, heap, task="gc", older_than_s=3600).kept
    build_table(replace(config, codes="fp16"))
    assert remove(store, heap, task="gc", older_than_s=0).objects == ()
    assert check_table(store).sound


@pytest.mark.parametrize("config", ["file"], indirect=True)
def test_marks_of_other_machines_count_by_their_age(config: BuildConfig) -> None:
    plan_hash, store = begin(config), open_store(config.table)
    mark = replace(process_mark("x", "a build", beside=False), machine="elsewhere", host="far")
    store.write(mark_key(plan_hash, 1), mark.to_bytes())
    assert [heap.kept for heap in find_garbage(store, older_than_s=0)] == [
        f"in work by a build on far, process {mark.pid}"
    ]
    store.write(mark_key(plan_hash, 1), replace(mark, seen="2020-01-01T00:00:00+00:00").to_bytes())
    assert [heap.kept for heap in find_garbage(store, older_than_s=0)] == [""]
    assert main([config.table, "--delete", "--older-than", "0s"]) == 0
    assert not store.list()


@pytest.mark.parametrize("config", ["file"], indirect=True)
def test_unfinished_writes_probes_and_foreign_files(config: BuildConfig, capsys: pytest.CaptureFixture[str]) -> None:
    build_table(config)
    store, before = open_store(config.table), contents(Path(config.table))
    living = f"{SCRATCH}/{scratch_owner()}-99"
    dead = living.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-")
    far, probe, foreign = f"{SCRATCH}/elsewhere-7-0", f"{PROBES}/abc", "notes/README.txt"
    for key in (dead, living, far, probe, foreign):
        store.write(key, b"x")
    assert main([config.table, "--delete"]) == 0
    assert len(contents(Path(config.table))) == len(before) + 5
    assert main([config.table, "--delete", "--older-than", "0s"]) == 0
    assert "unfinished writes: 1 objects, 1 B, kept: in work on this machine" in capsys.readouterr().out
    assert set(contents(Path(config.table))) - set(before) == {living, foreign}


@pytest.mark.parametrize("config", ["file"], indirect=True)
def test_nothing_goes_where_a_manifest_cannot_be_read(config: BuildConfig, capsys: pytest.CaptureFixture[str]) -> None:
    build_table(config)
    begin(config)
    store = open_store(config.table)
    store.write("manifests/00000001.json", store.read("manifests/00000001.json").replace(b"int8", b"int9"))
    before = store.list()
    assert main([config.table, "--delete", "--older-than", "0s"]) == 1
    assert "manifests/00000001.json" in capsys.readouterr().err
    assert store.list() == before


@pytest.mark.parametrize("age", ["1", "", "soon", "-1d", "1.5h"])
def test_a_wrong_age_is_named(age: str) -> None:
    with pytest.raises(ValueError, match=f"--older-than is '{age}'; it must be"):
        GcConfig(url="place", older_than=age)
    assert GcConfig(url="place", older_than="12h").older_than_s == 12 * 3600


def test_a_store_that_ignores_conditions_needs_a_single_writer(
    s3: Credentials, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with s3_proxy(s3.endpoint_url) as proxy:
        proxy.on(without("if-none-match"), method="PUT", times=ALWAYS)
        for name, value in (("ENDPOINT_URL", proxy.url), ("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x")):
            monkeypatch.setenv(f"AWS_{name}", value)
        store = open_store("s3://tables/gc-unconditional")
        store.write("receipts/abc/band-000/00000.json", b"x")
        line = ["s3://tables/gc-unconditional", "--delete", "--older-than", "0s"]
        assert main(line) == 1
        assert "--single-writer" in capsys.readouterr().err
        assert main([*line, "--single-writer"]) == 0
        assert not store.list()

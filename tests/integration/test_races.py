"""Several builds of one place at a time, and builds on S3 as it is: one version each, and neither harms the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from build_kit import build_config, contents, finish, make_checkpoint, start_build
from s3_kit import s3_server
from s3_proxy import ALWAYS, Proxy, hang_up, lose_answer, refuse, s3_proxy, without

from tolbuild.bench.s3rver import missing, s3rver
from tolbuild.build import WorkOrder
from tolbuild.build_config import BuildConfig
from tolbuild.drive import owner
from tolbuild.drive.driver import build_table, thread_pool
from tolbuild.drive.mark import mark_key, process_mark
from tolbuild.drive.owner import claimed, read_marks
from tolbuild.drive.pool import Event, Pool
from tolbuild.grid import Cell
from tolbuild.table import Credentials, Store, StoreError, list_versions, open_store, open_table
from tolbuild.table.check import check_table
from tolbuild.table.errors import TableConflictError

PLAN = "00c0ffee00c0ffee"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def s3() -> Iterator[Credentials]:
    with s3_server("tables") as credentials:
        yield credentials


@pytest.fixture
def config(checkpoint: str, tmp_path: Path) -> BuildConfig:
    return build_config(checkpoint, tmp_path, layers_per_band=1, shard_rows=128)


@pytest.fixture(scope="module")
def reference(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the build of `config` writes where it is alone."""
    table = tmp_path_factory.mktemp("reference") / "table"
    options = {"rank": 24, "codes": "int8", "layers_per_band": 1, "shard_rows": 128, "no_ray": True, "device": "cpu"}
    build_table(BuildConfig(checkpoint=checkpoint, table=str(table), **options))  # type: ignore[arg-type]
    return contents(table)


def environment(credentials: Credentials) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": credentials.endpoint_url,
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        "AWS_SESSION_TOKEN": credentials.session_token,
        "AWS_REGION": credentials.region,
    }


def line(config: BuildConfig, *more: str) -> list[str]:
    options = ["--rank", str(config.rank), "--codes", config.codes, "--layers-per-band", "1", "--shard-rows", "128"]
    place = ["--checkpoint", config.checkpoint, "--table", config.table, "--no-ray", "--workers", "2"]
    return [*place, *options, "--device", "cpu", *more]


def copied(store: Store, folder: Path) -> dict[str, str]:
    """`contents` of a table behind a URL."""
    for info in store.list():
        path = folder / info.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(info.key))
    return contents(folder)


@pytest.mark.slow
def test_two_processes_with_the_same_options_leave_one_version(
    config: BuildConfig, s3: Credentials, reference: dict[str, str], tmp_path: Path
) -> None:
    config = replace(config, table="s3://tables/same options")
    processes = [start_build(*line(config), environment=environment(s3)) for _ in range(2)]
    ends = [finish(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert sorted("already complete" in out for out, _ in ends) == [False, True]
    store = open_store(config.table, s3)
    assert copied(store, tmp_path / "copy") == reference
    assert check_table(store).sound


@pytest.mark.slow
def test_two_processes_with_other_options_leave_a_version_each(config: BuildConfig, reference: dict[str, str]) -> None:
    other = replace(config, codes="fp16")
    processes = [start_build(*line(each, "--new-version")) for each in (config, other)]
    ends = [finish(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    store = open_store(config.table)
    assert list_versions(store) == [1, 2] and check_table(store).sound
    assert not store.list("_build")
    shared = {key: digest for key, digest in contents(Path(config.table)).items() if key in reference}
    kept = {key: digest for key, digest in reference.items() if not key.startswith("manifests")}
    assert {key: digest for key, digest in shared.items() if not key.startswith("manifests")} == kept
    types = set()
    for version in (1, 2):
        with open_table(config.table, version=version) as table:
            types.add(table.manifest.bands[0].dtype)
    assert types == {"int8", "float16"}


class Watched:
    """A real pool that calls `then` after so many events."""

    def __init__(self, pool: Pool, num_events: int, then: Callable[[], None]) -> None:
        self._pool, self._left, self._then = pool, num_events, then
        self.num_workers = pool.num_workers

    def free(self) -> list[str]:
        return self._pool.free()

    def submit(self, worker: str, cell: Cell) -> None:
        self._pool.submit(worker, cell)

    def waits_for(self) -> str:
        return self._pool.waits_for()

    def wait(self, timeout_s: float) -> list[Event]:
        events = self._pool.wait(timeout_s)
        before, self._left = self._left, self._left - len(events)
        if before > 0 >= self._left:
            self._then()
        return events

    def close(self, *, stopped: bool) -> None:
        self._pool.close(stopped=stopped)


def build_with(config: BuildConfig, num_events: int, then: Callable[[], None]) -> str:
    @contextmanager
    def open_pool(config: BuildConfig, order: WorkOrder) -> Iterator[Pool]:
        with thread_pool(config, order) as pool:
            yield Watched(pool, num_events, then)

    return build_table(config, open_pool).text


def test_a_number_that_is_taken_meanwhile_is_left_to_the_other(config: BuildConfig) -> None:
    other = replace(config, codes="fp16", new_version=True)
    text = build_with(config, 10, lambda: print(build_table(other).text))
    assert "version 2" in text
    store = open_store(config.table)
    assert list_versions(store) == [1, 2] and check_table(store).sound


def test_what_another_publishes_of_the_same_plan_is_ours_too(config: BuildConfig, reference: dict[str, str]) -> None:
    """The other one believed us dead: it took the plan over and was faster, and removed the partial results."""

    def be_overtaken() -> None:
        (mark,) = read_marks(open_store(config.table), plan_of(config))
        open_store(config.table).delete(mark_key(plan_of(config), mark))
        build_table(config)

    text = build_with(config, 30, be_overtaken)
    assert "already complete" in text
    assert contents(Path(config.table)) == reference


def plan_of(config: BuildConfig) -> str:
    return build_table(replace(config, dry_run=True)).plan.plan_hash


def test_two_builds_with_other_options_refuse_each_other(config: BuildConfig) -> None:
    def start_another() -> None:
        with pytest.raises(
            TableConflictError, match=r"unfinished build.*in work by python -m tolbuild.run on .*process"
        ):
            build_table(replace(config, codes="fp16"))

    build_with(config, 1, start_another)
    assert list_versions(open_store(config.table)) == [1]


def test_who_is_taken_over_stops_and_loses_nothing(
    config: BuildConfig, reference: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "REFRESH_S", 0.02)
    store, plan_hash = open_store(config.table), plan_of(config)
    intruder = replace(process_mark("other", "another build", beside=False), machine="elsewhere", host="far")

    def intrude() -> None:
        store.write(mark_key(plan_hash, 2), intruder.to_bytes())

    with pytest.raises(TableConflictError, match=r"another took plan .* over: another build on far"):
        build_with(config, 2, intrude)
    assert list(read_marks(store, plan_hash)) == [2]
    store.delete(mark_key(plan_hash, 2))
    build_table(config)
    assert contents(Path(config.table)) == reference


@pytest.mark.parametrize("kind", ["ended here", "old", "damaged"])
def test_marks_that_were_left_behind_hold_nobody_up(config: BuildConfig, kind: str) -> None:
    mark = process_mark("x", "a build", beside=False)
    left = {
        "ended here": replace(mark, started=mark.started + 1).to_bytes(),
        "old": replace(mark, machine="elsewhere", seen="2020-01-01T00:00:00.000+00:00").to_bytes(),
        "damaged": b"{}",
    }
    store, plan_hash = open_store(config.table), plan_of(config)
    store.write(mark_key(plan_hash, 7), left[kind])
    with claimed(store, plan_hash, task="test", say=None) as claim:
        assert claim is not None
        assert list(read_marks(store, plan_hash)) == [8]
    assert not store.list()


def test_a_far_mark_that_is_fresh_is_waited_for_and_a_silent_one_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "SILENT_S", 1.0)
    monkeypatch.setattr(owner, "POLL_S", 0.05)
    store = open_store("memory://test-far-marks")
    mark, said = replace(process_mark("x", "a build", beside=False), machine="elsewhere", host="far"), list[str]()
    ended = threading.Event()

    def live_on() -> None:
        nonlocal mark
        for _ in range(15):
            mark = mark.refreshed()
            store.write(mark_key(PLAN, 1), mark.to_bytes())
            ended.wait(0.1)
        ended.set()

    store.write(mark_key(PLAN, 1), mark.to_bytes())
    alive = threading.Thread(target=live_on)
    alive.start()
    with claimed(store, PLAN, task="test", say=said.append) as claim:
        assert claim is not None and ended.is_set(), "it was taken over while it lived"
    alive.join()
    assert said == [f"plan {PLAN} is in work by a build on far, process {mark.pid}; waiting for its end"]


def test_of_many_claims_one_holds_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "POLL_S", 0.01)
    store, held, most = open_store("memory://test-many-claims"), [0], [0]
    lock = threading.Lock()

    def work() -> None:
        for _ in range(5):
            with claimed(store, PLAN, task="test", say=lambda text: None):
                with lock:
                    held[0] += 1
                    most[0] = max(most[0], held[0])
                with lock:
                    held[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and not store.list()


@pytest.fixture
def proxy(s3: Credentials, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that the environment names as the S3 service."""
    with s3_proxy(s3.endpoint_url) as proxy:
        for name, value in environment(replace(s3, endpoint_url=proxy.url)).items():
            monkeypatch.setenv(name, value)
        yield proxy


def test_a_build_through_bad_weather_has_the_same_bytes(
    config: BuildConfig, s3: Credentials, proxy: Proxy, reference: dict[str, str], tmp_path: Path
) -> None:
    for deed in (refuse(503, "SlowDown"), hang_up, refuse(500, "InternalError")):
        for path in ("sum-", "fit-", "band-", "receipts/", "list-type"):
            proxy.on(deed, path=path, times=2)
    proxy.on(lose_answer, method="PUT", path="manifests/")
    build_table(replace(config, table="s3://tables/weather"))
    store = open_store("s3://tables/weather", s3)
    assert copied(store, tmp_path / "copy") == reference and check_table(store).sound
    assert not any(rule.times for rule in proxy.rules)


def test_a_store_that_ignores_conditions_is_refused_before_the_first_shard(
    config: BuildConfig, s3: Credentials, proxy: Proxy, reference: dict[str, str], tmp_path: Path
) -> None:
    proxy.on(without("if-none-match"), method="PUT", times=ALWAYS)
    config, store = replace(config, table="s3://tables/unconditional"), open_store("s3://tables/unconditional", s3)
    with pytest.raises(StoreError, match=r"ignores the condition.*--single-writer"):
        build_table(config)
    assert store.list() == []
    build_table(replace(config, single_writer=True))
    assert copied(store, tmp_path / "copy") == reference and check_table(store).sound
    allocated = replace(config, rank="bytes:120kB", single_writer=True, new_version=True)
    assert build_table(allocated).published and not build_table(allocated).published
    assert list_versions(store) == [1, 2] and check_table(store).sound and not store.list("_build")


@pytest.mark.skipif(bool(missing()), reason=missing() or "it is there")
def test_a_build_on_a_second_implementation(
    config: BuildConfig, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3rver(tmp_path / "objects", "tables") as credentials:
        for name, value in environment(credentials).items():
            monkeypatch.setenv(name, value)
        config = replace(config, table="s3://tables/a place/ünï")
        with pytest.raises(StoreError, match="ignores the condition"):
            build_table(config)
        build_table(replace(config, single_writer=True))
        store = open_store(config.table)
        assert copied(store, tmp_path / "copy") == reference and check_table(store).sound


def test_credentials_that_expire_on_the_way_are_renewed_by_the_same_command(
    config: BuildConfig,
    s3: Credentials,
    proxy: Proxy,
    reference: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(config, table="s3://tables/expiring")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "old")
    expired = refuse(400, "ExpiredToken", "The provided token has expired.")

    def expire() -> None:
        proxy.on(expired, header=("x-amz-security-token", "old"), times=ALWAYS)

    with pytest.raises(StoreError, match=r"credentials have expired \(ExpiredToken"):
        build_with(config, 20, expire)
    store = open_store(config.table, s3)
    finished = len(store.list("receipts"))
    assert finished
    monkeypatch.setenv("AWS_SESSION_TOKEN", "new")
    proxy.requests.clear()
    build_table(config)
    assert copied(store, tmp_path / "copy") == reference
    written = {request.path for request in proxy.requests if request.method == "PUT" and "/receipts/" in request.path}
    assert len(written) == 24 - finished

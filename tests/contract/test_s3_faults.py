"""S3 on a bad day: slow, silent, expired, elsewhere. A proxy in front of a real server puts the faults in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3_proxy import ALWAYS, Deed, Proxy, be_silent, carried_out_but, hang_up, lose_answer, refuse, s3_proxy, without
from table_kit import table_spec, write_table

from tolbuild.bench.s3rver import missing, s3rver
from tolbuild.table import Credentials, StoreError, TableConflictError, open_store, open_table, read_manifest
from tolbuild.table.check import check_table
from tolbuild.table.errors import ObjectNotFoundError
from tolbuild.table.publish import PROBES, probe_conditional_put, publish, put_if_absent
from tolbuild.table.s3_store import PART_BYTES, Patience, S3Store

IMPATIENT = Patience(connect_s=1, silence_s=0.4, upload_s=0.5, retry_s=0.5)

URL = "s3://tables/place"


@pytest.fixture
def proxy(s3: Credentials) -> Iterator[Proxy]:
    with s3_proxy(s3.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def behind(s3: Credentials, proxy: Proxy) -> Iterator[Credentials]:
    """Credentials of the server as it is seen through the proxy; the place is empty."""
    yield replace(s3, endpoint_url=proxy.url)
    store = open_store(URL, s3)
    for info in store.list():
        store.delete(info.key)


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Credentials]:
    if missing():
        pytest.skip(missing())
    with s3rver(tmp_path_factory.mktemp("s3rver"), "tables") as credentials:
        yield credentials


OPERATIONS: dict[str, Callable[[S3Store], Any]] = {
    "list": lambda store: store.list(),
    "read": lambda store: store.read("key"),
    "size": lambda store: store.size("key"),
    "ranges": lambda store: store.read_scattered("key", np.array([1]), [np.empty(1, np.uint8)]),
    "write": lambda store: store.write("key", b"xyz"),
    "write in parts": lambda store: store.write("key", bytes(PART_BYTES), b"the rest"),
    "create": lambda store: store.create("new", b"x"),
    "delete": lambda store: store.delete("key"),
}

PASSING = (
    refuse(500, "InternalError"),
    refuse(503, "SlowDown", "Please reduce your request rate."),
    refuse(503, "ServiceUnavailable"),
    hang_up,
)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "create"])
def test_what_passes_is_tried_again(name: str, s3: Credentials, behind: Credentials, proxy: Proxy) -> None:
    open_store(URL, s3).write("key", b"abc")
    rules = [proxy.on(deed) for deed in PASSING]
    OPERATIONS[name](S3Store(URL, behind))
    assert not any(rule.times for rule in rules)


@pytest.mark.parametrize("name", ["list", "ranges", "write", "write in parts", "delete"])
def test_a_silence_is_tried_again(name: str, s3: Credentials, behind: Credentials, proxy: Proxy) -> None:
    open_store(URL, s3).write("key", b"abc")
    rule = proxy.on(be_silent)
    OPERATIONS[name](S3Store(URL, behind, replace(IMPATIENT, silence_s=0.7, upload_s=2, retry_s=10)))
    assert rule.times == 0


@pytest.mark.parametrize("name", OPERATIONS)
def test_who_never_answers_is_given_up_on(name: str, behind: Credentials, proxy: Proxy) -> None:
    proxy.on(be_silent, times=ALWAYS)
    with pytest.raises(StoreError, match=f"{URL}/.* at {proxy.url}: .*"):
        OPERATIONS[name](S3Store(URL, behind, IMPATIENT))


@pytest.mark.parametrize("name", ["read", "write", "create", "delete"])
def test_what_does_not_pass_is_told(name: str, behind: Credentials, proxy: Proxy) -> None:
    proxy.on(refuse(503, "SlowDown", "Please reduce your request rate."), times=ALWAYS)
    with pytest.raises(StoreError, match="503"):
        OPERATIONS[name](S3Store(URL, behind, IMPATIENT))


def test_patience_is_positive() -> None:
    with pytest.raises(ValueError, match="silence_s is 0"):
        Patience(silence_s=0)


@pytest.mark.parametrize("size", [PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 7])
def test_large_objects_go_up_in_parts_and_bad_ones_again(
    size: int, s3: Credentials, behind: Credentials, proxy: Proxy
) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    proxy.on(refuse(503, "SlowDown"), method="PUT")
    proxy.on(hang_up, method="PUT", path="partNumber=2")
    proxy.on(carried_out_but(500, "InternalError"), method="PUT", path="partNumber=1")
    S3Store(URL, behind).write("large", data[: size - 5], data[size - 5 :])
    assert open_store(URL, s3).read("large") == data.tobytes()
    assert any("partNumber" in request.path for request in proxy.requests) == (size > PART_BYTES)


def test_a_large_object_that_cannot_be_finished_is_not_there(
    s3: Credentials, behind: Credentials, proxy: Proxy
) -> None:
    proxy.on(refuse(500, "InternalError"), method="PUT", path="partNumber=2", times=ALWAYS)
    with pytest.raises(StoreError, match="500"):
        S3Store(URL, behind, replace(IMPATIENT, upload_s=5)).write("large", bytes(2 * PART_BYTES))
    assert open_store(URL, s3).list() == []
    assert any(request.method == "DELETE" and "uploadId" in request.path for request in proxy.requests)


@pytest.mark.parametrize("name", ["list", "size", "ranges", "write in parts", "create"])
def test_expired_credentials_are_named_and_fresh_ones_taken(name: str, behind: Credentials, proxy: Proxy) -> None:
    proxy.on(
        refuse(400, "ExpiredToken", "The provided token has expired."),
        header=("x-amz-security-token", "old"),
        times=ALWAYS,
    )
    with pytest.raises(StoreError, match=r"have expired \(ExpiredToken: The provided token has expired.\).*same comm"):
        OPERATIONS[name](S3Store(URL, replace(behind, session_token="old")))
    fresh = S3Store(URL, replace(behind, session_token="new"))
    fresh.write("key", b"abc")
    OPERATIONS[name](fresh)


def test_given_credentials_are_not_mixed_with_those_of_the_environment(
    behind: Credentials, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"):
        monkeypatch.setenv(f"AWS_{name}", "of-the-environment")
    S3Store(URL, behind).write("key", b"abc")
    S3Store(URL, replace(behind, session_token="given")).write("key", b"abc")
    first, second = (request.headers for request in proxy.requests)
    assert "x-amz-security-token" not in first and second["x-amz-security-token"] == "given"
    assert "of-the-environment" not in str(first) + str(second)


ELSEWHERE: dict[str, Deed] = {
    "redirect": refuse(301, "PermanentRedirect", x_amz_bucket_region="eu-west-1"),
    "signature": refuse(
        400,
        "AuthorizationHeaderMalformed",
        "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'",
    ),
}


@pytest.mark.parametrize("answer", ELSEWHERE)
@pytest.mark.parametrize("name", ["list", "size", "ranges", "write", "create"])
def test_a_wrong_region_is_named(name: str, answer: str, behind: Credentials, proxy: Proxy) -> None:
    proxy.on(ELSEWHERE[answer], times=ALWAYS)
    with pytest.raises(StoreError, match=r"the bucket tables is in .* region.*set AWS_REGION") as told:
        OPERATIONS[name](S3Store(URL, behind))
    assert answer == "redirect" or "AWS_REGION=eu-west-1" in str(told.value)


@pytest.mark.parametrize("answer", [lose_answer, carried_out_but(500, "InternalError"), hang_up])
def test_a_lost_answer_is_recognised_as_our_own(
    answer: Deed, s3: Credentials, behind: Credentials, proxy: Proxy
) -> None:
    made = write_table(open_store(URL, s3), table_spec())
    rule = proxy.on(answer, method="PUT", path="manifests/00000002")
    published = publish(open_store(URL, behind), replace(made.manifest, version=2))
    assert rule.times == 0
    assert read_manifest(open_store(URL, s3)) == published


@pytest.mark.parametrize("answer", [lose_answer, carried_out_but(500, "InternalError")])
def test_anothers_object_is_no_lost_answer_of_ours(
    answer: Deed, s3: Credentials, behind: Credentials, proxy: Proxy
) -> None:
    made = write_table(open_store(URL, s3), table_spec())
    proxy.on(answer, method="PUT", path="manifests/")
    with pytest.raises(TableConflictError, match=r"version 1 of .* was published by another writer"):
        publish(open_store(URL, behind), made.manifest)
    assert read_manifest(open_store(URL, s3)) == made.manifest


def test_a_dropped_condition_is_found_out(s3: Credentials, behind: Credentials, proxy: Proxy) -> None:
    made = write_table(open_store(URL, s3), table_spec())
    proxy.on(without("if-none-match"), method="PUT", times=ALWAYS)
    store = open_store(URL, behind)
    with pytest.raises(StoreError, match=r"ignores the condition.*--single-writer"):
        publish(store, replace(made.manifest, version=2))
    assert store.list("manifests") == store.list("manifests")[:1] and store.list(PROBES) == []
    publish(store, replace(made.manifest, version=2), single_writer=True)
    with pytest.raises(TableConflictError, match="another writer"):
        publish(store, replace(made.manifest, version=2), single_writer=True)


def test_the_probe_leaves_nothing_and_survives_lost_answers(s3: Credentials, behind: Credentials, proxy: Proxy) -> None:
    for deed in (lose_answer, hang_up, carried_out_but(503, "SlowDown")):
        proxy.on(deed, method="PUT", path=PROBES)
        probe_conditional_put(open_store(URL, behind))
        assert proxy.rules[-1].times == 0
    assert open_store(URL, s3).list() == []


def test_put_if_absent_tells_ours_from_anothers(s3: Credentials, behind: Credentials) -> None:
    del behind
    store = open_store(URL, s3)
    assert put_if_absent(store, "key", b"first")
    assert not put_if_absent(store, "key", b"second")
    assert put_if_absent(store, "key", b"first")


@pytest.mark.parametrize("prefix", ["with space/and  two", "ünï/çødé 日本", "per%20cent/plus+and&=", "a'b(c)!~*@:,;$"])
@pytest.mark.parametrize("server", ["moto", "s3rver"])
def test_tables_under_prefixes_of_any_letters(
    prefix: str, server: str, s3: Credentials, request: pytest.FixtureRequest
) -> None:
    credentials = s3 if server == "moto" else request.getfixturevalue("second")
    url = f"s3://tables/{prefix}"
    store = open_store(url, credentials)
    made = write_table(store, table_spec(), single_writer=True)
    with open_table(url, credentials=credentials) as table:
        assert np.array_equal(table.codes([5, 199, 64], 0), made.codes[0][[5, 199, 64]])
    assert check_table(store).sound
    store.delete(made.manifest.key)
    assert not store.list("manifests")


def test_a_second_implementation_keeps_what_stores_promise(second: Credentials) -> None:
    store = open_store("s3://tables/second", second)
    data = np.random.default_rng(0).integers(0, 256, 2 * PART_BYTES + 300, np.uint8)
    store.write("large", data)
    out = np.empty(200, np.uint8)
    store.read_scattered("large", np.array([2 * PART_BYTES - 100]), [out])
    assert np.array_equal(out, data[2 * PART_BYTES - 100 :][:200])
    assert store.read("large") == data.tobytes() and store.size("large") == data.size
    with pytest.raises(ObjectNotFoundError):
        store.read("nothing")
    with pytest.raises(StoreError, match="no such bucket"):
        open_store("s3://missing/x", second).size("key")
    with pytest.raises(StoreError, match=r"no permission.*InvalidAccessKeyId"):
        open_store("s3://tables/x", replace(second, access_key="other")).read("key")


def test_a_second_implementation_is_refused_unless_there_is_one_writer(second: Credentials) -> None:
    with pytest.raises(StoreError, match="ignores the condition"):
        probe_conditional_put(open_store("s3://tables/probed", second))
    assert open_store("s3://tables/probed", second).list() == []


@pytest.mark.parametrize("package", ["s3rver", "node-client"])
def test_the_lock_file_names_no_host(package: str) -> None:
    text = (Path(__file__).parents[2] / "infra" / package / "package-lock.json").read_text()
    assert "resolved" not in text and "://" not in text

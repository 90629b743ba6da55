"""The endpoint on a real Ray Serve: what it answers, what it survives, and that it goes away again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from build_kit import RayHead, free_port
from serve_kit import (
    NUM_POSITIONS,
    Running,
    make_served_checkpoint,
    make_table,
    replica_pids,
    serving,
    serving_head,
    wait_until,
)

from tolserve.engine.config import EngineConfig
from tolserve.engine.load import build_engine
from tolserve.engine.request import SamplingParams
from tolserve.on_ray.launch import reason

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    groups = {"gateway_node": 1, "attention_node": 1, "memory_node": 2}
    with serving_head(tmp_path_factory.mktemp("r"), resources=groups) as one:
        yield one


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("served")
    checkpoint = make_served_checkpoint(folder / "letters")
    return checkpoint, make_table(checkpoint, folder / "table")


@pytest.fixture(scope="module")
def endpoint(head: RayHead, model: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Its cache is full of the rows 100 to 111 from the start."""
    checkpoint, table = model
    counts = tmp_path_factory.getbasetemp() / "counts.json"
    counts.write_text(json.dumps([5 if 100 <= token < 112 else 0 for token in range(256)]))
    options = ["--checkpoint", checkpoint, "--table", table, "--replication", "2", "--attention-replicas", "2"]
    cache = ["--cache-share", "0.05", "--cache-policy", "frequency", "--cache-counts", str(counts)]
    cache += ["--cache-state", str(counts.with_name("state.json"))]
    with serving(head.environment, *options, "--port", "0", "--verify-rows", *cache) as running:
        yield running


def client(endpoint: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0)


def post(url: str, body: bytes) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/completions", body), timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_progress_and_a_first_request_are_printed(endpoint: Running) -> None:
    text = "".join(endpoint.lines)
    assert "2 of 2 memory nodes, 2 of 2 attention nodes" in text
    assert "curl http://127.0.0.1" in text


def test_the_openai_client_gets_what_the_engine_computes_alone(endpoint: Running, model: tuple[str, str]) -> None:
    engine = build_engine(model[0], None, EngineConfig(max_model_len=NUM_POSITIONS))
    prompt = "A text of some length"
    engine.add_request("r", list(range(5, 30)), SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True))
    tokens = []
    while engine.has_work():
        tokens += [token.token_id for output in engine.step() for token in output.tokens]
    more = {"extra_body": {"ignore_eos": True, "memory_bill": True}}
    whole = client(endpoint).completions.create(
        model="letters", prompt=list(range(5, 30)), max_tokens=40, temperature=0, logprobs=0, **more
    )
    assert whole.choices[0].text == _text(tokens)
    assert whole.usage is not None
    bill = whole.usage.model_extra["memory_bill"]  # type: ignore[index]
    assert bill["rows_needed"] == 25 + 39
    assert sum(bill["hits_by_tier"].values()) > 0 and bill["fetch_ms"] > 0
    first = client(endpoint).completions.create(model="letters", prompt=prompt, max_tokens=30, temperature=0, **more)
    stream = client(endpoint).completions.create(
        model="letters", prompt=prompt, max_tokens=30, temperature=0, stream=True, **more
    )
    pieces = [choice.text for chunk in stream for choice in chunk.choices]
    assert len(pieces) == 30
    assert "".join(pieces) == first.choices[0].text


def _text(tokens: list[int]) -> str:
    from serve_kit import byte_tokenizer

    return byte_tokenizer().decode(tokens, skip_special_tokens=False)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b'{"model": "letters"}',
        b'{"model": "letters", "prompt": [256]}',
        b'{"model": "letters", "prompt": 1}',
        b'{"model": "letters", "prompt": "a", "max_tokens": 1024}',
    ],
)
def test_malformed_requests_are_refused(endpoint: Running, body: bytes) -> None:
    status, answer = post(endpoint.url, body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"


def metric(endpoint: Running, name: str) -> list[float]:
    """The samples of one metric."""
    with urllib.request.urlopen(f"{endpoint.url.removesuffix('/v1')}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{")]


def test_served_rows_are_compared_with_the_checkpoint(endpoint: Running) -> None:
    client(endpoint).completions.create(model="letters", prompt="abc", max_tokens=50, extra_body={"ignore_eos": True})
    wait_until(lambda: sum(metric(endpoint, "tol_rows_verified_total")) > 0)
    assert sum(metric(endpoint, "tol_row_mismatches_total")) == 0
    assert sum(metric(endpoint, "tol_row_bytes_total")) > 0


def test_the_cache_is_filled_by_the_counts_before_the_first_request(endpoint: Running) -> None:
    answer = client(endpoint).completions.create(
        model="letters", prompt=list(range(98, 114)), max_tokens=0, extra_body={"memory_bill": True}
    )
    assert answer.usage is not None
    hits = answer.usage.model_extra["memory_bill"]["hits_by_tier"]  # type: ignore[index]
    assert hits == {"cache": 12, "remote": 4}


def test_row_client_and_memory_nodes_are_in_the_metrics(endpoint: Running) -> None:
    wait_until(lambda: len(metric(endpoint, "tol_node_rows_total")) == 2)
    wait_until(lambda: sum(metric(endpoint, "tol_node_rows_total")) > 0)
    wait_until(lambda: sum(metric(endpoint, "tol_row_requests_total")) > 0)
    assert sum(metric(endpoint, "tol_node_bytes_total")) > 0
    wait_until(lambda: metric(endpoint, "tol_row_nodes_connected") == [2, 2])


class Load:
    """Clients that ask again and again; `failed` has the answers that were not 200."""

    def __init__(self, url: str, *, clients: int) -> None:
        self._url = url
        self._stop = threading.Event()
        self.num_done = 0
        self.failed: list[Any] = []
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.num_done >= len(self._threads))
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        while not self._stop.is_set():
            fields = {"model": "letters", "prompt": "some words", "max_tokens": 200, "seed": seed, "ignore_eos": True}
            status, answer = post(self._url, json.dumps(fields).encode())
            self.num_done += 1
            if status != 200:
                self.failed.append((status, answer))


def kill_one(deployment: str) -> list[int]:
    """Kill a replica with -9; those that were there."""
    before = replica_pids(deployment)
    os.kill(before[0], signal.SIGKILL)
    return before


def test_a_lost_attention_node_fails_nothing_that_had_not_streamed(endpoint: Running) -> None:
    with Load(endpoint.url, clients=4) as load:
        before = kill_one("AttentionDeployment")
        done = load.num_done
        wait_until(lambda: load.num_done > done + 8)
        wait_until(lambda: len(set(replica_pids("AttentionDeployment")) - set(before)) == 1)
    assert load.failed == []
    stream = client(endpoint).completions.create(model="letters", prompt="a", max_tokens=4, stream=True)
    assert len(list(stream)) > 0


def test_the_other_node_of_a_partition_takes_over(endpoint: Running) -> None:
    """One that is asked, frozen first, then killed. Which of the two that is, the attention nodes choose."""
    with Load(endpoint.url, clients=3) as load:
        nodes = replica_pids("MemoryNodes-0")
        assert len(nodes) == 2
        for pid in nodes:
            hurt(load, pid, signal.SIGSTOP)
            if sum(metric(endpoint, "tol_row_ejections_total")) > 0:
                break
            os.kill(pid, signal.SIGCONT)
        hurt(load, pid, signal.SIGKILL)
    assert load.failed == []
    wait_until(lambda: sum(metric(endpoint, "tol_row_ejections_total")) > 0)


def hurt(load: Load, pid: int, number: signal.Signals) -> None:
    """Send a process a signal, and see that requests are answered after it."""
    os.kill(pid, number)
    done = load.num_done
    wait_until(lambda: load.num_done > done + 12)


def test_requests_wait_for_a_partition_without_nodes(endpoint: Running) -> None:
    with Load(endpoint.url, clients=3) as load:
        for pid in replica_pids("MemoryNodes-0"):
            os.kill(pid, signal.SIGKILL)
        done = load.num_done
        wait_until(lambda: load.num_done > done + 12)
    assert load.failed == []


def test_an_interrupt_takes_it_down_and_leaves_what_was_cached(
    endpoint: Running, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The last test of this endpoint."""
    assert endpoint.interrupt() == 0
    state = json.loads((tmp_path_factory.getbasetemp() / "state.json").read_text())
    assert sorted(state["ids"]) == list(range(100, 112))
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(endpoint.url, timeout=5)
    wait_until(lambda: not replica_pids(""))


def serve_config(source: str) -> dict[str, Any]:
    """What a file deploys: a Serve config, or a KubeRay service that has one in it."""
    found = yaml.safe_load((REPOSITORY / source).read_text())
    if "spec" in found:
        found = yaml.safe_load(found["spec"]["serveConfigV2"])
    return dict(found)


ONE_MACHINE = {"checkpoint": "builtin:tiny", "table": "my-table", "replication": 1, "attention_replicas": 1}
"""What a manifest for many machines needs to be told here, beside that there is no GPU."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("infra/serve.yaml", {"keep": "mapped"}),
        ("infra/kuberay/rayservice.yaml", {**ONE_MACHINE, "num_gpus": 0, "num_cpus": 1}),
    ],
    ids=["serve.yaml", "rayservice.yaml"],
)
def test_a_serve_config_serves_the_table_that_the_readme_builds(
    head: RayHead, tmp_path: Path, source: str, changes: dict[str, Any]
) -> None:
    build = "-m tolbuild.run --checkpoint builtin:tiny --table my-table --no-ray"
    assert build in " ".join((REPOSITORY / "README.md").read_text().split())
    if not (head.temp / "my-table").exists():
        subprocess.run(
            [sys.executable, *build.split()], cwd=head.temp, check=True, stdout=subprocess.DEVNULL, timeout=120
        )
    config = serve_config(source)
    port = free_port()
    (tmp_path / "key").write_text("secret\nno key\n")
    (tmp_path / "counts.json").write_text(json.dumps([1] * 16384))
    here = {"host": "127.0.0.1", "port": port, "api_key_file": str(tmp_path / "key")}
    config["applications"][0]["args"].update(here, cache_counts=str(tmp_path / "counts.json"), **changes)
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    serve_command(head, "deploy", str(tmp_path / "serve.yaml"))
    try:
        wait_until(lambda: answers(port), timeout_s=120)
        asked = {"model": "tiny", "prompt": "The whale", "max_tokens": 3}
        url = f"http://127.0.0.1:{port}/v1"
        answer = openai.OpenAI(base_url=url, api_key="secret", max_retries=0).completions.create(**asked)
        assert answer.usage is not None and answer.usage.completion_tokens > 0
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="no key", max_retries=0).completions.create(**asked)
    finally:
        serve_command(head, "shutdown", "-y")
    wait_until(lambda: not replica_pids(""))


def serve_command(head: RayHead, *arguments: str) -> None:
    command = [str(Path(sys.executable).with_name("serve")), arguments[0], "-a", head.dashboard, *arguments[1:]]
    done = subprocess.run(
        command, env=os.environ | dict(head.environment), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        time.sleep(0.2)
        return False


def test_what_cannot_be_served_is_said(head: RayHead, model: tuple[str, str]) -> None:
    command = [
        sys.executable,
        "-m",
        "tolserve.run",
        "--checkpoint",
        model[0],
        "--table",
        model[1],
        "--pinned-bands",
        "9",
    ]
    environment = os.environ | dict(head.environment)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: --pinned-bands is 9; the table has 2 bands\n"


def test_the_reason_is_found_in_what_serve_says() -> None:
    trace = "The deployment failed:\nTraceback (most recent call last):\n  File x\nOSError: the port is taken\n"
    assert reason(["", trace, "Failed."]) == "OSError: the port is taken"
    assert reason(["", "Failed."]) == "Failed."


def test_no_cluster_is_a_clear_message() -> None:
    command = [sys.executable, "-m", "tolserve.run", "--checkpoint", "c"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        command,
        env=environment | {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "no Ray cluster" in done.stderr and "Traceback" not in done.stderr

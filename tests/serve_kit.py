"""What tests of serving share: a small random checkpoint with a tokenizer, its table, an endpoint."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from build_kit import REPOSITORY, RayHead, ray_head
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tolbuild.build_config import BuildConfig
from tolbuild.checkpoint import save_checkpoint
from tolbuild.config import ModelConfig
from tolbuild.drive.driver import build_table
from tolbuild.model import MemoryLLM

NUM_POSITIONS = 1024


def byte_tokenizer() -> Tokenizer:
    """One token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def make_served_checkpoint(path: Path, *, seed: int = 3) -> str:
    """A random memory model of 256 tokens, d 48, 4 layers, spread enough that rounding changes no greedy token."""
    config = ModelConfig(
        kind="memory",
        vocab_size=256,
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=NUM_POSITIONS,
        eos_token_id=0,
    )
    model = MemoryLLM(config)
    model.reset_parameters(seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0 if "embed" in name else 15.0)
    save_checkpoint(path, config, model.state_dict(), tokenizer_json=byte_tokenizer().to_str())
    return str(path)


def make_table(checkpoint: str, path: Path) -> str:
    """Its table, fp32 at full rank: 2 bands of 2 layers, 2 shards each."""
    build_table(
        BuildConfig(
            checkpoint=checkpoint,
            table=str(path),
            codes="fp32",
            layers_per_band=2,
            shard_rows=128,
            no_ray=True,
            workers=1,
        )
    )
    return str(path)


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    """Wait for what must come about."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"it did not come about within {timeout_s} s"
        time.sleep(0.05)


@contextlib.contextmanager
def serving_head(folder: Path, *, resources: Mapping[str, float] | None = None) -> Iterator[RayHead]:
    """A Ray head of four CPUs, started in an empty folder, whose workers import this repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        with ray_head(folder, num_cpus=4, cwd=folder, resources=resources) as one:
            yield one


@dataclass
class Running:
    """A `python -m tolserve.run` that is ready."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str]

    def interrupt(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(environment: Mapping[str, str], *options: str) -> Iterator[Running]:
    """The endpoint of `python -m tolserve.run OPTIONS` on the cluster that `environment` names."""
    command = [sys.executable, "-m", "tolserve.run", *options]
    process = subprocess.Popen(
        command, env=os.environ | dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: list[str] = []
    reader = threading.Thread(target=_read, args=(process, lines))
    reader.start()
    try:
        wait_until(lambda: process.poll() is not None or any("Ctrl-C" in line for line in lines), timeout_s=120)
        assert process.poll() is None, "".join(lines)
        url = next(found[1] for line in lines if (found := re.match(r"ready: (\S+)", line)))
        yield Running(process, url, lines)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            assert code == 0, "".join(lines)
        reader.join()


def _read(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stdout is not None
    lines.extend(process.stdout)


def replica_pids(deployment: str) -> list[int]:
    """Processes of a Serve deployment's replicas on this machine that are children of this process's clusters."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if title.startswith(f"ray::ServeReplica:tolserve:{deployment}"):
                    found.append(int(entry.name))
    return found

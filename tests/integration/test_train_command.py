"""`python -m tolbuild.train` as a user starts it: alone, under torchrun, stopped by Ctrl-C and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tolbuild.checkpoint import open_checkpoint

REPOSITORY = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    words = ["the", "whale", "and", "the", "sea", "and", "the", "long", "white", "road", "to", "the", "king", "of"]
    texts = [" ".join(words[(7 * i + j * j) % len(words)] for j in range(60)) for i in range(40)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def start(corpus: Path, out: Path, *, steps: int, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    options = {
        "data": corpus, "valid": corpus, "out": out, "steps": steps, "warmup-steps": 2, "batch-sequences": 4,
        "sequence-length": 16, "log-every": 1, "save-every": 2, "model.vocab-size": 300, "model.hidden-size": 16,
        "model.num-hidden-layers": 2, "model.num-attention-heads": 2, "model.intermediate-size": 24,
    }  # fmt: skip
    line = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "tolbuild.train", *line],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(out: Path) -> list[float]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(corpus: Path, tmp_path: Path) -> None:
    runs = {name: start(corpus, tmp_path / name, steps=6, launcher=how) for name, how in (("1", ()), ("2", TORCHRUN))}
    for process in runs.values():
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), abs=2e-3)
    assert open_checkpoint(str(tmp_path / "2" / "checkpoint")).config.num_hidden_layers == 2


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start(corpus, out, steps=150) as process:
        end = time.monotonic() + 60
        while not (out / "state.pt").exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command resumes" in err and "Traceback" not in err
    before = len(losses(out))
    with start(corpus, out, steps=150) as again:
        printed, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert before < 150 and "from step 0" not in printed and f"checkpoint: {out / 'checkpoint'}" in printed

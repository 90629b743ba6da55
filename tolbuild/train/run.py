"""One whole training run: tokenizer, packed data, resume, progress, log, validation and the final checkpoint."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tolbuild.model import MemoryLLM
from tolbuild.train.config import TrainConfig
from tolbuild.train.data import END_OF_TEXT, PackedWindows, encode_packed, read_texts, train_tokenizer
from tolbuild.train.loop import learning_rate, make_optimizer, train_steps, validation_loss
from tolbuild.train.state import load_state, save_state


@dataclass(frozen=True)
class Processes:
    """This process among those that torchrun started; alone where it did not."""

    rank: int
    count: int

    @classmethod
    def join(cls) -> Processes:
        """Join torchrun's process group, gloo on CPUs and NCCL on GPUs."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count > 1:
            torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            return cls(torch.distributed.get_rank(), count)
        return cls(0, 1)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            torch.distributed.barrier()


@dataclass
class Progress:
    """The line a person reads and the JSON line a program reads, every `log_every` steps."""

    config: TrainConfig
    first_step: int
    log: Path
    started: float = field(default_factory=time.monotonic)
    recent: list[float] = field(default_factory=list)

    def step(self, step: int, loss: float) -> None:
        """Take note of a step's cross-entropy."""
        self.recent.append(loss)
        if (step + 1) % self.config.log_every and step + 1 != self.config.steps:
            return
        mean = sum(self.recent) / len(self.recent)
        done = step + 1 - self.first_step
        elapsed_s = time.monotonic() - self.started
        tokens_per_step = self.config.batch_sequences * self.config.sequence_length
        rate = done * tokens_per_step / elapsed_s
        left_s = elapsed_s / done * (self.config.steps - step - 1)
        print(
            f"step {step + 1:>6}/{self.config.steps}  loss {mean:7.4f}  {rate:>9,.0f} tokens/s  "
            f"{left_s / 60:6.1f} min left",
            flush=True,
        )
        self.write(
            {
                "step": step + 1,
                "tokens": (step + 1) * tokens_per_step,
                "loss": round(mean, 5),
                "learning_rate": learning_rate(self.config, step),
                "tokens_per_s": round(rate, 1),
            }
        )
        self.recent.clear()

    def validation(self, step: int, loss: float) -> None:
        """Take note of a validation loss."""
        print(f"step {step:>6}  validation loss {loss:.4f}, perplexity {math.exp(loss):.2f}", flush=True)
        self.write({"step": step, "valid_loss": round(loss, 5), "valid_perplexity": round(math.exp(loss), 3)})

    def write(self, entry: dict[str, Any]) -> None:
        """Append one JSON line to the log."""
        with self.log.open("a") as log:
            log.write(json.dumps(entry) + "\n")


@dataclass(frozen=True)
class Corpus:
    """A tokenizer and the packed ids of the training and validation text."""

    tokenizer: Tokenizer
    train_N: np.ndarray[Any, np.dtype[np.uint32]]
    valid_N: np.ndarray[Any, np.dtype[np.uint32]] | None


def prepare_corpus(config: TrainConfig, processes: Processes) -> Corpus:
    """Make tokenizer.json and the packed ids under `out`, or read what an earlier start left there."""
    tokenizer_path, train_path, valid_path = (config.out / n for n in ("tokenizer.json", "train.npy", "valid.npy"))
    if processes.rank == 0 and not train_path.exists():
        if config.tokenizer:
            tokenizer = Tokenizer.from_file(str(config.tokenizer))
        else:
            print(f"training a byte-level BPE of {config.model.vocab_size:,} entries", flush=True)
            tokenizer = train_tokenizer(read_texts(config.data), config.model.vocab_size)
        tokenizer.save(str(tokenizer_path))
        print("encoding the corpus", flush=True)
        if config.valid:
            np.save(valid_path, encode_packed(tokenizer, read_texts([config.valid])))
        np.save(train_path.with_suffix(".part.npy"), encode_packed(tokenizer, read_texts(config.data)))
        train_path.with_suffix(".part.npy").rename(train_path)
    processes.wait()
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    if tokenizer.get_vocab_size() > config.model.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.get_vocab_size():,} entries and the model {config.model.vocab_size:,}; "
            "raise --model.vocab-size"
        )
    return Corpus(tokenizer, np.load(train_path), np.load(valid_path) if config.valid else None)


def train(config: TrainConfig) -> MemoryLLM:
    """Run or resume a training and leave `out`/checkpoint behind.

    The state under `out` is a run of the same config or is refused; a resumed run goes on to the same losses, since
    step and seed alone decide what a step reads.

    Raises:
        ValueError: `out` holds a run of another config, or the data does not fit.
    """
    processes = Processes.join()
    config.out.mkdir(parents=True, exist_ok=True)
    on_gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    corpus = prepare_corpus(config, processes)
    model_config = config.model.model_config(
        sequence_length=config.sequence_length, eos_token_id=corpus.tokenizer.token_to_id(END_OF_TEXT)
    )
    model = MemoryLLM(model_config)
    model.reset_parameters(config.seed)
    model.to(device)
    optimizer = make_optimizer(model, config)
    first_step = load_state(config, model, optimizer)
    progress = Progress(config, first_step, config.out / "log.jsonl")
    if processes.rank == 0:
        _announce(config, model, corpus, first_step, progress)
    batches = _batches(config, corpus, first_step, device, processes)
    for step, loss in train_steps(model, optimizer, config, batches, reduce_gradients=processes.count > 1):
        if processes.rank == 0:
            _after_step(config, model, optimizer, corpus, progress, step, loss)
    processes.wait()
    return model


def _after_step(
    config: TrainConfig,
    model: MemoryLLM,
    optimizer: torch.optim.Optimizer,
    corpus: Corpus,
    progress: Progress,
    step: int,
    loss: float,
) -> None:
    progress.step(step, loss)
    done = step + 1
    if done % config.save_every == 0 or done == config.steps:
        save_state(config, model, optimizer, done)
    if corpus.valid_N is not None and done % config.validate_every == 0 and done != config.steps:
        progress.validation(done, validate(config, model, corpus, limit=config.validation_tokens))


def validate(config: TrainConfig, model: MemoryLLM, corpus: Corpus, *, limit: int | None) -> float:
    """Mean cross-entropy in nats a token on the validation text, at most `limit` tokens of it."""
    assert corpus.valid_N is not None
    ids_N = torch.from_numpy(corpus.valid_N.astype(np.int64)).to(next(model.parameters()).device)
    return validation_loss(model, ids_N, length=config.sequence_length, limit=limit)


def _batches(
    config: TrainConfig, corpus: Corpus, first_step: int, device: torch.device, processes: Processes
) -> Iterator[tuple[int, Tensor]]:
    if config.batch_sequences % processes.count:
        raise ValueError(f"batch_sequences {config.batch_sequences} does not divide by {processes.count} processes")
    share = config.batch_sequences // processes.count
    windows = PackedWindows(
        corpus.train_N, length=config.sequence_length, batch=config.batch_sequences, seed=config.seed
    )
    for step in range(first_step, config.steps):
        part = windows.batch(step)[processes.rank * share : (processes.rank + 1) * share]
        yield step, torch.from_numpy(part).to(device)


def _announce(config: TrainConfig, model: MemoryLLM, corpus: Corpus, first_step: int, progress: Progress) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    tokens = config.steps * config.batch_sequences * config.sequence_length
    print(
        f"{config.model.kind} model of {parameters / 1e6:.2f} M parameters; {len(corpus.train_N):,} training tokens, "
        f"{tokens:,} to see ({tokens / len(corpus.train_N):.1f} passes); from step {first_step}",
        flush=True,
    )
    if first_step == 0:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
        settings["data"], settings["out"] = [path.name for path in config.data], config.out.name
        settings["valid"] = config.valid.name if config.valid else None
        progress.write({"config": settings, "parameters": parameters, "torch": torch.__version__})

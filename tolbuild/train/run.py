"""One whole training run: data, resume, steps, validation on the way and the final checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from tolbuild.model import MemoryLLM
from tolbuild.train.config import TrainConfig
from tolbuild.train.corpus import Corpus, Processes, prepare_corpus
from tolbuild.train.data import PackedWindows
from tolbuild.train.export import export_checkpoint, validate
from tolbuild.train.loop import make_optimizer, train_steps
from tolbuild.train.progress import Progress
from tolbuild.train.state import load_state, save_state


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
    model_config = config.model.model_config(sequence_length=config.sequence_length, eos_token_id=corpus.end_of_text)
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
    if processes.rank == 0:
        export_checkpoint(config, model, corpus, progress)
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

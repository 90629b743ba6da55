"""From the end of a training to a checkpoint that says what it is."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tolbuild.checkpoint import save_checkpoint
from tolbuild.model import MemoryLLM
from tolbuild.train.config import TrainConfig
from tolbuild.train.corpus import Corpus
from tolbuild.train.loop import validation_loss
from tolbuild.train.progress import Progress


def validate(config: TrainConfig, model: MemoryLLM, corpus: Corpus, *, limit: int | None) -> float:
    """Mean cross-entropy in nats a token on the validation text, at most `limit` tokens of it."""
    assert corpus.valid_N is not None
    ids_N = torch.from_numpy(corpus.valid_N.astype(np.int64)).to(next(model.parameters()).device)
    return validation_loss(model, ids_N, length=config.sequence_length, limit=limit)


def round_to_bf16(model: MemoryLLM) -> None:
    """Round every weight to the nearest bf16, in place: what is stored is then exactly what was measured."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())


def export_checkpoint(config: TrainConfig, model: MemoryLLM, corpus: Corpus, progress: Progress) -> Path:
    """Write `out`/checkpoint in bf16, measure those very weights on all of --valid, and return the folder."""
    round_to_bf16(model)
    folder = config.out / "checkpoint"
    state = {name: parameter.detach().bfloat16().cpu() for name, parameter in model.named_parameters()}
    save_checkpoint(folder, model.config, state, tokenizer_json=corpus.tokenizer.to_str())
    if corpus.valid_N is not None:
        loss = validate(config, model, corpus, limit=None)
        progress.validation(config.steps, loss)
        (folder / "training.json").write_text(json.dumps(_summary(config, corpus, loss), indent=2) + "\n")
    print(f"checkpoint: {folder}", flush=True)
    return folder


def _summary(config: TrainConfig, corpus: Corpus, loss: float) -> dict[str, object]:
    assert corpus.valid_N is not None
    return {
        "command": "python -m tolbuild.train " + shlex.join(_portable(sys.argv[1:])),
        "torch": torch.__version__,
        "train_tokens_seen": config.steps * config.batch_sequences * config.sequence_length,
        "train_tokens": len(corpus.train_N),
        "valid_tokens": len(corpus.valid_N) - 1,
        "valid_loss_nats": round(loss, 5),
        "valid_perplexity": round(math.exp(loss), 3),
    }


def _portable(arguments: Sequence[str]) -> list[str]:
    """The arguments with every absolute path cut to its last part."""
    return [Path(a).name if Path(a).is_absolute() else a for a in arguments]

"""A run's tokenizer and packed ids, made once under its folder and read by every later start."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from tolbuild.train.config import TrainConfig
from tolbuild.train.data import END_OF_TEXT, encode_packed, read_texts, train_tokenizer


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


@dataclass(frozen=True)
class Corpus:
    """A tokenizer and the packed ids of the training and validation text."""

    tokenizer: Tokenizer
    train_N: np.ndarray[Any, np.dtype[np.uint32]]
    valid_N: np.ndarray[Any, np.dtype[np.uint32]] | None

    @property
    def end_of_text(self) -> int:
        """The id that ends a document."""
        token_id = self.tokenizer.token_to_id(END_OF_TEXT)
        assert token_id is not None, "encode_packed refuses such a tokenizer"
        return token_id


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

"""Writing a checkpoint: checked first, then put under any writable URL with Hugging Face's file names."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import safetensors.torch
from torch import Tensor

from tolbuild.checkpoint.files import INDEX, WEIGHTS
from tolbuild.checkpoint.shapes import check_dtype, check_finite, check_shapes
from tolbuild.config import ModelConfig
from tolbuild.table.local_store import SCRATCH
from tolbuild.table.store import Credentials, Store, open_store

DEFAULT_SHARD_BYTES = 2 * 1024**3
"""Weight files end before this size: a file is held in memory once while it is written."""

_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def save_checkpoint(
    url: str | Path,
    config: ModelConfig,
    state_dict: Mapping[str, Tensor],
    *,
    tokenizer_json: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    credentials: Credentials | None = None,
) -> None:
    """Write config.json, the weights and the tokenizer's two files, each whole or not at all.

    Tensors keep their types; `torch_dtype` in config.json is that of the embedding. An older checkpoint at the place
    is replaced; config.json goes first and comes last, so that a place where a save was interrupted holds none.

    Args:
        state_dict: every tensor of the config's model by name, and no other.
        tokenizer_json: text of tokenizer.json; None writes no tokenizer.
        max_shard_bytes: weights beyond this go to numbered files with an index. A tensor is never cut.

    Raises:
        ValueError: a tensor is missing, unexpected, of a wrong shape or type or holds no finite numbers (named).
        StoreError: the place cannot be written.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; it must be at least 1")
    _check_state(config, state_dict)
    dtype = str(state_dict["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    config = replace(config, torch_dtype=dtype)
    store = open_store(url, credentials)
    try:
        sizes = {name: tensor.nbytes for name, tensor in state_dict.items()}
        shards = plan_shards(sizes, max_shard_bytes)
        store.delete("config.json")
        remove_other_files(store, {*shards, *([INDEX] if len(shards) > 1 else [])})
        for key, names in shards.items():
            tensors = {name: state_dict[name].detach().cpu().contiguous() for name in names}
            store.write(key, safetensors.torch.save(tensors, metadata={"format": "pt"}))
        if len(shards) > 1:
            store.write(INDEX, weights_index(sizes, shards))
        if tokenizer_json is not None:
            store.write("tokenizer.json", tokenizer_json.encode())
            store.write("tokenizer_config.json", _tokenizer_config(config, tokenizer_json))
        store.write("config.json", config_json(config))
        remove_scratch(store)
    finally:
        store.close()


def plan_shards(sizes: Mapping[str, int], max_shard_bytes: int) -> dict[str, list[str]]:
    """Names of the tensors of each weight file, in the order given, files filled up to the bound.

    Args:
        sizes: bytes of each tensor.
    """
    groups: list[list[str]] = [[]]
    held = 0
    for name, num_bytes in sizes.items():
        if groups[-1] and held + num_bytes > max_shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += num_bytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, start=1)}


def _check_state(config: ModelConfig, state_dict: Mapping[str, Tensor]) -> None:
    check_shapes(config, {name: tuple(tensor.shape) for name, tensor in state_dict.items()}, "the state dict")
    for name, tensor in state_dict.items():
        check_dtype(tensor.dtype, name, "the state dict")
        check_finite(tensor, name, "the state dict")


def weights_index(sizes: Mapping[str, int], shards: Mapping[str, list[str]]) -> bytes:
    """model.safetensors.index.json of tensors of these bytes in these files."""
    weight_map = {name: key for key, names in shards.items() for name in names}
    total = sum(sizes.values())
    return _as_json({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def _tokenizer_config(config: ModelConfig, tokenizer_json: str) -> bytes:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    values: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    for role, token_id in (("bos_token", config.bos_token_id), ("eos_token", config.eos_token_id)):
        if token_id is not None:
            values[role] = tokenizer.id_to_token(token_id)
    return _as_json(values)


def config_json(config: ModelConfig) -> bytes:
    """config.json of a checkpoint."""
    return _as_json({"architectures": ["MemoryLLM"], **config.to_dict()})


def _as_json(values: Mapping[str, object]) -> bytes:
    """Readable JSON, as the files beside the weights have it."""
    return (json.dumps(values, indent=2) + "\n").encode()


def remove_other_files(store: Store, keep: set[str]) -> None:
    """Weight files of an older checkpoint, which a reader could take for parts of this one."""
    for info in store.list():
        if _OURS.fullmatch(info.key) and info.key not in keep:
            store.delete(info.key)


def remove_scratch(store: Store) -> None:
    """The folder in which a local store's files stood until they were whole."""
    folder = store.local_path(SCRATCH)
    if folder is not None:
        with contextlib.suppress(OSError):  # another writer is at work there
            folder.rmdir()
            folder.parent.rmdir()

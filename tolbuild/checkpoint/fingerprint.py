"""What a model is, as one hash: equal for equal weights and shape, however the files are cut or ordered."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np

from tolbuild.checkpoint.files import WeightFiles
from tolbuild.config import ModelConfig

_BUFFER_BYTES = 1024 * 1024
_MAX_THREADS = 8

_FREE_FIELDS = frozenset(
    {"max_position_embeddings", "initializer_range", "bos_token_id", "eos_token_id", "torch_dtype"}
)
"""Fields of a config that change neither a row nor a logit."""


def fingerprint(config: ModelConfig, files: WeightFiles) -> str:
    """SHA-256 (hex) over the config's fields that change rows or logits, and each tensor's name, type, shape and bytes.

        sha256( JSON of the fields, then for each tensor by name: JSON [name, dtype, shape, sha256(bytes)] ), lines

    Every byte of every tensor is read, once, in pieces by several threads (hashing runs at memory-like speed on CPUs
    with SHA instructions): nothing that a file says about its own content is believed.
    """
    buffers: SimpleQueue[np.ndarray[tuple[int], np.dtype[np.uint8]]] = SimpleQueue()
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    for _ in range(threads):
        buffers.put(np.empty(_BUFFER_BYTES, np.uint8))

    def digest(name: str) -> str:
        buffer, state = buffers.get(), hashlib.sha256()
        for piece in files.pieces(name, buffer):
            state.update(piece)
        buffers.put(buffer)
        return state.hexdigest()

    names = sorted(files.infos)
    largest_first = sorted(names, key=lambda name: -files.infos[name].num_bytes)
    with ThreadPoolExecutor(threads) as pool:
        digests = dict(zip(largest_first, pool.map(digest, largest_first), strict=True))
    lines: list[object] = [{key: value for key, value in config.to_dict().items() if key not in _FREE_FIELDS}]
    lines += [[name, files.infos[name].dtype, list(files.infos[name].shape), digests[name]] for name in names]
    text = "\n".join(json.dumps(line, sort_keys=True, separators=(",", ":")) for line in lines)
    return hashlib.sha256(text.encode()).hexdigest()

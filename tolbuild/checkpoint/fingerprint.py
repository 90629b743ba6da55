"""What a model is, as one hash: equal for equal weights and shape, however the files are cut or ordered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from tolbuild.checkpoint.files import WeightFiles
from tolbuild.config import ModelConfig

_BUFFER_BYTES = 1024 * 1024
_MAX_THREADS = 8

EMBEDDING = "model.embed_tokens.weight"

BLOCK_ROWS = 64
"""Rows of the embedding that have a digest of their own: builds read it in ranges of whole blocks."""

_BLOCK_DIGEST_BYTES = 8

Bytes = NDArray[np.uint8]

_FREE_FIELDS = frozenset(
    {"max_position_embeddings", "initializer_range", "bos_token_id", "eos_token_id", "torch_dtype"}
)
"""Fields of a config that change neither a row nor a logit."""


@dataclass(frozen=True, kw_only=True)
class Digests:
    """What a checkpoint's bytes hash to, for whoever reads it again elsewhere; small enough to send anywhere.

    tensors: SHA-256 (hex) of each tensor by name. blocks: the first 8 bytes of that of every BLOCK_ROWS rows of the
    embedding, in order.
    """

    tensors: Mapping[str, str]
    blocks: bytes

    def holds(self, name: str, data: Bytes) -> bool:
        """Whether these are a tensor's bytes."""
        return hashlib.sha256(data).hexdigest() == self.tensors[name]

    def holds_block(self, block: int, data: Bytes) -> bool:
        """Whether these are the bytes of a block of the embedding."""
        first = block * _BLOCK_DIGEST_BYTES
        return _block_digest(data) == self.blocks[first : first + _BLOCK_DIGEST_BYTES]


def digest_tensors(files: WeightFiles) -> Digests:
    """Read every byte of every tensor, once, in pieces by several threads (hashing runs at memory-like speed on CPUs
    with SHA instructions): nothing that a file says about its own content is believed.
    """
    buffers: SimpleQueue[Bytes] = SimpleQueue()
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    for _ in range(threads):
        buffers.put(np.empty(_BUFFER_BYTES, np.uint8))
    blocks: list[bytes] = []

    def digest(name: str) -> str:
        buffer, state = buffers.get(), hashlib.sha256()
        block_bytes = BLOCK_ROWS * files.infos[name].row_bytes if name == EMBEDDING else 0
        own = np.empty(max(1, len(buffer) // block_bytes) * block_bytes, np.uint8) if block_bytes else buffer
        for piece in files.pieces(name, own):
            state.update(piece)
            if block_bytes:
                blocks.extend(_block_digest(part) for part in parts_of(piece, block_bytes))
        buffers.put(buffer)
        return state.hexdigest()

    largest_first = sorted(sorted(files.infos), key=lambda name: -files.infos[name].num_bytes)
    with ThreadPoolExecutor(threads) as pool:
        tensors = dict(zip(largest_first, pool.map(digest, largest_first), strict=True))
    return Digests(tensors=tensors, blocks=b"".join(blocks))


def parts_of(data: Bytes, part_bytes: int) -> list[Bytes]:
    """Consecutive parts; the last may be shorter."""
    return [data[start : start + part_bytes] for start in range(0, len(data), part_bytes)]


def _block_digest(data: Bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_BLOCK_DIGEST_BYTES]


def fingerprint(config: ModelConfig, files: WeightFiles, digests: Digests) -> str:
    """SHA-256 (hex) over the config's fields that change rows or logits, and each tensor's name, type, shape and bytes.

    sha256( JSON of the fields, then for each tensor by name: JSON [name, dtype, shape, sha256(bytes)] ), lines
    """
    names = sorted(files.infos)
    lines: list[object] = [{key: value for key, value in config.to_dict().items() if key not in _FREE_FIELDS}]
    lines += [[name, files.infos[name].dtype, list(files.infos[name].shape), digests.tensors[name]] for name in names]
    text = "\n".join(json.dumps(line, sort_keys=True, separators=(",", ":")) for line in lines)
    return hashlib.sha256(text.encode()).hexdigest()

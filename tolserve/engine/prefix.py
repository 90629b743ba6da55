"""Reuse of prompt prefixes: full blocks whose keys and values are in the cache already are not computed again.

A block's key is a chained hash,

    key_i = H(key_{i-1}, tokens of block i),   key_{-1} = the root,

and the root is made of everything else that keys and values depend on: the model's shape, the table version, alpha,
dropped layers and dtype. What is computed under one root is never found under another. The rows of reused tokens are
not needed, so they are not fetched. At least the last token of a request is computed, since its logits are wanted.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import asdict

from tolbuild.config import ModelConfig
from tolserve.engine.config import EngineConfig
from tolserve.engine.kv_cache import KVCache
from tolserve.engine.sequence import Sequence
from tolserve.memory.spec import RowSpec

_KEY_BYTES = 16


def prefix_root(shape: ModelConfig, config: EngineConfig, spec: RowSpec | None) -> bytes:
    """The root of an engine of this model over the rows of `spec` (None: it receives none)."""
    parts = {
        "shape": asdict(shape),
        "block_size": config.block_size,
        "alpha": config.alpha,
        "drop_layers": sorted(config.drop_layers),
        "dtype": config.dtype,
        "rows": None if spec is None else [spec.identity.hex(), [asdict(band) for band in spec.bands]],
    }
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=_KEY_BYTES).digest()


class PrefixCache:
    """Finds and publishes the full blocks of sequences in `cache`.

    Attributes:
        root: under which sequences that are admitted from now on are computed; it changes while none is running.
        num_queries: tokens of requests whose blocks were looked for, counted when a request is first admitted.
        num_hits: those of them that need not be computed.
    """

    def __init__(self, cache: KVCache, root: bytes) -> None:
        self._cache = cache
        self.root = root
        self.num_queries = 0
        self.num_hits = 0

    def match(self, sequence: Sequence) -> list[int]:
        """The blocks that hold the longest known prefix of a waiting sequence.

        None for one whose prompt log-probabilities are wanted: they need every token's logits.
        """
        if sequence.wants_prompt_logprobs:
            return []
        blocks: list[int] = []
        for key in self._keys(sequence, (len(sequence.tokens) - 1) // self._cache.block_size):
            block = self._cache.pool.find(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def admitted(self, sequence: Sequence) -> None:
        """Count a sequence that has just been admitted, `num_computed` of its tokens reused."""
        sequence.num_published = sequence.num_computed // self._cache.block_size
        if sequence.num_reused is not None:
            return
        sequence.num_reused = sequence.num_computed
        if not sequence.wants_prompt_logprobs:
            self.num_queries += sequence.num_prompt
            self.num_hits += sequence.num_computed

    def publish(self, sequence: Sequence) -> None:
        """Let others find the blocks that the sequence has filled since the last time."""
        assert sequence.row is not None
        num_full = sequence.num_computed // self._cache.block_size
        keys = self._keys(sequence, num_full)
        for index in range(sequence.num_published, num_full):
            self._cache.pool.publish(int(self._cache.table[sequence.row, index]), keys[index])
        sequence.num_published = num_full

    def _keys(self, sequence: Sequence, count: int) -> list[bytes]:
        """Keys of its first `count` blocks under the root that it is computed with."""
        if sequence.row is None and sequence.prefix_root != self.root:
            sequence.prefix_root = self.root
            sequence.block_keys.clear()
        keys, size = sequence.block_keys, self._cache.block_size
        for index in range(len(keys), count):
            digest = hashlib.blake2b(keys[-1] if keys else sequence.prefix_root, digest_size=_KEY_BYTES)
            digest.update(array("q", sequence.tokens[index * size : (index + 1) * size]).tobytes())
            keys.append(digest.digest())
        return keys[:count]

"""The contestants of `bench engine`: one random Llama-shaped model, served by this engine and by transformers."""

from __future__ import annotations

import importlib
import logging
from typing import Any, Protocol

import torch
from torch import Tensor

from tolbuild.config import ModelConfig
from tolserve.engine.build import make_engine
from tolserve.engine.config import EngineConfig
from tolserve.engine.request import SamplingParams

MAX_BATCH_TOKENS = 4096
_RESULT_TIMEOUT_S = 120.0
_GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}


class Contestant(Protocol):
    """Greedy generation of fixed lengths, all requests given at once."""

    name: str

    def generate(self, prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        """`outputs[i]` tokens for each of the equally long `prompts`."""


class _Weights:
    """A transformers Llama's weights by name: they are those of kind base."""

    def __init__(self, config: ModelConfig, state: dict[str, Tensor]) -> None:
        self.config = config
        self._state = state

    def tensor(self, name: str) -> Tensor:
        return self._state[name]


class OurEngine:
    """This engine, called directly."""

    name = "ours"

    def __init__(self, weights: _Weights) -> None:
        config = EngineConfig(
            num_blocks=1024,
            max_num_seqs=64,
            max_num_batched_tokens=MAX_BATCH_TOKENS,
            max_model_len=512,
            prefix_cache=False,  # the same prompts are given again and again, and the rivals compute them anew
        )
        self._engine = make_engine(weights, config)

    def generate(self, prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        """See `Contestant`."""
        tokens: dict[str, list[int]] = {}
        for index, (prompt, count) in enumerate(zip(prompts, outputs, strict=True)):
            tokens[str(index)] = []
            params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
            self._engine.add_request(str(index), prompt, params)
        while self._engine.has_work():
            for output in self._engine.step():
                tokens[output.request_id] += [token.token_id for token in output.tokens]
        return list(tokens.values())


class Eager:
    """`model.generate` on one static batch: it runs until the longest output is done."""

    name = "transformers eager"

    def __init__(self, model: Any) -> None:
        self._model = model

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        """See `Contestant`."""
        ids = torch.tensor(prompts)
        longest = max(outputs)
        found = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=longest,
            do_sample=False,
            pad_token_id=0,
        )
        width = ids.shape[1]
        return [row[width : width + count].tolist() for row, count in zip(found, outputs, strict=True)]


class ContinuousBatching:
    """transformers' continuous batching over a paged cache, which is kept from one turn to the next, as ours is."""

    name = "transformers continuous batching"

    def __init__(self, model: Any) -> None:
        self._model = model

    def generate(self, prompts: list[list[int]], outputs: list[int]) -> list[list[int]]:
        """See `Contestant`."""
        library = _transformers()
        manager = self._model.init_continuous_batching(
            generation_config=library.GenerationConfig(**_GREEDY),
            continuous_batching_config=library.ContinuousBatchingConfig(
                num_blocks=512, max_batch_tokens=MAX_BATCH_TOKENS, page_size=32
            ),
        )
        manager.start()
        tokens: dict[str, list[int]] = {}
        try:
            for index, (prompt, count) in enumerate(zip(prompts, outputs, strict=True)):
                manager.add_request(prompt, request_id=str(index), max_new_tokens=count)
            while len(tokens) < len(prompts):
                result = manager.get_result(timeout=_RESULT_TIMEOUT_S)
                if result is not None and result.is_finished():
                    tokens[result.request_id] = result.generated_tokens
        finally:
            manager.stop(block=True, keep_for_next_session=True)
        return [tokens[str(index)] for index in range(len(prompts))]


def _transformers() -> Any:
    """The library, untyped and imported only where it competes."""
    return importlib.import_module("transformers")


def make_contestants(vocab_size: int) -> tuple[OurEngine, tuple[Contestant, ...]]:
    """Our engine and its rivals over one set of random weights, 12 layers of width 768."""
    transformers = _transformers()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    transformers.logging.set_verbosity_error()
    config = ModelConfig(
        kind="base",
        vocab_size=vocab_size,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=2048,
    )
    shape = {key: value for key, value in config.to_dict().items() if key in _SHARED_FIELDS}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, pad_token_id=0)).eval()
    model.generation_config.eos_token_id = None  # every output has the length that was asked for
    ours = OurEngine(_Weights(config, model.state_dict()))
    rivals = (Eager(model), ContinuousBatching(model))
    return ours, rivals


_SHARED_FIELDS = {
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
}

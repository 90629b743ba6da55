"""Every choice of a training run, as frozen dataclasses that the command line is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tolbuild.config import Kind, ModelConfig


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The model to train; sizes left at 0 follow from the others as tolbuild.config.ModelConfig says."""

    kind: Kind = "memory"
    """base, memory (MemoryLLM) or flex (Flex-MemoryLLM)."""
    vocab_size: int = 16384
    """Entries of the byte-level BPE vocabulary, trained on the corpus unless --tokenizer names one."""
    hidden_size: int = 192
    """Width d of the residual stream."""
    num_hidden_layers: int = 6
    """Layers L."""
    num_attention_heads: int = 6
    """Heads of d / heads components each."""
    num_key_value_heads: int = 0
    """Fewer than the heads groups the queries; 0 is one for each head."""
    intermediate_size: int = 512
    """Hidden units K of a layer's feed-forward network."""
    beta: int = 0
    """Flex only: how many d^2 of a layer's feed-forward parameters read the residual stream (1, 2 or 3)."""
    tie_word_embeddings: bool = True
    """Whether the output projection is the embedding; a head of its own otherwise."""

    def model_config(self, *, sequence_length: int, eos_token_id: int) -> ModelConfig:
        """The checkpoint's config for a model trained on sequences of this many tokens."""
        return ModelConfig(
            **vars(self),
            max_position_embeddings=sequence_length,
            eos_token_id=eos_token_id,
            bos_token_id=eos_token_id,
            torch_dtype="bfloat16",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    Raises:
        ValueError: a count is not positive, or the warm-up is longer than the run.
    """

    data: tuple[Path, ...]
    """Training text: JSON lines with a `text` field, gzip or plain."""
    valid: Path | None = None
    """Validation text of the same form, never trained on."""
    out: Path
    """Folder for the log, the resumable state and the checkpoint."""
    tokenizer: Path | None = None
    """A tokenizer.json to use; without it a byte-level BPE is trained on --data."""
    model: ModelShape = field(default_factory=ModelShape)
    steps: int = 2000
    """Optimizer steps. A resumed run may be given another number; the cosine then ends there."""
    batch_sequences: int = 8
    """Sequences a step, over all processes."""
    sequence_length: int = 512
    """Tokens a sequence."""
    learning_rate: float = 3e-3
    """Peak, after the warm-up."""
    final_learning_rate: float = 1e-4
    """Where the cosine ends."""
    warmup_steps: int = 100
    """Steps of linear growth to the peak."""
    weight_decay: float = 0.1
    """On matrices; norms and embeddings are spared."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    z_loss: float = 1e-6
    """Weight of the mean squared log of the softmax's denominator."""
    clip_norm: float = 1.0
    """Largest norm of all gradients together; longer ones are scaled down to it."""
    seed: int = 0
    """Decides the first weights and the order of the text."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one; there products are in bf16."""
    log_every: int = 10
    """Steps between two lines of the log."""
    validate_every: int = 250
    """Steps between two measurements on --valid."""
    save_every: int = 100
    """Steps between two resumable states."""
    validation_tokens: int = 40_000
    """Tokens of --valid that a measurement during the run reads; the last one reads all."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_sequences", "sequence_length", "log_every", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be smaller than steps {self.steps}")
        if not self.data:
            raise ValueError("--data names no file; give at least one")
        missing = [path for path in (*self.data, self.valid, self.tokenizer) if path and not path.is_file()]
        if missing:
            raise ValueError(f"no such file: {', '.join(map(str, missing))}")

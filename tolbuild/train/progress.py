"""What a run says while it goes: a line for a person, a JSON line for a program."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tolbuild.train.config import TrainConfig
from tolbuild.train.loop import learning_rate


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

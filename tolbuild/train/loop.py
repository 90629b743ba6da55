"""The training loop: loss, schedule, one step, and the run from first step to checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tolbuild.model import MemoryLLM
from tolbuild.train.config import TrainConfig
from tolbuild.train.loss import LinearCrossEntropy


def next_token_loss(model: MemoryLLM, ids_BT: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """(loss to minimise, mean cross-entropy in nats) of ids [B, S + 1].

    The first adds z_loss * mean(logsumexp(logits)^2), which keeps the softmax's denominator near one.
    """
    hidden_ND = model.hidden(ids_BT[:, :-1]).flatten(0, 1)
    losses: tuple[Tensor, Tensor] = LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, model.head_VD, ids_BT[:, 1:].flatten(), z_loss
    )
    return losses


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up to the peak, then a cosine to the final rate at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - 1 - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def make_optimizer(model: MemoryLLM, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices of the layers, none on norms and embeddings."""
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1 and "embed" not in name]
    spared = [p for name, p in model.named_parameters() if p.dim() <= 1 or "embed" in name]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


@torch.no_grad()
def validation_loss(model: MemoryLLM, ids_N: Tensor, *, length: int, limit: int | None, batch: int = 8) -> float:
    """Mean cross-entropy in nats a token over packed ids, in windows of `length`, at most `limit` tokens of them."""
    count = min(len(ids_N) - 1, limit or len(ids_N)) // length
    if count < 1:
        raise ValueError(f"{len(ids_N)} validation tokens do not fill one sequence of {length}")
    windows = torch.stack([ids_N[i * length : (i + 1) * length + 1] for i in range(count)])
    total = 0.0
    for part in windows.split(batch):
        total += float(next_token_loss(model, part, 0.0)[1]) * len(part)
    return total / count


def train_steps(
    model: MemoryLLM,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    batches: Iterator[tuple[int, Tensor]],
    *,
    reduce_gradients: bool = False,
) -> Iterator[tuple[int, float]]:
    """Take one optimizer step a batch and yield (step, cross-entropy).

    With `reduce_gradients`, gradients and loss are averaged over the processes of the default group.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    autocast = next(model.parameters()).is_cuda
    for step, ids_BT in batches:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss, cross_entropy = next_token_loss(model, ids_BT, config.z_loss)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}; lower --learning-rate")
        torch.autograd.backward(loss)
        if reduce_gradients:
            _average([p.grad for p in model.parameters() if p.grad is not None] + [cross_entropy])
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step, float(cross_entropy)


def _average(tensors: list[Tensor]) -> None:
    flat = torch.cat([t.flatten() for t in tensors])
    torch.distributed.all_reduce(flat, op=torch.distributed.ReduceOp.SUM)
    flat /= torch.distributed.get_world_size()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))

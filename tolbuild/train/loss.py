"""Cross-entropy of an output projection without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_TOKENS = 512
"""Positions whose logits are held at once: 32 MiB at a vocabulary of 16k, which the caches like better than 256."""


class LinearCrossEntropy(torch.autograd.Function):
    """(mean cross-entropy + z_loss * mean(logsumexp^2), mean cross-entropy) of hidden @ head^T.

    The gradients are made with the logits, chunk by chunk, so nothing of size tokens x vocabulary stays.
    Second derivatives are not to be had from it.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor]:
        """Losses as fp32 scalars, for hidden [N, D], head [V, D] and int64 targets [N]."""
        count = len(hidden_ND)
        grad_head_VD = torch.zeros_like(head_VD, dtype=torch.float32)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        cross_entropy = hidden_ND.new_zeros((), dtype=torch.float32)
        penalty = torch.zeros_like(cross_entropy)
        for start in range(0, count, CHUNK_TOKENS):
            part = slice(start, min(start + CHUNK_TOKENS, count))
            hidden, targets = hidden_ND[part], targets_N[part, None]
            logits_CV = F.linear(hidden, head_VD.to(hidden.dtype)).float()
            chosen_C1 = logits_CV.gather(1, targets)
            largest_C1 = logits_CV.amax(dim=-1, keepdim=True)
            softmax_CV = logits_CV.sub_(largest_C1).exp_()
            mass_C1 = softmax_CV.sum(dim=-1, keepdim=True)
            denominator_C1 = largest_C1 + mass_C1.log()
            cross_entropy += (denominator_C1 - chosen_C1).sum()
            penalty += denominator_C1.square().sum()
            softmax_CV.mul_((1 + 2 * z_loss * denominator_C1) / mass_C1)
            softmax_CV.scatter_add_(1, targets, softmax_CV.new_full(targets.shape, -1.0))
            slopes_CV = softmax_CV.to(hidden.dtype)
            grad_hidden_ND[part] = slopes_CV @ head_VD.to(hidden.dtype)
            grad_head_VD += slopes_CV.T @ hidden
        ctx.save_for_backward(grad_hidden_ND.div_(count), grad_head_VD.div_(count).to(head_VD.dtype))
        cross_entropy /= count
        ctx.mark_non_differentiable(cross_entropy)
        return cross_entropy + z_loss * penalty / count, cross_entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Scale the gradients made in the forward pass by that of the loss."""
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        return grad_hidden_ND * grads[0], grad_head_VD * grads[0], None, None

"""One option for each layer, at the least sum of losses within a budget: a multiple-choice knapsack, solved exactly.

A price per byte turns the budget into a bound on what any choice can reach; options that cannot lead below the best
choice found so far are left out, and what remains is enumerated layer by layer without dominated states.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_HALVINGS = 200
"""Of the price's interval: more than the bits of a double, so that the price is as good as it gets."""

_ROUNDING = 1e-12
"""Of sums, relative to the largest that occurs: what lies within it is not left out."""


def least_loss(costs_O: Ints, losses_LO: Floats, budget: int) -> tuple[int, ...]:
    """For each layer the option that it takes.

    Args:
        costs_O: of the options, equal for all layers, ascending.
        losses_LO: at least 0, not ascending along the options.
        budget: at least the cost of every layer's first option together.

    Returns:
        A choice of least total loss among those of total cost within the budget; the same for the same input.
    """
    num_layers = len(losses_LO)
    assert num_layers * int(costs_O[0]) <= budget, "the caller checks that the cheapest choice fits"
    cheapest_L = losses_LO.argmin(axis=1)
    if int(costs_O[cheapest_L].sum()) <= budget:
        return tuple(cheapest_L.tolist())
    price = _price(costs_O, losses_LO, budget)
    found_L = _fill(costs_O, losses_LO, budget, (losses_LO + price * costs_O).argmin(axis=1))
    reduced_LO = losses_LO + price * costs_O
    excess_LO = reduced_LO - reduced_LO.min(axis=1, keepdims=True)
    left = budget - int(costs_O[found_L].sum())
    gap = float(excess_LO[np.arange(num_layers), found_L].sum()) + price * left
    gap += _ROUNDING * (float(losses_LO[:, 0].sum()) + price * budget)
    return _enumerate(costs_O, losses_LO, excess_LO, budget, gap)


def _price(costs_O: Ints, losses_LO: Floats, budget: int) -> float:
    """The lowest price of a byte at which every layer's best option, byte costs added, fits the budget together."""
    low, high = 0.0, 2 * float(losses_LO.max()) / float(np.diff(costs_O).min())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        chosen_L = (losses_LO + middle * costs_O).argmin(axis=1)
        low, high = (low, middle) if int(costs_O[chosen_L].sum()) <= budget else (middle, high)
    return high


def _fill(costs_O: Ints, losses_LO: Floats, budget: int, chosen_L: Ints) -> Ints:
    """Use what the budget leaves for the single change that gains most, again and again."""
    chosen_L = chosen_L.copy()
    layers_L = np.arange(len(chosen_L))
    while True:
        left = budget - int(costs_O[chosen_L].sum())
        more_LO = costs_O - costs_O[chosen_L][:, None]
        gain_LO = np.where(more_LO <= left, losses_LO[layers_L, chosen_L][:, None] - losses_LO, 0.0)
        layer, option = np.unravel_index(int(gain_LO.argmax()), gain_LO.shape)
        if gain_LO[layer, option] <= 0:
            return chosen_L
        chosen_L[layer] = option


def _enumerate(costs_O: Ints, losses_LO: Floats, excess_LO: Floats, budget: int, gap: float) -> tuple[int, ...]:
    """The best choice among those whose excess over the bound stays within the gap: one at least does."""
    cost_S, loss_S, excess_S = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    steps: list[tuple[Ints, Ints]] = []
    for layer in range(len(losses_LO)):
        options = np.flatnonzero(excess_LO[layer] <= gap)
        state, place = (part.ravel() for part in np.indices((len(cost_S), len(options))))
        option = options[place]
        cost, loss = cost_S[state] + costs_O[option], loss_S[state] + losses_LO[layer, option]
        excess = excess_S[state] + excess_LO[layer, option]
        kept = np.flatnonzero((cost <= budget) & (excess <= gap))
        kept = kept[np.lexsort((loss[kept], cost[kept]))]
        best_before = np.minimum.accumulate(np.concatenate(([np.inf], loss[kept][:-1])))
        kept = kept[loss[kept] < best_before]
        cost_S, loss_S, excess_S = cost[kept], loss[kept], excess[kept]
        steps.append((state[kept], option[kept]))
    end, chosen = int(loss_S.argmin()), []
    for state_S, option_S in reversed(steps):
        chosen.append(int(option_S[end]))
        end = int(state_S[end])
    return tuple(reversed(chosen))
